"""Settings of content pipelines, which stand at the top, under ``settings``, ``config`` or ``global_config``.

What procflow does itself becomes limits; what it does in its own way (temporary files, logs) is noted; what it can't do is refused.
"""

from __future__ import annotations

from procflow.dialects.foreign import Made, Part, escaped

__all__ = ["Settings"]

_PLACES = ("settings", "config", "global_config")
_OWN_WAY = {
    "temp_dir": "values lie in the run's folder",
    "cleanup_temp": "values go when the last step that needs them has ended",
    "log_level": "logs of all steps are kept: procflow logs",
    "log_file": "logs of all steps are kept: procflow logs",
    "create_subdirs": "your functions make the folders they write to",
    "timestamp_dirs": "your functions make the folders they write to",
    "warn_threshold": "costs are shown at the end of the run",
    "fail_fast": "a chain stops at its first failure, since every step takes what the one before it made",
}
_UNABLE = {
    "max_cost": "costs are told by step.cost and shown, but stop no run; take it out",
    "rate_limit_delay": "bind the step types with a rate_limit instead, in a file for --bindings",
}
_KNOWN = ("output_dir", "output_directory", "save_intermediates", "parallel", "max_workers", "timeout", *_OWN_WAY)


class Settings:
    """What the document says of the run as a whole."""

    def __init__(self, root: Part) -> None:
        self.places = [root, *(root[key] for key in _PLACES if root[key].mapping())]
        for place in self.places[1:]:
            place.only(
                _KNOWN,
                {key: hint for key, hint in _UNABLE.items() if place[key].value not in (None, 0, 0.0)},
                tolerant=True,
            )
        for key, told in _OWN_WAY.items():
            found = self._found(key)
            if found.is_there:
                found.note(f"procflow has its own way: {told}")
        self._one_by_one = not self._found("parallel").flag(True)

    def _found(self, *keys: str) -> Part:
        """The first of the keys, the innermost place first."""
        for place in reversed(self.places):
            for key in keys:
                if place[key].value is not None:
                    return place[key]
        return self.places[0][keys[0]]

    def limits(self) -> Made:
        """The run's limits."""
        workers, timeout = self._found("max_workers"), self._found("timeout")
        made = Made(self.places[-1])
        made.put("workers", workers.whole(least=1), workers)
        return made.put("timeout", timeout.seconds(), timeout)

    def folder(self) -> str | None:
        """The folder for outputs, where the document names one."""
        found = self._found("output_dir", "output_directory")
        return escaped(found.text()) or None

    def keeps(self) -> bool:
        """Whether the values of all steps stay on the disk."""
        return self._found("save_intermediates").flag()

    def at_once(self, written: Part) -> int | None:
        """How many members of a group run at once."""
        if self._one_by_one:
            return 1
        return written.whole(least=1)
