"""Price lists of suppliers, read and compared; used by ``suppliers.json``. Nothing here knows of procflow."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

FOLDER = Path(__file__).parent


def read_order(file: str) -> dict[str, Any]:
    """The customer and the lines of an order."""
    with (FOLDER / file).open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return {
        "customer": rows[0]["customer"],
        "lines": [{"article": row["article"], "pieces": int(row["pieces"])} for row in rows],
    }


def read_text(file: str) -> dict[str, str]:
    """A file as it is."""
    return {"text": (FOLDER / file).read_text()}


def csv_prices(file: str) -> dict[str, float]:
    """Prices by article."""
    with (FOLDER / file).open(newline="") as opened:
        return {row["article"]: float(row["price"]) for row in csv.DictReader(opened)}


def json_prices(text: str) -> dict[str, float]:
    """Prices by article; raises ``ValueError`` for a text that was cut off."""
    return {article: float(price) for article, price in json.loads(text)["prices"].items()}


def xml_prices(file: str) -> dict[str, float]:
    """Prices by article."""
    root = ElementTree.parse(FOLDER / file).getroot()
    return {str(item.get("article")): float(item.get("price", "nan")) for item in root.iter("item")}


def best_price(line: dict[str, Any], number: int, quotes: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The cheapest supplier of one line of an order, among those whose lists could be read."""
    offers = {supplier: prices[line["article"]] for supplier, prices in quotes.items() if line["article"] in prices}
    if not offers:
        raise LookupError(f"nobody sells {line['article']}")
    supplier = min(offers, key=lambda name: (offers[name], name))
    amount = round(offers[supplier] * line["pieces"], 2)
    return {"number": number + 1, "article": line["article"], "supplier": supplier, "amount": amount}


def total(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The amount of all lines."""
    return {"amount": round(sum(line["amount"] for line in lines), 2)}


def letter(text: str, lines: list[dict[str, Any]]) -> str:
    """A letter with a line for each article."""
    listed = [f"{line['number']}. {line['article']} from {line['supplier']}: {line['amount']:.2f}" for line in lines]
    return "\n".join([text, *listed])
