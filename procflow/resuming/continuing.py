"""Continuing: a run that builds on an earlier one, or goes on itself: resume, retry, ``--from``, ``--only``, ``--skip``.

    Earlier (what was asked for) ─ under the run's lock ─> Session (kept results, fingerprints, what to take over)

``launch`` opens a session for every run, because every run records what its steps are made from. This file decides which
run is built on and whether that may be; what is kept of it is ``journal_kept.py``'s to say, and the scheduler's.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from procflow import __version__, units
from procflow.errors import LockHeld, ProcflowError
from procflow.graph import TaskGraph, walk
from procflow.passive import passive
from procflow.resuming.fingerprint import RUN_ID, Fingerprint, changes, fingerprints
from procflow.resuming.needs import Key, Need, needs_of
from procflow.resuming.selection import Chosen, OnlyCached, Selection, check_results, choose, loosened, under
from procflow.scheduling.kept import Kept
from procflow.storing.state_folder import StateFolder
from procflow.storing.store_begin import Taken
from procflow.storing.store_prints import Prints
from procflow.units import Share

if TYPE_CHECKING:
    from procflow.launch import Prepared
    from procflow.storing.history import History, RunRow
    from procflow.storing.journal_kept import JournalKept
    from procflow.storing.journal_results import Results

__all__ = [
    "CannotContinue",
    "Earlier",
    "NothingToDo",
    "Session",
    "again",
    "asked",
    "open_session",
    "selection_of",
]

ENDED_WELL = ("succeeded", "partial")
LIMITS = ("executor", "workers", "memory", "timeout")


class NothingToDo(ProcflowError):
    """The run that was to go on has ended well; the message says so. ``run`` is its row."""

    exit_code = 0

    def __init__(self, message: str, run: RunRow) -> None:
        super().__init__(message)
        self.run = run


class CannotContinue(ProcflowError):
    """Earlier results can't be used; the message says why and what to do."""

    exit_code = 2


@passive(frozen=True, slots=True)
class Earlier:
    """What a run builds on: the run ``run_id`` (None: the last one of the pipeline).

    ``same_run`` continues that run itself. ``selection`` says which steps run whatever was done before. ``force`` uses the
    results of another version of Python or procflow. ``cached`` uses results of the steps with ``cache: true`` alone, where
    there are any that this version of Python and procflow would make.
    """

    run_id: str | None = None
    same_run: bool = False
    selection: Selection | None = None
    force: bool = False
    cached: bool = False


@dataclass(slots=True)
class Session:
    """What ``launch`` needs to begin: the pipeline to run, what is kept, and what the journal is told at the start.

    ``prints`` say what every task is made from, ``told`` gives the same to the journal, once.
    """

    prepared: Prepared
    kept: Kept | None = None
    prints: Mapping[Key, Fingerprint] = field(default_factory=dict)
    told: Prints = field(default_factory=Prints)
    taken: Sequence[Taken] = ()
    earlier: str | None = None
    same_run: bool = False
    judged: JournalKept | None = None
    _results: list[Results] = field(default_factory=list)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for results in self._results:
            results.close()


def open_session(
    prepared: Prepared, folder: StateFolder, lock_name: str, earlier: Earlier | None, cache: bool = False
) -> Session:
    """The session that begins; the caller holds the run's lock (or only wants to look).

    Raises ``NothingToDo``, ``CannotContinue``, or ``UnknownRun`` where the earlier run is not there.
    """
    needs = needs_of(prepared.graph)
    prints = _fingerprints(prepared, needs)
    if earlier is None and cache and prepared.graph.cached:
        earlier = Earlier(cached=True)
    if earlier is None:
        return _anew(prepared, prints)
    # A run that begins anew needs none of these.
    from procflow.storing.history import History
    from procflow.storing.journal_kept import JournalKept
    from procflow.storing.journal_results import Results

    with History.open(folder) as past:
        row = _earlier(past, prepared, lock_name, earlier)
    if earlier.cached and (row is None or _other_versions(row)):
        return _anew(prepared, prints)
    if row is not None:
        _check_versions(row, earlier)
    results = Results.read(folder, row.run_id) if row is not None else Results.nothing(folder)
    try:
        chosen = choose(prepared.graph, earlier.selection) if earlier.selection else None
        ignore: Container[str] = ()
        if chosen is not None:
            ignore = chosen.held if earlier.same_run else {key[0] for key in needs}
        anew: Container[str] = chosen.runs if chosen is not None and not earlier.same_run else ()
        if earlier.cached:
            leaves = {need.unit.label for key, need in needs.items() if key[1] in ("member", "batch")}
            anew = leaves - prepared.graph.cached
        judged = JournalKept(
            needs, prints, results, same_run=earlier.same_run, ignore=ignore, anew=anew, keep=prepared.graph.keep,
            hooks=_hooks(prepared.graph),
        )  # fmt: skip
        session = Session(
            prepared, judged, prints, judged.prints(), judged=judged, same_run=earlier.same_run,
            earlier=row.run_id if row is not None and not earlier.same_run else None, _results=[results],
        )  # fmt: skip
        if chosen is not None:
            if not earlier.same_run:
                check_results(judged, chosen)
            session.prepared = prepared.with_graph(loosened(prepared.graph, chosen))
            if not earlier.same_run:
                session.prepared = session.prepared.with_warnings(_changed(judged, prints, chosen))
            session.kept = under(judged, chosen, earlier.same_run)
        elif earlier.cached:
            session.kept = OnlyCached(judged, anew)
        if not earlier.same_run:
            session.taken = judged.taken(anew)
        return session
    except BaseException:
        results.close()
        raise


def _hooks(graph: TaskGraph) -> dict[str, str]:
    """The labels of steps of hooks, by path."""
    without = {id(unit) for unit in walk(graph.root)}
    return {unit.path: unit.label for unit in walk(graph.root, hooks=True) if id(unit) not in without}


def _changed(judged: JournalKept, prints: Mapping[Key, Fingerprint], chosen: Chosen) -> Iterator[str]:
    """One line for the steps whose earlier results are used though they were made from something else."""
    found: dict[str, str] = {}
    for key, new in prints.items():
        old = judged.results.prints.get(key)
        if key[0] in chosen.held and old is not None and old.digest != new.digest:
            found.setdefault(key[0], " and ".join(changes(old.parts, new.parts)))
    if found:
        named = [f"{label} ({what})" for label, what in list(found.items())[:8]]
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        yield (
            f"results of run {judged.results.run_id} are used although these steps have changed since: "
            f"{', '.join(named)}{more}"
        )


def _anew(prepared: Prepared, prints: Mapping[Key, Fingerprint]) -> Session:
    """A run that builds on nothing."""
    return Session(prepared, prints=prints, told=Prints.of(prints))


def _fingerprints(prepared: Prepared, needs: Mapping[Key, Need]) -> Mapping[Key, Fingerprint]:
    found = fingerprints(needs, prepared.run_id)
    if found.mentions_run_id and prepared.compile_as is not None:
        found = fingerprints(needs_of(prepared.compile_as(RUN_ID)))
    return found.by_key


def _earlier(past: History, prepared: Prepared, lock_name: str, earlier: Earlier) -> RunRow | None:
    """The run to build on; ``--skip`` alone can do without."""
    if earlier.run_id is None:
        for row in past.runs(pipeline=prepared.pipeline.name):
            if row.lock == lock_name and row.run_id != prepared.run_id:
                return row
        if earlier.cached:
            return None
        if earlier.selection and earlier.selection.start is None and not earlier.selection.only:
            return None
        raise CannotContinue(
            f"{prepared.pipeline.name} was never run in {past.folder.path}, so there are no earlier results; "
            "run it without --from, --only and --skip first"
        )
    row = past.run(earlier.run_id)
    if earlier.same_run and row.status in ENDED_WELL:
        raise NothingToDo(_ended_well(row), row)
    return row


def _ended_well(row: RunRow) -> str:
    if row.status == "succeeded":
        return f"run {row.run_id} has succeeded: there is nothing left to do"
    count = row.failures or 0
    return (
        f"run {row.run_id} has finished with {count} tolerated failure{'s' * (count != 1)}: nothing is left to resume; "
        f"procflow retry {row.run_id} runs again what failed"
    )


def _other_versions(row: RunRow) -> bool:
    here = (_minor(platform.python_version()), __version__.partition(".")[0])
    return (_minor(row.python_version), row.procflow_version.partition(".")[0]) != here


def _check_versions(row: RunRow, earlier: Earlier) -> None:
    """Results of another Python or another major version of procflow may not be what this one would make."""
    way_out = "--force keeps them all the same"
    was, now = _minor(row.python_version), _minor(platform.python_version())
    if was != now and not earlier.force:
        raise CannotContinue(
            f"run {row.run_id} was made with Python {row.python_version}, this is Python {platform.python_version()}: its "
            f"results may not be what this one would make; use Python {was}, or {way_out}"
        )
    if row.procflow_version.partition(".")[0] != __version__.partition(".")[0] and not earlier.force:
        raise CannotContinue(
            f"run {row.run_id} was made by procflow {row.procflow_version}, this is {__version__}: its "
            f"results may not be what this one would make; {way_out}"
        )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def find_run(folder: StateFolder, run: str | None, lock: str | None = None, *, ended_well: bool = False) -> RunRow:
    """The run to resume or to retry: the one of this id (or beginning of one), else the last that did not succeed.

    ``lock`` leaves only the runs of one pipeline. Without it a run does not count that a later one of its pipeline has made
    good, and where the newest run ended well and those of several pipelines did not, none of them is guessed. Raises
    ``NothingToDo`` where it has ended well (``ended_well`` lets tolerated failures through), ``LockHeld`` where it goes on
    now, ``UnknownRun`` where there is none.
    """
    from procflow.storing.history import History, UnknownRun

    with History.open(folder) as past:
        rows = [past.run(run)] if run is not None else [r for r in past.runs() if lock is None or r.lock == lock]
    if not rows:
        raise UnknownRun(f"nothing was run yet in {folder.path}")
    if lock is not None and rows[0].lock != lock:
        raise CannotContinue(f"run {rows[0].run_id} is of {rows[0].file or rows[0].pipeline}, not of this pipeline")
    well = ("succeeded",) if ended_well else ENDED_WELL
    row = next((row for row in rows if row.status not in well), None)
    if run is None and lock is None and rows[0].status in well:
        row = _the_one_left(rows, well)
    if row is None:
        raise NothingToDo(_ended_well(rows[0]), rows[0])
    if row.live:
        raise LockHeld(f"run {row.run_id} is still going on (pid {row.pid} on {row.host})")
    return row


def _the_one_left(rows: Sequence[RunRow], well: Container[str]) -> RunRow | None:
    """The last run of a pipeline that did not end well, where no other pipeline has one; ``rows`` are newest first."""
    last: dict[str | None, RunRow] = {}
    for row in rows:
        last.setdefault(row.lock, row)
    left = [row for row in last.values() if row.status not in well]
    if len(left) > 1:
        named = ", ".join(f"{row.run_id} of {row.file or row.pipeline} ({row.status})" for row in left[:5])
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise CannotContinue(
            f"the newest run, {rows[0].run_id} of {rows[0].file or rows[0].pipeline}, has ended well, and several others "
            f"have not: {named}{more}; name the one that is meant"
        )
    return left[0] if left else None


def asked(
    options: Mapping[str, Any], params: Mapping[str, Any], shown: Mapping[str, Any], earlier: Earlier | None
) -> dict[str, Any]:
    """What was asked for, as the journal holds it for the next session.

    ``options`` are those of ``prepare``, ``params`` all parameters, ``shown`` the same as they stand in the journal: masked
    ones, and objects that JSON can't hold, are ``lost`` there.
    """
    found: dict[str, Any] = {}
    for name in LIMITS:
        value = options.get(name)
        if value is not None:
            found[name] = str(value) if isinstance(value, Share) else value
    found["given"] = list(options.get("params") or ())
    reading = getattr(options.get("source"), "reading", None)
    if reading:
        # A file of another system: its dialect and the functions bound in it.
        found["reading"] = dict(reading)
    if earlier is not None and earlier.selection:
        found["selection"] = asdict(earlier.selection)
    found["lost"] = [name for name, value in params.items() if not _holds(shown.get(name), value)]
    return found


def selection_of(row: RunRow) -> Selection | None:
    """The selection that a run was started with."""
    found = row.options.get("selection")
    return Selection(found["start"], tuple(found["only"]), tuple(found["skip"])) if found else None


def _holds(shown: Any, value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(shown)) == value)
    except (TypeError, ValueError):
        return False


def again(row: RunRow, declared: Container[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``prepare`` for another session of a run: as it had them, with those ``given`` now over them.

    Parameters that are not ``declared`` any more are left out; defaults count as they were then.
    """
    options: dict[str, Any] = {name: row.options.get(name) for name in LIMITS}
    for name in ("workers", "memory"):
        if isinstance(options[name], str) and options[name].endswith("%"):
            options[name] = units.share(options[name])
    options.update({name: value for name, value in given.items() if value is not None and name != "params"})
    fresh = dict(given.get("params") or {})
    lost = set(row.options.get("lost", ())) - set(fresh)
    missing = sorted(lost & set(row.options.get("given", ())))
    if missing:
        raise CannotContinue(
            f"run {row.run_id}: the journal does not hold the value of {', '.join(missing)}, which is needed to go on; "
            "give it again"
        )
    known = {name: value for name, value in row.params.items() if name in declared and name not in lost}
    return {**options, "params": {**known, **fresh}}
