"""Pictures in grey, painted, enlarged, looked at and saved by plain Python; used by ``variants.yaml``.

A picture is a mapping: width, height, model and pixels (bytes, a row after the other). Nothing here knows of procflow.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
STEPS = 80
Picture = dict[str, Any]


def paint(prompt: str, model: str, width: int, height: int, output_dir: str) -> Picture:
    """A picture of the prompt by one of three models; the same prompt gives the same picture."""
    turn = zlib.crc32(prompt.encode()) % 360 / 360 * math.tau
    tone = {"julia": _julia, "mandelbrot": _mandelbrot, "plasma": _plasma}[model]
    pixels = bytes(
        tone(3 * x / width - 1.5, 2 * y / height - 1, turn) for y in range(height) for x in range(width)
    )  # fmt: skip
    return {"width": width, "height": height, "model": model, "pixels": pixels}


def _escape(z: complex, c: complex) -> int:
    for step in range(STEPS):
        if abs(z) > 2:
            return 255 * step // STEPS
        z = z * z + c
    return 255


def _julia(x: float, y: float, turn: float) -> int:
    return _escape(complex(x, y), 0.7885 * complex(math.cos(turn), math.sin(turn)))


def _mandelbrot(x: float, y: float, turn: float) -> int:
    return _escape(0j, complex(x - 0.5, y))


def _plasma(x: float, y: float, turn: float) -> int:
    return int(127.5 * (1 + math.sin(3 * x + turn) * math.cos(2 * y)))


def detail(picture: Picture) -> float:
    """How much there is to see: the mean step between neighbours in a row, from 0 to 1."""
    pixels, width = picture["pixels"], picture["width"]
    steps = [abs(a - b) for at, (a, b) in enumerate(pairwise(pixels)) if (at + 1) % width]
    return sum(steps) / len(steps) / 255


def enlarge(picture: Picture, model: str, factor: int, output_dir: str) -> Picture:
    """The picture with more pixels, those between by their neighbours."""
    old_width, old_height, old = picture["width"], picture["height"], picture["pixels"]
    width, height = old_width * factor, old_height * factor
    made = bytearray()
    for y in range(height):
        top, down = divmod(min(y / factor, old_height - 1), 1)
        for x in range(width):
            left, right = divmod(min(x / factor, old_width - 1), 1)
            made.append(int(_between(old, old_width, old_height, int(left), int(top), right, down)))
    return {**picture, "width": width, "height": height, "pixels": bytes(made)}


def _between(old: bytes, width: int, height: int, left: int, top: int, right: float, down: float) -> float:
    x, y = min(left + 1, width - 1), min(top + 1, height - 1)
    above = old[top * width + left] * (1 - right) + old[top * width + x] * right
    below = old[y * width + left] * (1 - right) + old[y * width + x] * right
    return above * (1 - down) + below * down


def tones(picture: Picture, model: str, output_dir: str) -> dict[str, Any]:
    """The commonest tones and the mean."""
    counts = Counter(picture["pixels"])
    return {"mean": round(sum(picture["pixels"]) / len(picture["pixels"]), 1), "common": counts.most_common(3)}


def edges(picture: Picture, model: str, output_dir: str) -> dict[str, float]:
    """The share of pixels that differ much from the one below."""
    pixels, width = picture["pixels"], picture["width"]
    sharp = sum(1 for a, b in zip(pixels, pixels[width:], strict=False) if abs(a - b) > 32)
    return {"sharp": round(sharp / (len(pixels) - width), 4)}


def save_png(picture: Picture, model: str, output_filename: str, title: str, output_dir: str) -> str:
    """Write the picture as PNG; its path from this folder."""
    width, height, pixels = picture["width"], picture["height"], picture["pixels"]
    rows = b"".join(b"\0" + pixels[y * width : (y + 1) * width] for y in range(height))
    target = FOLDER / output_dir / output_filename
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        _chunk(b"tEXt", b"Title\0" + title.encode("latin-1", "replace")),
        _chunk(b"IDAT", zlib.compress(rows, 9)),
        _chunk(b"IEND", b""),
    ]
    target.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return str(target.relative_to(FOLDER)) if target.is_relative_to(FOLDER) else str(target)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
