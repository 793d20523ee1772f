"""State: shared accumulators of a pipeline, how changes become a value, and what a step sees of them. Pure.

``state: {results: append, totals: add}`` declares them. A step reads what had been written when everything before it was
done, and writes changes; it never sees its own. Changes travel beside a step's values, as refs, and are put one behind
the other in declared order, whatever finished first; whoever reads folds them, in a worker. So the state is the same for
every executor and number of workers, a failed attempt leaves nothing, and a resume finds what was written.

A ref of changes opens to changes in lists, as deep as blocks and maps have made them; a change is a tuple with one
value, so that it can't be taken for such a list. Who sees which changes is ``scheduling/states_seen.py``'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NoReturn

from procflow.call import Reducer
from procflow.errors import ProcflowError

__all__ = ["MARK", "REDUCERS", "SO_FAR", "WAITING", "State", "StateError", "fold", "initial_value", "leaves"]

MARK = "@"
"""Changes of the state ``totals`` travel under the name ``@totals``, which no value can have."""
SO_FAR, WAITING = "@so_far", "@waiting"
"""Names under which the fold of a map reads the value so far and the results that come next."""
REDUCERS = ("append", "add", "union", "merge", "replace")
MAX_DEPTH = 100

Change = tuple[Any]
Resolve = Callable[[Any], Callable[..., Any]]


class StateError(ProcflowError):
    """A change of the state can't be made, or can't be folded; the message names the key and its reducer."""


def leaves(tree: Any) -> Iterator[Change]:
    """The changes in nested lists, in order; without recursion."""
    stack = [iter((tree,))]
    while stack:
        for part in stack[-1]:
            if type(part) is list:
                stack.append(iter(part))
                break
            yield part
        else:
            stack.pop()


def initial_value(spec: Reducer) -> Any:
    """The value before the first change; a fresh object each time."""
    if spec.has_initial:
        value = deepcopy(spec.initial)
        return set(value) if spec.name == "union" else value
    made: dict[Any, Callable[[], Any]] = {"append": list, "add": int, "union": set, "merge": dict}
    return made[spec.name]() if spec.name in made else None


def fold(key: str, spec: Reducer, changes: Iterable[Change], resolve: Resolve) -> Any:
    """The value that the changes make of the initial one, from left to right.

    ``resolve`` gives the function that ``module:name`` means. Without ``initial`` the first change begins a sum and a fold
    by a function of the user's.
    """
    value = initial_value(spec)
    name = spec.name
    begun = spec.has_initial or name in ("append", "union", "merge")
    function = resolve(spec.function) if spec.function is not None else None
    try:
        for (change,) in changes:
            if name == "append":
                value.append(change)
            elif name == "union":
                value.update(change)
            elif name == "merge":
                value = _merged(value, change, 0)
            elif name == "replace" or not begun:
                value, begun = change, True
            elif name == "add":
                value = value + change
            else:
                assert function is not None
                value = function(value, change)
    except StateError:
        raise
    except Exception as error:
        kinds = f"{type(value).__name__} and {type(change).__name__}"
        raise StateError(
            f"state {key!r} ({spec.told}): {kinds} can't be joined: {type(error).__name__}: {error}"
        ) from error
    return value


def _merged(old: Any, new: Any, depth: int) -> Any:
    """Mappings in one another, at every depth; where both have something else, the later one."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if depth > MAX_DEPTH:
        raise StateError(f"mappings are nested deeper than {MAX_DEPTH} levels")
    found = dict(old)
    for key, value in new.items():
        found[key] = _merged(found[key], value, depth + 1) if key in found else value
    return found


# -- what a step sees ----------------------------------------------------------------------------------------------


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise TypeError(
        "this is a snapshot of the state and can't be changed: write step.state.append(name, value) and so on"
    )


class _List(list[Any]):
    """A list that can't be changed in place; a copy of it can."""

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, (list(self),)


class _Set(set[Any]):
    """The same of a set."""

    add = update = remove = discard = pop = clear = _refuse
    difference_update = intersection_update = symmetric_difference_update = _refuse
    __ior__ = __iand__ = __isub__ = __ixor__ = _refuse

    def __reduce_ex__(self, protocol: Any) -> Any:
        return set, (set(self),)


class _Dict(dict[Any, Any]):
    """The same of a dict."""

    update = setdefault = pop = popitem = clear = _refuse
    __setitem__ = __delitem__ = __ior__ = _refuse

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)


def _read_only(value: Any) -> Any:
    kinds: dict[type, Callable[[Any], Any]] = {list: _List, set: _Set, dict: _Dict}
    made = kinds.get(type(value))
    return made(value) if made is not None else value


class State(Mapping[str, Any]):
    """``step.state``: the state as it was when the step began, and the step's own changes of it.

    Reading gives what steps before this one wrote, never what one beside it does; the first read of a key folds it.
    ``append``, ``extend``, ``add``, ``union``, ``merge``, ``reduce``, ``update`` and ``state[key] = value`` write.
    ``specs`` are the declared keys, None outside a run, where writing does nothing.
    """

    __slots__ = ("_changes", "_open", "_resolve", "_seen", "_specs")

    def __init__(
        self,
        specs: Mapping[str, Reducer] | None = None,
        open_changes: Callable[[str], Any] = lambda key: [],
        resolve: Resolve = lambda function: function,
    ) -> None:
        self._specs = specs
        self._open = open_changes
        self._resolve = resolve
        self._seen: dict[str, Any] = {}
        self._changes: dict[str, list[Change]] = {}

    # -- reading -----------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        if not self._specs:
            where = "outside a run" if self._specs is None else "in this pipeline"
            raise KeyError(f"there is no state {key!r} {where}; step.state.get({key!r}, ...) gives a value of your own")
        spec = self._spec(key)
        if key not in self._seen:
            self._seen[key] = _read_only(fold(key, spec, leaves(self._open(key)), self._resolve))
        return self._seen[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs or ())

    def __len__(self) -> int:
        return len(self._specs or ())

    def __repr__(self) -> str:
        return f"<state {', '.join(self) or 'none'}>"

    # -- writing -----------------------------------------------------------------------------------------------

    def append(self, key: str, value: Any) -> None:
        """One more member of a list (reducer append)."""
        self._change(key, "append", value)

    def extend(self, key: str, values: Iterable[Any]) -> None:
        """Several more members of a list (reducer append), in order."""
        for value in values:
            self._change(key, "append", value)

    def add(self, key: str, amount: Any = 1) -> None:
        """Add an amount (reducer add): anything that knows ``+``."""
        self._change(key, "add", amount)

    def union(self, key: str, members: Iterable[Any]) -> None:
        """More members of a set (reducer union); they must be hashable."""
        if isinstance(members, (str, bytes)):
            raise TypeError(
                f"step.state.union({key!r}, ...) takes several members; for one text write [{members[:40]!r}]"
            )
        self._change(key, "union", set(members))

    def merge(self, key: str, mapping: Mapping[Any, Any]) -> None:
        """Put a mapping into a mapping (reducer merge), at every depth; of equal keys the later value stays."""
        if not isinstance(mapping, Mapping):
            raise TypeError(f"step.state.merge({key!r}, ...) takes a mapping, not {type(mapping).__name__}")
        self._change(key, "merge", dict(mapping))

    def reduce(self, key: str, change: Any) -> None:
        """A change for a reducer of your own: it is called with the value so far and this."""
        self._change(key, "", change)

    def __setitem__(self, key: str, value: Any) -> None:
        """Another value (reducer replace)."""
        self._change(key, "replace", value)

    def update(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """One change of each key, by its reducer: append one member, add, unite, merge, replace, or your own."""
        for key, value in {**(changes or {}), **more}.items():
            name = self._spec(key).name if self._specs is not None else ""
            if name == "union":
                self.union(key, value)
            elif name == "merge":
                self.merge(key, value)
            else:
                self._change(key, name, value)

    def _change(self, key: str, name: str, value: Any) -> None:
        if self._specs is None:
            return
        spec = self._spec(key)
        if spec.name != name:
            raise StateError(
                f"state {key!r} is declared with the reducer {spec.told}: write {_HOW[spec.name].format(key)}"
            )
        self._changes.setdefault(key, []).append((value,))

    def _spec(self, key: str) -> Reducer:
        specs = self._specs or {}
        spec = specs.get(key)
        if spec is None:
            from difflib import get_close_matches

            near = get_close_matches(str(key), list(specs), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"declare it in the file: state: {{{key}: append}}"
            raise StateError(f"the pipeline has no state {key!r}; {hint}")
        return spec

    # -- for procflow itself -----------------------------------------------------------------------------------

    def take(self) -> dict[str, list[Change]]:
        """The changes since the last call; of a sum and of what is replaced, one change."""
        changes, self._changes = self._changes, {}
        for key, made in changes.items():
            name = (self._specs or {})[key].name
            if name == "replace":
                del made[:-1]
            elif name == "add" and len(made) > 1:
                changes[key] = [(fold(key, Reducer("add"), made, self._resolve),)]
        return changes


_HOW = {
    "append": "step.state.append({!r}, value)",
    "add": "step.state.add({!r}, amount)",
    "union": "step.state.union({!r}, members)",
    "merge": "step.state.merge({!r}, mapping)",
    "replace": "step.state[{!r}] = value",
    "": "step.state.reduce({!r}, change)",
}
