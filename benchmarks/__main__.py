"""The whole proof: ``python -m benchmarks [question ...]``, some ten minutes on a quiet machine.

--markdown      a table for the README
--json FILE     all figures          --svg FILE   a picture of them
--quick         few rounds: does it run? The figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.picture import svg
from benchmarks.proof import QUESTIONS, Row, rows


def machine() -> str:
    """Date, processors and how much of them is to be had."""
    from procflow.benching.cores import probe
    from procflow.machine.resources import probe as resources
    from procflow.pool import ProcessPool

    cpus = resources().cpus
    with ProcessPool(cpus) as pool:
        cores = probe(pool, cpus)
    busy = "; BUSY, the figures are unsure" if cores.busy else ""
    return (
        f"{datetime.date.today()}, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{cpus} CPUs of which {cores.usable:.1f} were free (load {os.getloadavg()[0]:.1f}, noise ±{cores.noise:.0%}){busy}"
    )


def cells(row: Row) -> list[str]:
    sign = "≥" if row.at_least else "≤"
    peers = ", ".join(
        f"{name} {row.text(value)}" for name, value in sorted(row.peers.items(), key=lambda each: each[1])
    )
    ratio = "" if row.ratio is None else f"{row.ratio:.1f}x" + (f" ({row.best_peer} ahead)" if row.ratio < 1 else "")
    return [
        row.what,
        f"{sign} {row.text(row.target)}",
        row.text(row.ours),
        "yes" if row.reached else "NO",
        ratio,
        peers,
    ]


HEADS = ["what", "target", "procflow", "reached", "best peer takes", "peers, same run"]


def plain(found: list[Row]) -> list[str]:
    """Lines for a terminal."""
    table = [HEADS, *map(cells, found)]
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]) for line in table
    ]
    return [line.rstrip() for line in lines] + ["", *(f"{row.what}: {row.note}" for row in found if row.note)]


def markdown(found: list[Row]) -> list[str]:
    """Lines for the README."""
    table = [HEADS, ["---"] * len(HEADS), *map(cells, found)]
    return [f"| {' | '.join(line)} |" for line in table] + [
        "",
        *(f"- {row.what}: {row.note}" for row in found if row.note),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("questions", nargs="*", metavar="question", help=", ".join(QUESTIONS))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--svg", metavar="FILE", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    unknown = [name for name in options.questions if name not in QUESTIONS]
    if unknown:
        parser.error(f"there is no question {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    told = machine()
    print(told, file=sys.stderr)
    found: list[Row] = []
    for name in options.questions or QUESTIONS:
        began = time.perf_counter()
        found += rows([name], options.quick)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    for line in markdown(found) if options.markdown else plain(found):
        print(line)
    print(f"\n{told}")
    if options.json is not None:
        data = [{**asdict(row), "reached": row.reached, "ratio": row.ratio} for row in found]
        options.json.write_text(json.dumps({"machine": told, "quick": options.quick, "rows": data}, indent=1) + "\n")
    if options.svg is not None:
        options.svg.write_text(svg(found, f"procflow and its peers, {told}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
