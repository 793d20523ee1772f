"""``procflow replay``: one attempt of an earlier run once more, in this process, with a debugger if asked for.

This file owns what is printed and the debugger; the attempt itself comes from ``resuming/replaying.py``. It writes nothing to
the state folder.
"""

from __future__ import annotations

import os
import pdb
import re
from contextlib import nullcontext
from types import FrameType, TracebackType
from typing import Any

import click

from procflow import secrets
from procflow.attempt import Failed, Skipped, Succeeded
from procflow.cli.options import params_of
from procflow.cli.output import clean_text, err, out, refused
from procflow.cli.resume import file_of
from procflow.errors import PipelineError
from procflow.plaintext import clean, shortened
from procflow.units import duration_text

__all__ = ["replay"]

_WITH_ITEM = re.compile(r"(?P<step>.+)\[(?P<item>[0-9]+(?:/[0-9]+)*)\]")
MAX_REPR = 2000


@click.command()
@click.argument("run")
@click.argument("step")
@click.option("--item", metavar="I", help="Item of the map, such as 17 or 3/17; the same as STEP[17].")
@click.option("--pdb", "debug", is_flag=True, help="At an exception, stop in the debugger at your own line.")
@click.option("-p", "--param", metavar="KEY=VALUE", multiple=True, help="A parameter that is to be another.")
@click.option("--state-dir", metavar="DIR", type=click.Path(), help="State folder; default .procflow here.")
def replay(run: str, step: str, item: str | None, debug: bool, param: tuple[str, ...], state_dir: str | None) -> int:
    """Run one attempt again in this process, from the values it was given in RUN.

    RUN is an id, its beginning, or last. STEP is a label such as fetch/sales, for an item of a map features[17]. Nothing is
    recorded, no timeout and no memory limit holds, and what the step does outside it does again.
    """
    found = _WITH_ITEM.fullmatch(step)
    if found and item is None:
        step, item = found["step"], found["item"]
    try:
        return _replay(None if run == "last" else run, step, item or "", debug, params_of(param, None), state_dir)
    except PipelineError as error:
        return refused(error, "")


def _replay(run: str | None, step: str, item: str, debug: bool, params: dict[str, Any], state_dir: str | None) -> int:
    from procflow.dialects import Reading
    from procflow.launch import prepare
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.resuming.continuing import Earlier, again, open_session
    from procflow.resuming.replaying import debugging, find_scene, play
    from procflow.resuming.selection import Selection, find_step
    from procflow.storing.history import History
    from procflow.storing.state_folder import StateFolder, locate, lock_name

    folder = StateFolder.open(locate(state_dir), create=False)
    with History.open(folder) as past:
        row = past.run(run)
    file = file_of(row)
    loaded = load_pipeline(file, Pipeline, Reading.of(row.options.get("reading")))
    options = again(row, loaded.pipeline.params, {"params": params})
    # A machine with fewer cores or less memory than the run's can replay all the same.
    prepared = prepare(loaded.pipeline, source=loaded.source, params=options["params"], executor=options["executor"])
    label = find_step(prepared.graph, step)
    earlier = Earlier(row.run_id, selection=Selection(only=(label,)), force=True)
    names = prepared.graph.secrets
    lock = lock_name(row.file, row.pipeline)
    with (
        secrets.known({name: os.environ[name] for name in names}),
        open_session(prepared, folder, lock, earlier) as session,
    ):
        scene = find_scene(session, label, item)
        title = f"{label}[{item}]" if item else label
        err(f"replaying {clean(title)} of run {clean(row.run_id)}")
        with debugging(_stop) if debug else nullcontext():
            outcome = play(scene)
        return _tell(title, outcome)


def _tell(title: str, outcome: Succeeded | Skipped | Failed) -> int:
    from procflow.values import objects

    wall = duration_text(outcome.usage.wall_s)
    failure = outcome.failure if isinstance(outcome, Failed) else None
    if isinstance(outcome, Succeeded) and outcome.failures:
        failure = outcome.failures[0][1]
    if failure is not None:
        if failure.traceback:
            err(clean_text(failure.traceback.rstrip("\n")))
        err(f"FAILED after {wall}: {clean(title)}: {shortened(failure)}")
        return 1
    if isinstance(outcome, Skipped):
        err(f"skipped: the condition of {clean(title)} is false")
        return 0
    err(f"succeeded in {wall}: {clean(title)}")
    assert isinstance(outcome, Succeeded)
    if outcome.chunk is not None:
        out(_short(objects.unpack(outcome.chunk)[0]))
    for name, ref in outcome.outputs.items():
        out(f"{clean(name)} = {_short(objects.unpack(ref))}")
    return 0


def _short(value: object) -> str:
    try:
        return shortened(repr(value), MAX_REPR)
    except Exception as error:
        return f"<a value of type {type(value).__name__} whose repr raised {type(error).__name__}>"


class _AtUsersLine(pdb.Pdb):
    """The debugger, which begins at the user's own line rather than inside the library that it called."""

    frame: FrameType | None = None

    def setup(self, f: FrameType | None, tb: TracebackType | None) -> None:
        super().setup(f, tb)
        for index, (frame, _) in enumerate(self.stack):
            if frame is self.frame:
                self.curindex = index
                self.curframe = frame
                # Newer debuggers read the locals from the frame itself.
                if hasattr(self, "curframe_locals"):
                    self.curframe_locals = frame.f_locals


def _stop(exc: BaseException, frame: FrameType | None) -> None:
    err(f"{type(exc).__name__}: {shortened(exc)}")
    debugger = _AtUsersLine()
    debugger.frame = frame
    debugger.reset()
    debugger.interaction(None, exc.__traceback__)
