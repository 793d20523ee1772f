"""``procflow clean``: old runs leave the journal and the disk.

This file owns the options and what is printed; which runs may go stands in ``storing/cleaning.py``.
"""

from __future__ import annotations

import click

from procflow import units
from procflow.cli.output import err, out
from procflow.cli.reading import local_time, opened, state_option, table
from procflow.plaintext import clean as cleaned
from procflow.plaintext import counted
from procflow.units import size_text

__all__ = ["clean"]

MOST = 1_000_000


def _keep(text: str) -> tuple[float | None, int | None]:
    """``30d`` as seconds, ``20`` as a number of runs."""
    if text.isascii() and text.isdecimal():
        if not 1 <= int(text[:9]) <= MOST:
            raise click.BadParameter(f"{text!r}: keep at least 1 run of each pipeline")
        return None, int(text)
    try:
        return units.duration(text), None
    except ValueError as error:
        raise click.BadParameter(f"{error}; write a time such as 30d, or a number of runs such as 20") from None


@click.command()
@click.option(
    "--keep", metavar="T|N", type=_keep, default="30d", show_default=True,
    help="Runs that ended in the last T stay, or the newest N of each pipeline.",
)  # fmt: skip
@click.option("--pipeline", metavar="NAME", help="Only runs of this pipeline.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@state_option
def clean(keep: tuple[float | None, int | None], pipeline: str | None, dry_run: bool, state_dir: str | None) -> int:
    """Remove old runs: their rows in the journal, their logs and values.

    A run that goes on stays, and so do the newest run of each pipeline, and runs whose values a run that stays has taken over.
    """
    from procflow.storing import cleaning
    from procflow.storing.store import Store

    with opened(state_dir) as past:
        folder = past.folder
        everything = past.runs()
        runs = [run for run in everything if pipeline is None or run.pipeline == pipeline]
        marked = past.marked_run()
    older_s, newest = keep
    earlier = {run.run_id: run.earlier for run in everything}

    def owners(run_id: str) -> set[str]:
        # A run that built on no other has its values in its own folder.
        return cleaning.owners_of(folder, run_id) if earlier[run_id] is not None else set()

    going, kept = cleaning.to_go(runs, marked, older_s=older_s, newest=newest, owners=owners)
    paths = {run.run_id: folder.run(run.run_id) for run in going}
    sizes = {run_id: cleaning.size_of(path) for run_id, path in paths.items()}
    waste = list(cleaning.rubbish(folder, [run.run_id for run in everything]))
    rows = [
        (run.run_id, run.pipeline, run.status, local_time(run.started), size_text(sizes[run.run_id])) for run in going
    ]
    if rows:
        for line in table(("RUN", "PIPELINE", "STATUS", "STARTED", "FILES"), rows, right=(4,)):
            out(line)
    for one in kept:
        out(f"{cleaned(one.run.run_id)} stays: {one.why}")
    for piece in waste:
        out(f"{cleaned(piece.path)}: the files of no run, {size_text(piece.size_bytes)}")
    freed = size_text(sum(sizes.values()) + sum(piece.size_bytes for piece in waste))
    if dry_run or not (going or waste):
        out(f"{counted(len(going), 'run')} would go, {freed}" if dry_run else "nothing to remove")
        return 0
    if going:
        with Store.open(folder) as store:
            store.forget(run.run_id for run in going)
    problems = cleaning.remove_folders([*paths.values(), *(piece.path for piece in waste)])
    for problem in problems:
        err(f"could not be removed: {cleaned(problem)}")
    out(f"{counted(len(going), 'run')} removed, {freed} freed")
    return int(bool(problems))
