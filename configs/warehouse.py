"""The steps of warehouse.yaml: a year's orders of a shop, and what is made of them. Money is in whole cents."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from procflow import step

HERE = Path(__file__).parent
PRICES = {"chair": 8_900, "desk": 24_900, "lamp": 3_950, "shelf": 5_900, "stool": 2_950}
"""Products with what a piece costs, in cents."""
REGIONS = {"east": 4, "north": 2, "south": 3, "west": 5}
"""Regions with the weight of their share of the orders."""
REASONS = ("broken", "late", "unwanted", "wrong")

Row = dict[str, Any]


# ---------------------------------------------------------------- the data


def stock(url: str, folder: str, orders: int, year: int) -> tuple[list[Row], str, str]:
    """Fill the database and the files with a year of orders; the months, and the paths of the two files.

    Only the table ``procflow_orders`` is touched, in one transaction: whoever reads it meanwhile sees the old one.
    """
    if orders < 1:
        raise ValueError(f"a year has at least one order, not {orders}: -p orders=1")
    rows, returns = made(orders, year)
    place = HERE / Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    fill_database(url, rows)
    with (place / "returns.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["number", "region", "product", "pieces", "cents", "reason"])
        writer.writeheader()
        writer.writerows(returns)
    whole = sum(row["cents"] for row in rows)
    targets = {region: whole * weight // sum(REGIONS.values()) for region, weight in REGIONS.items()}
    (place / "targets.json").write_text(json.dumps(targets))
    firsts = [date(year, month, 1).isoformat() for month in range(1, 13)] + [date(year + 1, 1, 1).isoformat()]
    months = [{"first": first, "next": after} for first, after in pairwise(firsts)]
    return months, str(place / "returns.csv"), str(place / "targets.json")


def made(orders: int, year: int) -> tuple[list[Row], list[Row]]:
    """The orders of a year and what comes back of them, the same ones each time."""
    chance = random.Random(year)
    first = date(year, 1, 1)
    days = (date(year + 1, 1, 1) - first).days
    rows, returns = [], []
    for number in range(1, orders + 1):
        product, pieces = chance.choice(list(PRICES)), chance.randint(1, 4)
        row = {
            "number": number,
            "day": (first + timedelta(days=chance.randrange(days))).isoformat(),
            "region": chance.choices(list(REGIONS), REGIONS.values())[0],
            "product": product,
            "pieces": pieces,
            "cents": pieces * PRICES[product],
        }
        rows.append(row)
        if chance.random() < 0.06:
            back = chance.randint(1, pieces)
            kept = {key: row[key] for key in ("number", "region", "product")}
            returns.append({**kept, "pieces": back, "cents": back * PRICES[product], "reason": chance.choice(REASONS)})
    return rows, returns


def fill_database(url: str, rows: list[Row]) -> None:
    """Make the table anew and write the rows."""
    try:
        from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine
        from sqlalchemy.engine import make_url
    except ImportError as missing:
        raise ImportError(f"warehouse.yaml needs SQLAlchemy ({missing}): pip install '.[examples]'") from None
    place = make_url(url)
    if place.get_backend_name() == "sqlite" and place.database and place.database != ":memory:":
        file = HERE / place.database
        file.parent.mkdir(parents=True, exist_ok=True)
        place = place.set(database=str(file))
    elif place.drivername in ("postgres", "postgresql"):
        place = place.set(drivername="postgresql+psycopg")
    words = [Column(name, String(20)) for name in ("day", "region", "product")]
    numbers = [Column(name, Integer) for name in ("pieces", "cents")]
    table = Table("procflow_orders", MetaData(), Column("number", Integer, primary_key=True), *words, *numbers)
    engine = create_engine(place)
    try:
        with engine.begin() as connection:
            table.drop(connection, checkfirst=True)
            table.create(connection)
            if rows:
                connection.execute(table.insert(), rows)
    finally:
        engine.dispose()


def checked(month: Row, rows: list[Row]) -> list[Row]:
    """The rows, if each is of this month and no number comes twice."""
    numbers = {row["number"] for row in rows}
    if len(numbers) != len(rows) or any(not month["first"] <= row["day"] < month["next"] for row in rows):
        raise ValueError(f"the rows from {month['first']} on are not those of one month")
    step.state.add("fetched", len(rows))
    return rows


def read_targets(path: str) -> dict[str, int]:
    """Cents that each region is to earn."""
    targets: dict[str, int] = json.loads(Path(path).read_text())
    step.state.add("fetched", len(targets))
    return targets


# ---------------------------------------------------------------- the analysis


def total(rows: list[Row], key: str, of: str = "cents") -> Counter[str]:
    """Sums by a key of the rows."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row[key]] += row[of]
    return sums


def by_region(orders: list[Row], returns: list[Row], targets: dict[str, int]) -> list[Row]:
    """What each region earned, less what came back, against its target."""
    sold, back = total(orders, "region"), total(returns, "region")
    return [
        {"region": region, "net": sold[region] - back[region], "target": target} for region, target in targets.items()
    ]


def by_product(orders: list[Row], returns: list[Row]) -> list[Row]:
    """Pieces sold and returned, best seller first."""
    sold, back = total(orders, "product", "pieces"), total(returns, "product", "pieces")
    return [
        {"product": name, "sold": sold[name], "back": back[name]} for name in sorted(sold, key=lambda n: (-sold[n], n))
    ]


def by_month(orders: list[Row]) -> list[tuple[str, int]]:
    """Cents by month."""
    return sorted(total([{**row, "month": row["day"][:7]} for row in orders], "month").items())


def by_reason(returns: list[Row]) -> list[tuple[str, int]]:
    """Pieces by the reason why they came back, most frequent first."""
    return sorted(total(returns, "reason", "pieces").items(), key=lambda row: (-row[1], row[0]))


# ---------------------------------------------------------------- the report


def report(
    regions: list[Row], products: list[Row], course: list[tuple[str, int]], reasons: list[Any], year: int
) -> str:
    """All findings as text; it holds no times and no paths."""
    lines = [
        f"The year {year}, from {step.state['fetched']:,} rows",
        "",
        f"{'region':<10}{'net':>14}{'target':>14}{'reached':>9}",
    ]
    for row in regions:
        reached = row["net"] / (row["target"] or 1)
        lines.append(f"{row['region']:<10}{row['net'] / 100:>14,.2f}{row['target'] / 100:>14,.2f}{reached:>9.1%}")
    lines += ["", f"{'product':<10}{'sold':>14}{'returned':>14}{'share':>9}"]
    for row in products:
        lines.append(f"{row['product']:<10}{row['sold']:>14,}{row['back']:>14,}{row['back'] / row['sold']:>9.1%}")
    lines += ["", "Sales by month"]
    most = max((cents for _, cents in course), default=1)
    lines += [f"{month}  {cents / 100:>14,.2f}  {'#' * round(30 * cents / most)}" for month, cents in course]
    told = ", ".join(f"{reason} {pieces:,}" for reason, pieces in reasons)
    return "\n".join([*lines, "", f"Returned pieces: {told or 'none'}"])
