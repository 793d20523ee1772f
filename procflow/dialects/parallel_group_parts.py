"""What content pipelines are read with: kinds of data, what a step hands on, and where the shapes have their keys."""

from __future__ import annotations

from dataclasses import dataclass

from procflow.dialects.foreign import Part
from procflow.grammar import is_name

__all__ = ["KINDS", "SHAPES", "Data", "found", "in_words", "members_after", "type_of"]

KINDS = {
    "text_to_image": ("text", "image"),
    "text_to_video": ("text", "video"),
    "text_to_speech": ("text", "audio"),
    "image_understanding": ("image", "text"),
    "image_to_image": ("image", "image"),
    "image_to_video": ("image", "video"),
    "upscale_image": ("image", "image"),
    "split_image": ("image", ""),
    "add_audio": ("video", "video"),
    "upscale_video": ("video", "video"),
    "generate_subtitles": ("video", ""),
    "concat_videos": ("", "video"),
    "replicate_multitalk": ("", "video"),
    "prompt_generation": ("", ""),
}
"""What a step takes and gives, empty where that is not fixed."""
SHAPES = ("parallel_group", "split_input", "merge_results", "batch_process")


@dataclass(frozen=True, slots=True)
class Data:
    """What a step hands on: a reference, of which kind it is, and into how many parts it was split (0 for not at all)."""

    reference: str
    kind: str = ""
    parts: int = 0

    @property
    def plain(self) -> str:
        """The name alone where the reference is no more than one."""
        inner = self.reference[2:-1]
        return inner if is_name(inner) else self.reference

    def part(self, i: int) -> Data:
        """What member ``i`` of a group takes."""
        return Data(f"{self.reference[:-1]}.{i}}}") if self.parts else self


def type_of(part: Part) -> Part:
    """The part with a step's type."""
    return part["type"] if part["type"].is_there else part["step_type"]


def found(part: Part, key: str) -> Part:
    """A key of a group, wherever the shape has it."""
    places = (part, part["params"], part["parallel_config"], part["config"])
    return next((place[key] for place in places if place[key].is_there), part[key])


def members_after(parts: list[Part], i: int) -> int:
    """How many enabled members the parallel_group has that follows step ``i``; 0 where none does."""
    following = next((p for p in parts[i + 1 :] if isinstance(p.value, dict) and p["enabled"].value is not False), None)
    if following is None or type_of(following).value != "parallel_group":
        return 0
    listed = next(
        (following[key] for key in ("steps",) if following[key].is_there), following["params"]["parallel_steps"]
    )
    return sum(1 for member in listed if isinstance(member.value, dict) and member["enabled"].value is not False)


def in_words(kind: str) -> str:
    """``an image``, ``text``."""
    return {"text": "text", "audio": "audio"}.get(kind, f"an {kind}" if kind[0] in "aeiou" else f"a {kind}")
