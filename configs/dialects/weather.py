"""Readings of weather stations and what they come to; used by ``weather.json``. Nothing here knows of procflow."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def read_stations(file: str) -> list[dict[str, Any]]:
    """A row a reading."""
    with (FOLDER / file).open(newline="") as opened:
        return [
            {"station": row["station"], "hour": int(row["hour"]), "celsius": float(row["celsius"])}
            for row in csv.DictReader(opened)
        ]


def read_forecast(file: str) -> dict[str, str]:
    """The forecast; raises ``ValueError`` for a file that was cut off."""
    found: dict[str, str] = json.loads((FOLDER / file).read_text())
    return found


def report(parts: list[Any]) -> dict[str, Any]:
    """The means of the stations, the warmest readings, and the forecast, as one page."""
    means, top, forecast = parts
    lines = [f"{station:<10}{mean:6.1f}" for station, mean in sorted(means.items())]
    warmest = top[0]
    return {
        "warmest": warmest["celsius"],
        "where": f"{warmest['station']} at {warmest['hour']}:00",
        "page": "\n".join([*lines, forecast["text"]]),
    }
