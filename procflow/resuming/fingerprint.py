"""Fingerprints: what each task of a pipeline is made from, so that a resume knows which results still hold.

A fingerprint has named parts (code, inputs, params, files, options, when, kind, members), each a digest,
and says which of them changed. Timeouts, retries, limits, priorities, descriptions and the order of keys do not count,
neither does the id of the run: compile with ``RUN_ID`` in its place where ``mentions_run_id`` says so. This file reads
source files; it imports and runs nothing of the user's.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from procflow.call import StepCall
from procflow.graph import ScopeUnit, TaskUnit
from procflow.passive import passive
from procflow.resuming.canonical import ALGORITHM, Canonical, digest, framed, hasher
from procflow.resuming.code_print import CodePrints
from procflow.resuming.needs import Key, Need

__all__ = ["RUN_ID", "Fingerprint", "Fingerprints", "changed_pieces", "changes", "fingerprints"]

RUN_ID = "\0run.id\0"
"""Stands for the id of the run, which is another one in every run."""
SHORT = 16
"""Digits of a part's digest: enough to tell what changed; the whole has all of them."""
SHORT_PIECE = 8
MOST_PIECES = 60
MOST_TELLING = 2000
"""A pipeline of more functions keeps no pieces of the others: its journal would be full of them."""


@passive(frozen=True, slots=True)
class Fingerprint:
    """``digest`` names its algorithm; ``text`` are its ``parts`` as JSON, as the journal holds them.

    ``opaque`` are types of values that can't be compared: such a task is never the same as before. ``pieces`` is JSON, too:
    short digests by name of what the part ``code`` is made of, which only say what changed; the same for the same code.
    """

    digest: str
    text: str = "{}"
    opaque: tuple[str, ...] = ()
    pieces: str = ""

    @property
    def parts(self) -> Mapping[str, str]:
        """Short digests by name, only those that say something; looked at only where something has changed."""
        found: dict[str, str] = json.loads(self.text)
        return found


_NONE = Fingerprint("")


@passive(frozen=True, slots=True)
class Fingerprints:
    """Of all tasks and blocks; ``mentions_run_id`` says whether a constant holds the text of the run's id."""

    by_key: Mapping[Key, Fingerprint]
    mentions_run_id: bool = False


def fingerprints(needs: Mapping[Key, Need], run_id: str = "") -> Fingerprints:
    """The fingerprint of everything in ``needs``."""
    printer = _Printer(run_id)
    return Fingerprints(printer.all(needs), printer.mentions)


class _Shared(NamedTuple):
    """What the fingerprints of calls that differ in their outputs alone have in common.

    ``before`` and ``behind`` stand around the outputs in what the part ``kind`` is the digest of; ``first`` and ``last``
    around that part in what the whole is the digest of; ``told`` are the other parts, behind it in the text.
    """

    before: bytes
    behind: bytes
    first: str
    last: str
    told: str
    opaque: tuple[str, ...]
    pieces: str


class _Printer:
    """Makes fingerprints; what many steps share is digested once, since a pipeline may have a hundred thousand."""

    def __init__(self, run_id: str) -> None:
        self._code = CodePrints()
        self._canonical = Canonical(self._code.callable, run_id)
        self._digest = hasher()
        self._known: dict[Any, str] = {}
        self._kinds: dict[tuple[str, str | None], tuple[bytes, bytes]] = {}
        self._pieces: dict[tuple[str, str | None], str] = {}

    @property
    def mentions(self) -> bool:
        """Whether any text so far held the id of the run."""
        return self._canonical.seen

    def all(self, needs: Mapping[Key, Need]) -> dict[Key, Fingerprint]:
        """In the order of ``needs``; steps that say nothing but which function they call are told by the group."""
        found = dict.fromkeys(needs, _NONE)
        groups: dict[Any, list[tuple[Key, Need, StepCall]]] = {}
        for key, need in needs.items():
            unit = need.unit
            if not isinstance(unit, TaskUnit):
                assert isinstance(unit, ScopeUnit)
                found[key] = self._block(need, unit)
                continue
            call = unit.call
            given = need.reads or call.args or call.kwargs or call.params or call.options or call.state
            if given or call.when is not None:
                (found[key],) = self._tasks(self._share(need, call), [call])
                continue
            # By identity: the graph holds the functions, so their ids stay theirs.
            same = (id(call.function), call.kind, call.folder, call.item_name)
            group = groups.get(same)
            if group is None:
                groups[same] = [(key, need, call)]
            else:
                group.append((key, need, call))
        for group in groups.values():
            keys, members, calls = zip(*group, strict=True)
            found.update(zip(keys, self._tasks(self._share(members[0], calls[0]), calls), strict=True))
        return found

    def _tasks(self, shared: _Shared, calls: Sequence[StepCall]) -> list[Fingerprint]:
        """Those of calls that have all but their outputs in common."""
        before, behind, first, last, told, opaque, pieces = shared
        part, digest = self._canonical.part, self._digest
        kinds = [digest(before + part(call.outputs) + behind) for call in calls]
        wholes = [digest(f"{first}kind={kind};{last}".encode()) for kind in kinds]
        return [
            Fingerprint(f"{ALGORITHM}:{whole}", f'{{"kind": "{kind[:SHORT]}"{told}}}', opaque, pieces)
            for kind, whole in zip(kinds, wholes, strict=True)
        ]

    def _share(self, need: Need, call: StepCall) -> _Shared:
        """All but the outputs."""
        self._canonical.opaque.clear()
        before, behind = self._kinds.get((call.kind, call.item_name)) or self._kind(call)
        code = self._functions(call)
        first, last, told = self._parts(code, _task(need, call))
        pieces = self._pieces_of(call.function, call.folder) if code else ""
        return _Shared(before, behind, first, last, told, tuple(self._canonical.opaque), pieces)

    def _block(self, need: Need, unit: ScopeUnit) -> Fingerprint:
        """Of what a block makes of its members without a task of its own; the members have their own fingerprints."""
        of = self._canonical.of
        mine = map(of, (unit.merge.strategy, unit.merge.output, unit.need, unit.kept))
        members = self._digest(framed(b"tuple", self._canonical.of_pairs(need.members), *mine))
        whole = self._digest(f"members={members};".encode())
        return Fingerprint(f"{ALGORITHM}:{whole}", f'{{"members": "{members[:SHORT]}"}}')

    def _kind(self, call: StepCall) -> tuple[bytes, bytes]:
        """What stands around the outputs in ``("kind", kind, outputs, item name)``."""
        of = self._canonical.of
        around = framed(b"tuple", of("kind"), of(call.kind))[:-1], framed(b"", of(call.item_name))[1:]
        self._kinds[call.kind, call.item_name] = around
        return around

    def _parts(self, code: str, told: Mapping[str, Any]) -> tuple[str, str, str]:
        """Digests as they are digested, those before ``kind`` and those behind it; and as they are told, short."""
        parts = {"code": code} if code else {}
        for name, value in told.items():
            if value:
                parts[name] = self._canonical.digest(value)
        first = last = short = ""
        for name in sorted(parts):
            part = parts[name]
            if name < "kind":
                first += f"{name}={part};"
            else:
                last += f"{name}={part};"
            # Neither names nor digests have anything to escape.
            short += f', "{name}": "{part[:SHORT]}"'
        return first, last, short

    def _pieces_of(self, function: Any, folder: str | None) -> str:
        """The pieces of the code as JSON; empty where there are none."""
        if not isinstance(function, str):
            return ""
        known = self._pieces.get((function, folder))
        if known is None:
            if len(self._pieces) >= MOST_TELLING:
                return ""
            found = list(self._code.pieces(function, folder).items())[:MOST_PIECES]
            known = json.dumps({name: digest(text)[:SHORT_PIECE] for name, text in found}) if found else ""
            self._pieces[function, folder] = known
        return known

    def _functions(self, call: StepCall) -> str:
        """The digest of the code: of the function, and of others that a merge or the state asks."""
        function = call.function
        if not (call.options or call.state):
            known = self._known.get((call.folder, function if isinstance(function, str) else id(function)))
            return known if known is not None else self._code_of(call.folder, [function])
        score = call.options.get("score")
        functions = [function, score if isinstance(score, str) and ":" in score else None]
        functions += [spec.function for spec in call.state.values() if spec.function is not None]
        functions += [f for f in (call.options.get("combiners") or {}).values() if isinstance(f, str)]
        return self._code_of(call.folder, functions)

    def _code_of(self, folder: str | None, functions: Sequence[Any]) -> str:
        canonical = self._canonical
        # Callables by identity: the graph holds them, so their ids stay theirs.
        key = (folder, *[f if isinstance(f, str) else id(f) for f in functions])
        if key not in self._known:
            opaque = len(canonical.opaque)
            found = [self._code.target(f, folder) if isinstance(f, str) else canonical.of(f) for f in functions if f]
            text = canonical.digest(found) if found else ""
            if len(canonical.opaque) > opaque:
                return text
            self._known[key] = text
        return self._known[key]


_APART = ("files", "limits")
"""Options that are told elsewhere, or that change no result."""


def _task(need: Need, call: StepCall) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if call.args or call.kwargs or need.reads:
        inputs = {
            "args": call.args,
            "kwargs": {name: tree for name, tree in call.kwargs.items() if name not in call.params},
            "made by": {name: makers for name, makers in need.reads.items() if makers},
        }
        told["inputs"] = {name: value for name, value in inputs.items() if value}
    if call.params:
        told["params"] = dict(call.params)
    if call.options:
        told["files"] = declared_files(call) if "files" in call.options else None
        told["options"] = {
            n: _unplaced(v, call.folder) for n, v in call.options.items() if v is not None and n not in _APART
        }
    if call.state:
        told["state"] = [(key, spec.name, spec.initial, spec.has_initial) for key, spec in sorted(call.state.items())]
    if call.when is not None:
        told["when"] = (call.when, dict(call.constants))
    return told


def declared_files(call: StepCall) -> list[tuple[Any, ...]]:
    """The files that a step declares as they are now: by time, size and inode, or by what is in them."""
    declared, folder = call.options["files"], call.folder or os.getcwd()
    found: dict[str, tuple[Any, ...]] = {}
    for pattern in declared["paths"]:
        for path in glob.iglob(os.path.join(folder, os.path.expanduser(pattern)), recursive=True):
            if os.path.isdir(path):
                continue
            name = os.path.relpath(path, folder)
            try:
                state = os.stat(path)
                by_stat = (state.st_mtime_ns, state.st_size, state.st_ino)
                found[name] = (name, _content(path)) if declared["hash"] == "content" else (name, *by_stat)
            except OSError as error:
                found[name] = (name, error.errno)
    return [tuple(declared["paths"]), *(found[name] for name in sorted(found))]


def _content(path: str) -> str:
    import xxhash

    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return str(state.hexdigest())


def _unplaced(value: Any, folder: str | None) -> Any:
    """A pipeline that was moved to another folder is the same."""
    return "\0folder\0" if folder is not None and isinstance(value, str) and value == folder else value


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Names of the parts that differ, the most telling first."""
    order = ("code", "params", "inputs", "files", "options", "state", "when", "kind", "members")
    names = dict.fromkeys((*order, *old, *new))
    return [name for name in names if old.get(name) != new.get(name)]


def changed_pieces(old: Mapping[str, str], new: str) -> list[str]:
    """Which functions, constants and modules of the code differ, ``new`` as JSON; none where that was not kept."""
    now: dict[str, str] = json.loads(new or "{}")
    return [name for name in dict.fromkeys((*now, *old)) if old.get(name) != now.get(name)] if old else []
