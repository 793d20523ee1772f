"""StepCall: the part of a step that never changes between its attempts, as a worker needs it.

The compiler makes one per step; executors pickle it once, name it by its digest and send it once per worker.
Arguments are trees of plain constants with ``Lookup`` and ``Text`` leaves, which the worker fills in from
the attempt's values. Workers unpickle these records, so this file imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal

from procflow.passive import passive

__all__ = ["INDEX", "ITEM", "NOTHING", "SECRETS", "Kind", "Lookup", "Reducer", "StepCall", "Text", "nothing"]

Kind = Literal[
    "transform", "shell", "merge", "split", "expand", "gate", "pooled", "fold", "reduce", "query", "skill", "rest"
]

ITEM = "item"
"""The name under which a map's body reads its item, unless the map says ``as:``."""
INDEX = "index"
"""The name under which a map's body reads the index of its item."""
SECRETS = "secrets"
"""The name under which secrets are looked up: ``Lookup(SECRETS, ("API_TOKEN",))`` is opened in the worker, from the
environment variable that holds it, so that no call and no fingerprint ever has the value."""


@passive(frozen=True, slots=True)
class Lookup:
    """A value by name, then a path into it: ``${rows.0.price}`` is ``Lookup("rows", (0, "price"))``.

    A path part is tried as a key of a mapping, an index of a sequence, then as an attribute of a named tuple
    or dataclass; it is never evaluated.
    """

    name: str
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        return "${" + ".".join([self.name, *map(str, self.path)]) + "}"


@passive(frozen=True, slots=True)
class Text:
    """Text with references in it; opening gives a str with each reference as ``str(value)``."""

    parts: tuple[str | Lookup, ...]


@passive(frozen=True, slots=True)
class Reducer:
    """How changes of one key of the pipeline's state become its value.

    ``name`` is append, add, union, merge, replace, or empty for ``function``: ``module:name`` or a callable of the value so
    far and a change. ``initial`` is the value before the first change, where ``has_initial`` says that one is declared.
    """

    name: str
    function: str | Callable[..., Any] | None = None
    initial: Any = None
    has_initial: bool = False

    @property
    def told(self) -> str:
        """The reducer in words."""
        return self.name or (
            self.function if isinstance(self.function, str) else getattr(self.function, "__name__", "?")
        )


NOTHING: Mapping[str, Any] = {}
"""An empty mapping that the records of many steps share; nobody writes to it."""


def nothing() -> Mapping[str, Any]:
    """``NOTHING``, for the default of a field."""
    return NOTHING


@passive(frozen=True, slots=True)
class StepCall:
    """What to run for one step.

    ``function`` is ``module:name`` or a callable. ``args`` and ``kwargs`` are argument trees. ``outputs`` are the
    names to publish: one name takes the whole value, several take the keys of a mapping or the members of a tuple,
    ``"*"`` takes every key of a mapping, ``()`` publishes nothing. ``options`` holds the constants of the kind (see
    ``procflow/steps/``). ``when`` is a condition in text, checked by the worker before anything else: where it is
    false, the attempt ends as skipped; ``constants`` are the names it may read besides values (``params``, ``env``,
    ``run``). ``params`` are the step's own, for ``step.params``; the compiler has put them into ``kwargs`` where
    the kind passes them on. ``folder`` is put on ``sys.path`` so that modules beside the pipeline file can be
    imported. ``item_name`` is set for the body of a map: the name under which it reads the item. ``state`` are the keys of
    the pipeline's state, where the step may read and write it. ``transient`` says that large values go to shared memory.
    """

    kind: Kind
    path: str
    name: str
    function: str | Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=nothing)
    outputs: tuple[str, ...] | Literal["*"] = ()
    options: Mapping[str, Any] = field(default_factory=nothing)
    when: str | None = None
    constants: Mapping[str, Any] = field(default_factory=nothing)
    params: Mapping[str, Any] = field(default_factory=nothing)
    folder: str | None = None
    item_name: str | None = None
    state: Mapping[str, Reducer] = field(default_factory=nothing)
    transient: bool = False

    def __reduce__(self) -> tuple[type[StepCall], tuple[Any, ...]]:
        # The default of frozen dataclasses asks for the fields anew each time, which costs more than the pickle.
        return StepCall, self.parts(self.function)

    def parts(self, function: str | Callable[..., Any] | None) -> tuple[Any, ...]:
        """What ``StepCall`` is made from, with another function."""
        return (
            self.kind, self.path, self.name, function, self.args, self.kwargs, self.outputs, self.options, self.when,
            self.constants, self.params, self.folder, self.item_name, self.state, self.transient,
        )  # fmt: skip

    def nameless(self, function: str | Callable[..., Any] | None) -> tuple[Any, ...]:
        """As ``parts``, without path, name and outputs: the same for all calls that do the same. ``publishing`` goes back."""
        return (
            self.kind, "", "", function, self.args, self.kwargs, (), self.options, self.when,
            self.constants, self.params, self.folder, self.item_name, self.state, self.transient,
        )  # fmt: skip

    def publishing(self, outputs: tuple[str, ...] | Literal["*"]) -> StepCall:
        """The same call with these outputs."""
        return StepCall(
            self.kind, self.path, self.name, self.function, self.args, self.kwargs, outputs, self.options, self.when,
            self.constants, self.params, self.folder, self.item_name, self.state, self.transient,
        )  # fmt: skip
