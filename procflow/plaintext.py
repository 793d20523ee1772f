"""User text made safe to print: one line stays one line, and no text can drive a terminal or forge a log line.

Names, messages, tracebacks and output of steps come from outside. What could move a cursor, reverse the reading order or
start a new line is shown as an escape (``\\x1b``, ``\\u202e``). Pure text; knows nothing of what it prints.
"""

from __future__ import annotations

import re

__all__ = ["clean", "clean_lines", "counted", "shortened"]

# C0 and C1 controls, DEL, lone surrogates, line and paragraph separators, and marks that reverse or hide text.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": " "}


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    code = ord(char)
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def clean(text: object) -> str:
    """The text on one line with everything escaped that a terminal or a log reader would act upon."""
    raw = str(text)
    # What is all letters, digits and signs of ASCII is safe, and that is nearly every text.
    return raw if raw.isascii() and raw.isprintable() else _UNSAFE.sub(_escape, raw)


def clean_lines(text: str) -> list[str]:
    """The lines of a text, each cleaned; tabs become four spaces, so that code stays readable."""
    return [clean(line.replace("\t", "    ")) for line in text.replace("\r\n", "\n").rstrip("\n").split("\n")]


def shortened(text: object, most: int = 300) -> str:
    """The text cleaned and cut to ``most`` characters; a cut is marked with the number of characters left out."""
    raw = str(text)
    if len(raw) <= most:
        return clean(raw)
    return f"{clean(raw[:most])}... ({len(raw) - most:,} more characters)"


def counted(number: int, one: str, many: str = "") -> str:
    """``1 step``, ``1,700 items``: a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
