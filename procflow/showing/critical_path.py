"""The critical path: the longest chain of dependent work in a run that is over.

Pure: a compiled graph and measured durations in, seconds out. What a run may *become* is estimated in ``ranks.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from procflow.graph import MapUnit, TaskGraph, Unit, blocks

__all__ = ["critical_path_s"]


def critical_path_s(graph: TaskGraph, durations: Mapping[str, float]) -> float:
    """The longest chain of dependent work in seconds, given durations by label.

    A leaf's duration is that of its final attempts, a map's its own wall time, another block's that of the tasks that decide its
    ``when`` or merge its results. A sequence adds its members up, a parallel block or a graph takes its longest chain by
    ``after``. Labels that are missing did not run and count 0. More workers don't make a run shorter than this.
    """
    lengths: dict[str, float] = {}
    # Backwards every member is known before its block.
    for block in reversed([block for block in blocks(graph.root) if not isinstance(block, MapUnit)]):
        members = [durations.get(m.label, 0.0) for m in block.members]
        if lengths:
            members = [lengths.get(m.label, own) for m, own in zip(block.members, members, strict=True)]
        inside = sum(members) if block.kind in ("sequence", "pipeline") else _longest_chain(block.members, members)
        lengths[block.label] = durations.get(block.label, 0.0) + inside  # its gate and its merger bear its label
    return lengths[graph.root.label]


def _longest_chain(members: tuple[Unit, ...], lengths: list[float]) -> float:
    """The heaviest path through the members, in one pass over them in topological order."""
    if not any(m.after for m in members):
        return max(lengths, default=0.0)
    place = {m.index: i for i, m in enumerate(members)}
    before = [[place[i] for i in m.after if i in place] for m in members]
    after: list[list[int]] = [[] for _ in members]
    for i, needs in enumerate(before):
        for j in needs:
            after[j].append(i)
    waiting = [len(needs) for needs in before]
    ready = [i for i, count in enumerate(waiting) if count == 0]
    begins = [0.0] * len(members)
    longest = 0.0
    while ready:
        i = ready.pop()
        ends = begins[i] + lengths[i]
        longest = max(longest, ends)
        for j in after[i]:
            begins[j] = max(begins[j], ends)
            waiting[j] -= 1
            if waiting[j] == 0:
                ready.append(j)
    return longest
