"""The steps of choose.yaml: ways to find a short round trip through cities in a square, and a bound for the shortest.

A city is a point, a trip a list of their numbers. Nothing here depends on the clock, so every run finds the same.
"""

from __future__ import annotations

import math
import random
from typing import Any

from procflow import step

SIDE = 1000.0
"""Length of a side of the square, in kilometres."""

City = tuple[float, float]


def place_cities(count: int, seed: int) -> list[City]:
    """Cities anywhere in the square, the same ones for the same seed."""
    if count < 5:
        raise ValueError(f"a round trip worth looking for has at least 5 cities, not {count}: -p cities=5")
    chance = random.Random(seed)
    return [(round(chance.uniform(0, SIDE), 3), round(chance.uniform(0, SIDE), 3)) for _ in range(count)]


def distances(cities: list[City]) -> list[list[float]]:
    """All distances, as a table."""
    return [[math.hypot(x - u, y - v) for u, v in cities] for x, y in cities]


def length(trip: list[int], between: list[list[float]]) -> float:
    """The length of a round trip."""
    return sum(between[trip[i - 1]][trip[i]] for i in range(len(trip)))


def found(variant: str, trip: list[int], between: list[list[float]]) -> dict[str, Any]:
    """What a variant returns; its name and length also go to the state that all variants share."""
    kilometres = round(length(trip, between), 3)
    step.state.append("tried", {"variant": variant, "length": kilometres})
    step.metric("length", kilometres)
    return {"variant": variant, "length": kilometres, "trip": trip}


def shortness(value: dict[str, Any]) -> float:
    """The score of a trip: the shorter, the better."""
    return -float(value["length"])


# ---------------------------------------------------------------- the variants


def nearest_neighbour(cities: list[City]) -> dict[str, Any]:
    """Always go on to the nearest city that was not visited."""
    between = distances(cities)
    return found("nearest neighbour", nearest_trip(between), between)


def nearest_trip(between: list[list[float]]) -> list[int]:
    trip, left = [0], set(range(1, len(between)))
    while left:
        row = between[trip[-1]]
        trip.append(min(left, key=lambda city: (row[city], city)))
        left.remove(trip[-1])
    return trip


def farthest_insertion(cities: list[City]) -> dict[str, Any]:
    """Take the city that is farthest from the trip so far, and visit it where the detour is least."""
    between = distances(cities)
    trip = [0]
    gap = {city: between[0][city] for city in range(1, len(cities))}
    while gap:
        city = max(gap, key=lambda city: (gap[city], -city))
        del gap[city]
        row = between[city]
        detours = [row[trip[i - 1]] + row[trip[i]] - between[trip[i - 1]][trip[i]] for i in range(len(trip))]
        trip.insert(detours.index(min(detours)), city)
        for other in gap:
            gap[other] = min(gap[other], row[other])
    return found("farthest insertion", trip, between)


def hilbert_curve(cities: list[City]) -> dict[str, Any]:
    """Visit the cities as a curve comes by that fills the square."""
    trip = sorted(range(len(cities)), key=lambda city: (along_curve(*cities[city]), city))
    return found("Hilbert curve", trip, distances(cities))


def along_curve(x: float, y: float, levels: int = 12) -> int:
    """How far along Hilbert's curve a point lies."""
    cells = 1 << levels
    column, row = (min(cells - 1, int(value / SIDE * cells)) for value in (x, y))
    far, half = 0, cells >> 1
    while half:
        right, upper = int(bool(column & half)), int(bool(row & half))
        far += half * half * ((3 * right) ^ upper)
        if not upper:
            if right:
                column, row = cells - 1 - column, cells - 1 - row
            column, row = row, column
        half >>= 1
    return far


def exchanged(cities: list[City]) -> dict[str, Any]:
    """Nearest neighbours, then turn round every stretch whose turning makes the trip shorter, until none does (2-opt)."""
    between = distances(cities)
    trip = nearest_trip(between)
    better = True
    while better:
        better = False
        for i in range(len(trip) - 1):
            for j in range(i + 2, len(trip) - (i == 0)):
                a, b, c, d = trip[i], trip[i + 1], trip[j], trip[(j + 1) % len(trip)]
                if between[a][c] + between[b][d] < between[a][b] + between[c][d] - 1e-9:
                    trip[i + 1 : j + 1] = trip[i + 1 : j + 1][::-1]
                    better = True
    return found("2-opt", trip, between)


def annealed(cities: list[City], rounds: int, seed: int) -> dict[str, Any]:
    """The same turns by chance, some for the worse while it is hot (simulated annealing); the best trip on the way."""
    chance = random.Random(seed)
    between = distances(cities)
    trip = nearest_trip(between)
    now = best_length = length(trip, between)
    best, count = trip[:], len(trip)
    hot, cold = SIDE / 10, SIDE / 2000
    for number in range(rounds):
        if number % 10_000 == 0:
            step.progress(number, rounds)
        heat = hot * (cold / hot) ** (number / rounds)
        i, j = sorted(chance.sample(range(count), 2))
        a, b, c, d = trip[i - 1], trip[i], trip[j], trip[(j + 1) % count]
        if a == c or b == d:
            continue
        change = between[a][c] + between[b][d] - between[a][b] - between[c][d]
        if change < 0 or chance.random() < math.exp(-change / heat):
            trip[i : j + 1] = trip[i : j + 1][::-1]
            now += change
            if now < best_length - 1e-9:
                best, best_length = trip[:], now
    return found("annealing", best, between)


# ---------------------------------------------------------------- the bound


def lower_bound(cities: list[City], rounds: int = 150) -> float:
    """A length that no round trip falls short of (Held and Karp, 1970).

    A round trip is a tree over all cities but one, and two roads to that one: so the least such tree is a bound. A toll at each
    city changes every trip by the same sum, but the tree; tolls that rise where the tree has many roads make it trip-like.
    """
    between = distances(cities)
    tolls = [0.0] * len(cities)
    best, stride = 0.0, SIDE / math.sqrt(len(cities)) / 2
    for number in range(rounds):
        cost, degrees = least_tree(between, tolls)
        best = max(best, cost - 2 * sum(tolls))
        off = [degree - 2 for degree in degrees]
        if not any(off):
            break
        tolls = [toll + stride * miss for toll, miss in zip(tolls, off, strict=True)]
        stride *= 0.97
        step.progress(number + 1, rounds)
    return round(best, 3)


def least_tree(between: list[list[float]], tolls: list[float]) -> tuple[float, list[int]]:
    """The cheapest tree over cities 1, 2, ... with the two cheapest roads to city 0: its cost, and roads at each city."""
    count = len(between)
    degrees = [0] * count
    cost = 0.0
    away = [math.inf] * count
    via = [0] * count
    left = set(range(1, count))
    city = 1
    left.remove(city)
    while left:
        row, toll = between[city], tolls[city]
        for other in left:
            price = row[other] + toll + tolls[other]
            if price < away[other]:
                away[other], via[other] = price, city
        city = min(left, key=lambda other: (away[other], other))
        left.remove(city)
        cost += away[city]
        degrees[city] += 1
        degrees[via[city]] += 1
    roads = sorted((between[0][other] + tolls[0] + tolls[other], other) for other in range(1, count))[:2]
    for price, other in roads:
        cost += price
        degrees[other] += 1
        degrees[0] += 1
    return cost, degrees


# ---------------------------------------------------------------- the report


def report(cities: list[City], best: dict[str, Any], bound: float) -> str:
    """All variants with their distance from the bound, and the trip that was chosen."""
    if sorted(best["trip"]) != list(range(len(cities))):
        raise ValueError(f"the trip of {best['variant']} does not visit every city once")
    lines = [
        f"{len(cities)} cities; no round trip is shorter than {bound:,.0f} km",
        "",
        "variant                   km  above",
    ]
    for row in sorted(
        step.state["tried"], key=lambda row: (row["length"], row["variant"] != best["variant"], row["variant"])
    ):
        mark = "  <- chosen" if row["variant"] == best["variant"] else ""
        lines.append(f"{row['variant']:<18}{row['length']:>10,.0f}{row['length'] / bound - 1:>7.1%}{mark}")
    stops = " ".join(str(city) for city in best["trip"][:12])
    return "\n".join([*lines, "", f"The trip begins {stops} ..."])
