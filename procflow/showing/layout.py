"""Layout: where the steps and blocks of a drawn pipeline lie. Boxes inside boxes, members in layers from top to bottom.

A block's members are put into layers by the longest path to them, ordered within each so that arrows cross little, and
long arrows get a lane between the boxes they pass. Members without order (of a parallel block) are set in rows. What would
be too much to look at is drawn as one: blocks deep inside, and the many members of a block as small tiles. Numbers are
pixels. This file draws nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from procflow.showing.shape import Part

__all__ = ["NARROW_W", "ROW_W", "Arrow", "Box", "lay_out"]

NODE_W, NODE_H = 184.0, 46.0
GAP_X, GAP_Y = 22.0, 34.0
PAD, HEAD = 14.0, 30.0
ROW_W, NARROW_W = 1000.0, 330.0
"""Members without order are set in rows no wider than this; on a phone."""
TILE = 9.0
TILES_ACROSS = 80
MOST_TILES = 1600
"""So many members are drawn as tiles; beyond, a tile stands for several."""
MOST_MEMBERS = 40
"""A block with more members shows them as tiles."""
MOST_BOXES = 150
MOST_DEPTH = 8


@dataclass(slots=True)
class Arrow:
    """An arrow through these points, from box to box."""

    points: list[tuple[float, float]]


@dataclass(slots=True)
class Box:
    """A part and where it lies, from its block's corner. ``tiles`` are groups of members that are drawn as one tile each.

    ``folded``: it has members that are not drawn.
    """

    part: Part
    x: float = 0.0
    y: float = 0.0
    w: float = NODE_W
    h: float = NODE_H
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    tiles: list[list[Part]] = field(default_factory=list)
    folded: bool = False

    @property
    def is_block(self) -> bool:
        """Whether it is drawn with its members inside."""
        return bool(self.boxes or self.tiles)


def lay_out(root: Part, row_w: float = ROW_W) -> Box:
    """The whole drawing, with rows no wider than ``row_w``; the root is a box without a border of its own."""
    box = _placed(root, _opened(root), row_w)
    _shift(box, PAD - HEAD if box.tiles == [] else 0.0)
    return box


def _shift(box: Box, by: float) -> None:
    """The top block has no title, so its members move up."""
    for inner in box.boxes:
        inner.y += by
    for arrow in box.arrows:
        arrow.points = [(x, y + by) for x, y in arrow.points]
    box.h += by


def _opened(root: Part) -> set[int]:
    """The blocks whose members are drawn: outer ones first, as long as there is room."""
    opened: set[int] = set()
    waiting, count = [(root, 0)], 0
    while waiting:
        following: list[tuple[Part, int]] = []
        for part, depth in waiting:
            shown = len(part.members) if part.size <= MOST_MEMBERS and part.size == len(part.members) else 1
            if not part.members or depth > MOST_DEPTH or (count + shown > MOST_BOXES and part is not root):
                continue
            count += shown
            opened.add(id(part))
            if shown == len(part.members):
                following += [(member, depth + 1) for member in part.members]
        waiting = following
    return opened


def _placed(part: Part, opened: set[int], row_w: float) -> Box:
    box = Box(part)
    if id(part) not in opened:
        box.folded = bool(part.size)
        return box
    if part.size > MOST_MEMBERS or part.size != len(part.members):
        return _tiled(box, row_w)
    box.boxes = [_placed(member, opened, row_w - 2 * PAD) for member in part.members]
    if any(member.after for member in part.members):
        _layered(box)
    else:
        _in_rows(box, row_w)
    return box


def _tiled(box: Box, row_w: float) -> Box:
    members = box.part.members
    each = -(-len(members) // MOST_TILES)
    box.tiles = [members[i : i + each] for i in range(0, len(members), each)]
    across = min(TILES_ACROSS, max(18, min(len(box.tiles), int((row_w - 2 * PAD) / TILE))))
    rows = -(-len(box.tiles) // across)
    box.w = max(NODE_W, across * TILE + 2 * PAD)
    box.h = HEAD + rows * TILE + PAD
    return box


def _in_rows(box: Box, row_w: float) -> None:
    x, y, tallest, widest = PAD, HEAD, 0.0, 0.0
    for inner in box.boxes:
        if x > PAD and x + inner.w > row_w:
            x, y, tallest = PAD, y + tallest + GAP_X, 0.0
        inner.x, inner.y = x, y
        x += inner.w + GAP_X
        tallest, widest = max(tallest, inner.h), max(widest, x - GAP_X)
    box.w, box.h = max(NODE_W, widest + PAD), y + tallest + PAD


@dataclass(slots=True)
class _Spot:
    """A place in a layer: a box, or the lane of an arrow that passes."""

    box: Box | None
    up: list[_Spot] = field(default_factory=list)
    down: list[_Spot] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    order: float = 0.0

    @property
    def w(self) -> float:
        return self.box.w if self.box is not None else 10.0

    @property
    def middle(self) -> float:
        return self.x + self.w / 2


def _layered(box: Box) -> None:
    spots = [_Spot(inner) for inner in box.boxes]
    layers, chains = _layers(box, spots)
    for layer in layers:
        for place, spot in enumerate(layer):
            spot.x = float(place)
    for sweep in range(4):
        for layer in layers[1:] if sweep % 2 == 0 else layers[-2::-1]:
            _sort(layer, up=sweep % 2 == 0)
    widths = [sum(s.w for s in layer) + GAP_X * (len(layer) - 1) for layer in layers]
    widest = max(widths)
    y = HEAD
    for layer, width in zip(layers, widths, strict=True):
        x = PAD + (widest - width) / 2
        tallest = max((s.box.h for s in layer if s.box is not None), default=0.0)
        for spot in layer:
            spot.x, spot.y = x, y
            x += spot.w + GAP_X
            if spot.box is not None:
                spot.box.x, spot.box.y = spot.x, y + (tallest - spot.box.h) / 2
        y += tallest + GAP_Y
        for spot in layer:
            spot.order = y - GAP_Y  # where the layer ends, for arrows that pass
    box.w, box.h = max(NODE_W, widest + 2 * PAD), y - GAP_Y + PAD
    box.arrows = [Arrow(_points(chain)) for chain in chains]


def _layers(box: Box, spots: list[_Spot]) -> tuple[list[list[_Spot]], list[list[_Spot]]]:
    """Boxes by layer with lanes for long arrows between them, and the arrows as chains of spots."""
    members = box.part.members
    depth = [0] * len(members)
    # Members are declared in an order in which each comes after what it needs, or nearly so.
    for _ in range(len(members)):
        changed = False
        for i, member in enumerate(members):
            needed = max((depth[j] + 1 for j in member.after if 0 <= j < len(members)), default=0)
            if needed > depth[i]:
                depth[i], changed = needed, True
        if not changed:
            break
    layers: list[list[_Spot]] = [[] for _ in range(max(depth) + 1)]
    for spot, at in zip(spots, depth, strict=True):
        layers[at].append(spot)
    chains: list[list[_Spot]] = []
    for i, member in enumerate(members):
        for j in _direct(members, i, member.after):
            chain = [spots[j]]
            for at in range(depth[j] + 1, depth[i]):
                lane = _Spot(None)
                layers[at].append(lane)
                chain.append(lane)
            chain.append(spots[i])
            for one, other in itertools.pairwise(chain):
                one.down.append(other)
                other.up.append(one)
            chains.append(chain)
    return layers, chains


def _direct(members: Sequence[Part], index: int, after: Sequence[int]) -> list[int]:
    """What a member waits for, without what another of them waits for already."""
    known = [j for j in after if 0 <= j < len(members) and j != index]
    implied = {k for j in known for k in members[j].after}
    return [j for j in known if j not in implied]


def _sort(layer: list[_Spot], up: bool) -> None:
    for place, spot in enumerate(layer):
        others = spot.up if up else spot.down
        spot.order = float(place)
        if others:
            spot.order = sum(other.x for other in others) / len(others)
    layer.sort(key=lambda s: s.order)
    for place, spot in enumerate(layer):
        spot.x = float(place)


def _points(chain: list[_Spot]) -> list[tuple[float, float]]:
    first, last = chain[0], chain[-1]
    assert first.box is not None
    assert last.box is not None
    points = [(first.middle, first.box.y + first.box.h)]
    for lane in chain[1:-1]:
        points += [(lane.middle, lane.y), (lane.middle, lane.order)]
    return [*points, (last.middle, last.box.y)]
