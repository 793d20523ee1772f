"""``procflow recover``: saves what can be read of a damaged journal. This file prints; ``storing.recovery`` does it."""

from __future__ import annotations

import click

from procflow.cli.output import err, out
from procflow.plaintext import clean, counted

__all__ = ["recover"]


@click.command()
@click.option("--plan", is_flag=True, help="Say what would be saved and change nothing.")
@click.option(
    "--state-dir",
    metavar="DIR",
    type=click.Path(),
    help="State folder; default PROCFLOW_STATE_DIR, else .procflow here.",
)
def recover(plan: bool, state_dir: str | None) -> int:
    """Save what can be read of a damaged journal, so that resume can go on from there.

    Everything whose checksum holds is written to a new journal. The damaged one is kept beside it under a dated name.
    Results that can't be read are made again by the next resume or retry.
    """
    from procflow.storing.recovery import recover as save
    from procflow.storing.state_folder import StateFolder, locate

    folder = StateFolder.open(locate(state_dir), create=False)
    found = save(folder, look_only=plan)
    if not found.damage:
        out(f"{folder.db}: the journal is whole: {counted(len(found.runs), 'run')}, nothing to do")
        return 0
    out(f"{folder.db}: the journal is damaged")
    for line in found.damage:
        out(f"  {clean(line)}")
    verb = "would be saved" if plan else "saved"
    for run in found.runs:
        kept = counted(run.attempts, "result")
        lost = f", {counted(run.lost, 'result')} lost" if run.lost else ""
        out(f"{verb}: run {clean(run.run_id)} of {clean(run.pipeline)} ({run.status}): {kept}{lost}")
    if not found.runs:
        out("no run could be saved")
    if found.homeless:
        out(f"not saved: {counted(found.homeless, 'row')} of runs that are lost as a whole")
    if found.aside is not None:
        out(f"the damaged journal is kept as {found.aside}")
        open_runs = [run for run in found.runs if run.status == "running"]
        if open_runs:
            err(f"to go on: procflow resume {clean(open_runs[-1].run_id)} --state-dir {folder.path}")
    return 0
