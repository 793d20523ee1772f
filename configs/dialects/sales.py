"""A shop's orders and what is made of them; used by ``sales.md``. Nothing here knows of procflow."""

from __future__ import annotations

import csv
import os
import random
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
REGIONS = {"east": 180_000, "north": 190_000, "south": 180_000, "west": 170_000}
PRODUCTS = {"lamp": 39, "chair": 89, "desk": 249, "shelf": 59}
ORDERS = 4_000


def stock_warehouse() -> int:
    """Fill the warehouse that WAREHOUSE_URL names with the same four thousand orders each time; how many."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url

    url = make_url(os.environ["WAREHOUSE_URL"])
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in ("sales", "targets"):
            connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
        connection.execute(text("CREATE TABLE sales (day TEXT, region TEXT, product TEXT, amount INTEGER)"))
        connection.execute(text("CREATE TABLE targets (region TEXT, target INTEGER)"))
        connection.execute(text("INSERT INTO sales VALUES (:day, :region, :product, :amount)"), orders())
        targets = [{"region": region, "target": target} for region, target in REGIONS.items()]
        connection.execute(text("INSERT INTO targets VALUES (:region, :target)"), targets)
    engine.dispose()
    return ORDERS


def orders() -> list[dict[str, Any]]:
    """The orders of a year."""
    chance = random.Random(7)
    first = date(2026, 1, 1)
    made = []
    for _ in range(ORDERS):
        product = chance.choice(list(PRODUCTS))
        day = first + timedelta(days=chance.randrange(365))
        amount = PRODUCTS[product] * chance.randint(1, 3)
        made.append(
            {"day": day.isoformat(), "region": chance.choice(list(REGIONS)), "product": product, "amount": amount}
        )
    return made


def read_returns(day: str) -> tuple[list[dict[str, Any]], int]:
    """What came back since the day, and how many of these pieces were damaged."""
    with (FOLDER / "data" / "returns.csv").open(newline="") as file:
        rows = [{**row, "amount": int(row["amount"])} for row in csv.DictReader(file) if row["day"] >= str(day)]
    return rows, sum(1 for row in rows if row["reason"] == "damaged")


def net_of_returns(sales: list[dict[str, Any]], returns: list[dict[str, Any]]) -> dict[str, int]:
    """Amount by region, less what came back."""
    net = defaultdict(int, as_sold(sales))
    for row in returns:
        net[row["region"]] -= row["amount"]
    return dict(net)


def as_sold(sales: list[dict[str, Any]]) -> dict[str, int]:
    """Amount by region."""
    sold: dict[str, int] = defaultdict(int)
    for row in sales:
        sold[row["region"]] += int(row["amount"])
    return dict(sold)


def note_damages(damaged: int) -> str:
    """A line on goods that came back broken."""
    return f"{damaged} returned pieces were damaged"


def review(net: dict[str, int], targets: list[dict[str, Any]], remark: str | None) -> str:
    """A table of the regions against their targets."""
    lines = ["region        net    target  reached"]
    for row in targets:
        have = net.get(row["region"], 0)
        lines.append(f"{row['region']:<8}{have:>9,}{row['target']:>10,}{have / row['target']:>8.0%}")
    return "\n".join([*lines, *([remark] if remark else [])])
