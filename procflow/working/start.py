"""Start: the first file that a worker runs: loky's own start of a child process, without what only its pool needs.

``import loky.backend`` runs the whole of loky first: its executor, psutil, cloudpickle, a resource tracker. That is a third of a
worker's start, and most workers never use it. Here those modules are *late*: they are there, and their code runs once somebody
asks for anything in them, a step that imports loky for instance. The file is run by its path, before procflow can be
imported, so it imports nothing of procflow; it never decides what the worker does.
"""

from __future__ import annotations

import gc
import sys
from _thread import RLock
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from runpy import run_module
from types import ModuleType
from typing import Any

__all__ = ["LATE", "Late", "put_off"]

LATE = ("inspect", "loky.backend.reduction", "loky.backend.resource_tracker")
"""Besides loky itself. ``dataclasses`` imports ``inspect`` and asks it only about classes without a docstring."""


class Late(ModuleType):
    """A module whose code runs when something is asked for that it does not have yet; then it is like any other."""

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        with own["_late"]:
            if type(self) is Late:
                if "_late_began" in own:
                    # Its own code, or what that imports, asks too early: as in a circle of imports.
                    raise AttributeError(f"partially initialized module {self.__name__!r} has no attribute {name!r}")
                own["_late_began"] = True
                try:
                    own["__spec__"].loader.exec_module(self)
                finally:
                    del own["_late_began"]
                self.__class__ = ModuleType  # type: ignore[assignment]
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        self.__getattr__("__doc__")
        return dir(self)


def put_off(spec: ModuleSpec | None) -> None:
    """Put a module where ``import`` finds it, without running its code; one that is loaded or missing stays so."""
    if spec is None or spec.name in sys.modules:
        return
    module = module_from_spec(spec)
    module.__dict__["_late"] = RLock()
    module.__class__ = Late
    sys.modules[spec.name] = module
    package, _, name = spec.name.rpartition(".")
    if package:
        setattr(sys.modules[package], name, module)


def _main(loky: str) -> None:
    # What is imported stays: to look at it again and again would be a tenth of the start. ``worker.main`` enables it again.
    gc.disable()
    # That of the parent, wherever it found it.
    put_off(spec_from_file_location("loky", f"{loky}/__init__.py", submodule_search_locations=[loky]))
    for name in LATE:
        put_off(find_spec(name))
    run_module("loky.backend.popen_loky_posix", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # The folder of this file is no place to import from. loky puts the parent's whole path here in a moment.
    sys.path[:] = [folder for folder in sys.path if folder != __file__.rpartition("/")[0]]
    _main(sys.argv.pop(1))
