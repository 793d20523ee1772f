"""The whole proof: ``python -m benchmarks [question ...]``, some ten minutes on a quiet machine.

--markdown      a table for the README
--json FILE     all figures          --svg FILE   a picture of them
--quick         few rounds: does it run? The figures mean nothing.

Each question is asked in a process of its own, with a deadline: one that fails or hangs is a row that says so. The exit
code is 1 where one failed; a target that is not reached is no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.picture import svg
from benchmarks.proof import QUESTIONS, Row, failed, rows

ROOT = str(Path(__file__).parents[1])
WHOLE_S = 1200.0
"""All questions together."""
ONE_S = 500.0
"""The longest that one of them may take."""


def machine() -> str:
    """Date, processors and how much of them is to be had, and which peers are not here."""
    from benchmarks.peers import missing
    from procflow.benching.cores import probe
    from procflow.machine.resources import probe as resources
    from procflow.pool import ProcessPool

    cpus = resources().cpus
    with ProcessPool(cpus) as pool:
        cores = probe(pool, cpus)
    busy = "; BUSY, the figures are unsure" if cores.busy else ""
    absent = f"; not installed, so not measured: {', '.join(missing())}" if missing() else ""
    return (
        f"{datetime.date.today()}, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{cpus} CPUs of which {cores.usable:.1f} were free (load {os.getloadavg()[0]:.1f}, noise ±{cores.noise:.0%})"
        f"{busy}{absent}"
    )


HEADS = ["what", "target", "procflow", "reached", "peers ahead", "best peer takes", "peers, same run"]


def cells(row: Row) -> list[str]:
    if row.failed:
        return [row.what, "", "", "FAILED", "", "", row.failed]
    sign = "≥" if row.at_least else "≤"
    order = sorted(row.peers.items(), key=lambda each: each[1], reverse=row.at_least)
    return [
        row.what,
        f"{sign} {row.text(row.target)}",
        row.text(row.ours, ""),
        "yes" if row.reached else "NO",
        (", ".join(row.ahead) or "none") if row.peers else "",
        "" if row.ratio is None else f"{row.ratio:.2g}x",
        ", ".join(f"{name} {row.text(value, name)}" for name, value in order),
    ]


def plain(found: list[Row]) -> list[str]:
    """Lines for a terminal."""
    table = [HEADS, *map(cells, found)]
    last = len(HEADS) - 1
    widths = [max(len(line[i]) for line in table) for i in range(last)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[last]])
        for line in table
    ]
    return [line.rstrip() for line in lines] + ["", *(f"{row.what}: {row.note}" for row in found if row.note)]


def markdown(found: list[Row]) -> list[str]:
    """Lines for the README."""
    table = [HEADS, ["---"] * len(HEADS), *map(cells, found)]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table] + [
        "",
        *(f"- {row.what}: {row.note}" for row in found if row.note),
    ]


def answered(name: str, quick: bool, within_s: float) -> list[Row]:
    """The rows of a question, asked in another process; one row that says why where it gives none in time."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "rows.json")
        command = [sys.executable, "-m", "benchmarks", "--here", "--json", str(told), *["--quick"] * quick, name]
        errors = Path(folder, "errors.txt")
        with errors.open("wb") as file:
            asked = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))},
            )
        try:
            code = asked.wait(within_s)
        except subprocess.TimeoutExpired:
            return [failed(name, f"no answer in {within_s:.0f} s")]
        finally:
            # It leads its session: peers that hang, or were left behind by it, go as well.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(asked.pid, signal.SIGKILL)
            asked.wait()
        text = errors.read_text(errors="replace")
        if code:
            sys.stderr.write(text)
            last = text.strip().splitlines()[-1:] or [f"exit code {code}"]
            return [failed(name, last[0][:200])]
        return [Row(**one) for one in json.loads(told.read_text())["rows"]]


def ask(names: list[str], quick: bool) -> list[Row]:
    """The rows of all questions, one question after the other."""
    found: list[Row] = []
    until = time.monotonic() + WHOLE_S
    for name in names:
        began = time.monotonic()
        left_s = until - began
        found += answered(name, quick, min(ONE_S, left_s)) if left_s > 0 else [failed(name, "no time was left")]
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("questions", nargs="*", metavar="question", help=", ".join(QUESTIONS))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--svg", metavar="FILE", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.questions if name not in QUESTIONS]
    if unknown:
        parser.error(f"there is no question {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    names = options.questions or list(QUESTIONS)
    if options.here:
        found = [row for name in names for row in rows(name, options.quick)]
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in found]}))
        return 0
    told = machine()
    print(told, file=sys.stderr, flush=True)
    found = ask(names, options.quick)
    for line in markdown(found) if options.markdown else plain(found):
        print(line)
    print(f"\n{told}")
    if options.json is not None:
        data = [{**asdict(row), "reached": row.reached, "ratio": row.ratio, "ahead": row.ahead} for row in found]
        options.json.write_text(json.dumps({"machine": told, "quick": options.quick, "rows": data}, indent=1) + "\n")
    if options.svg is not None:
        options.svg.write_text(svg(found, f"procflow and its peers, {told}"))
    return int(any(row.failed for row in found))


if __name__ == "__main__":
    sys.exit(main())
