"""Makes the pictures of the README: a terminal in the middle of a run, and the report of that run.

    python docs/pictures.py

Runs ``configs/quickstart.yaml`` on few files. The terminal is drawn by rich from what the live table really showed; the report is
photographed by a headless Chromium, and left as it is where there is none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import procflow
from procflow.loader import load_pipeline
from procflow.launch import launch
from procflow.model import Pipeline
from procflow.showing.live_gauges import LiveGauges
from procflow.showing.live_rows import LiveRows
from procflow.showing.live_table import done_line, picture

HERE = Path(__file__).parent / "pictures"
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
FILES = 300
WIDTH, HEIGHT = 96, 18
SHARE = 0.55
"""How far the run has got in the picture."""

# Without the fonts that rich would load from the web.
SVG = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px; line-height: {line_height}px }}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
<rect width="100%" height="100%" rx="8" fill="#1d2021"/>
<g transform="translate({terminal_x}, 14)" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


class Camera:
    """An observer that keeps what a terminal would show at each event."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, list[Text], Any]] = []
        self._lines: list[Text] = []

    def begin(self, run: Any) -> None:
        """The run begins."""
        self._rows = LiveRows(run.prepared.graph)
        self._gauges = LiveGauges(run)
        self._epoch = time.monotonic()

    def handle(self, event: Any) -> None:
        """Take an event; keep a picture a few times a second."""
        self._lines += [done_line(done) for done in self._rows.take(event)]
        now = time.monotonic() - self._epoch
        if not self.frames or now - self.frames[-1][0] > 0.25:
            table = picture(self._rows, now, self._gauges.read(now, ""), WIDTH, HEIGHT)
            self.frames.append((now, self._lines[:], table))


def main() -> int:
    """Make both."""
    HERE.mkdir(exist_ok=True)
    loaded = load_pipeline(str(QUICKSTART), Pipeline)
    camera = Camera()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        result = launch(
            loaded.pipeline, source=loaded.source, observers=[camera], state_dir=state, params={"limit": FILES}
        )
        print(f"{result.status}, {len(camera.frames)} frames")
        page = Path(folder) / "report.html"
        subprocess.run(
            [sys.executable, "-m", "procflow", "report", "last", "--state-dir", str(state), "-o", str(page)], check=True
        )
        photograph(page)
    wanted = SHARE * camera.frames[-1][0]
    _, lines, table = next(frame for frame in camera.frames if frame[0] >= wanted)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("$ python -m procflow run configs/quickstart.yaml", style="bold"))
    for line in lines[-4:]:
        console.print(line)
    console.print(table)
    (HERE / "live.svg").write_text(console.export_svg(title="procflow", code_format=SVG), "utf-8")
    print(f"wrote {HERE / 'live.svg'} with procflow {procflow.__version__}")
    return 0


def photograph(page: Path) -> None:
    """The report as PNG."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium here: the picture of the report stays as it is")
        return
    target = HERE / "report.png"
    subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,900", f"--screenshot={target}",
         page.as_uri()],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"wrote {target}, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
