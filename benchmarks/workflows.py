"""Graphs shaped like recorded scientific workflows, with run times that were measured of their tasks.

Shapes and mean seconds follow the published characterisations of Montage, CyberShake, Epigenomics, LIGO Inspiral and SIPHT
(Juve et al., Future Generation Computer Systems 29, 2013) and of 1000Genome (WfCommons); the scatter is lognormal from a
fixed seed. Times are in seconds of those machines: only their proportions matter here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

SCATTER = 0.35


@dataclass
class Workflow:
    """Tasks by name, each with its seconds and what it waits for; declared in the order of ``seconds``."""

    name: str
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)
    after: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def task(self, kind: str, mean_s: float, *after: str) -> str:
        """One more task; its name."""
        name = f"{kind}_{len(self.seconds)}"
        factor = math.exp(self._random.gauss(-(SCATTER**2) / 2, SCATTER))
        self.seconds[name], self.after[name] = mean_s * factor, after
        return name


def montage(width: int, seed: int = 1) -> Workflow:
    w = Workflow("montage", seed)
    project = [w.task("mProject", 1.73) for _ in range(width)]
    diff = [w.task("mDiffFit", 0.66, project[i], project[(i + step) % width]) for i in range(width) for step in (1, 2)]
    model = w.task("mBgModel", 38.4, w.task("mConcatFit", 14.3, *diff))
    back = [w.task("mBackground", 1.72, model, each) for each in project]
    shrink = w.task("mShrink", 6.6, w.task("mAdd", 28.2, w.task("mImgtbl", 2.78, *back)))
    w.task("mJPEG", 0.64, shrink)
    return w


def cybershake(width: int, seed: int = 2) -> Workflow:
    w = Workflow("cybershake", seed)
    seismograms, peaks = [], []
    for _ in range(max(1, width // 10)):
        extract = w.task("ExtractSGT", 110.58)
        for _ in range(10):
            seismograms.append(w.task("Seismogram", 48.0, extract))
            peaks.append(w.task("PeakVal", 1.0, seismograms[-1]))
    w.task("ZipSeis", 265.7, *seismograms)
    w.task("ZipPSA", 195.8, *peaks)
    return w


def epigenomics(width: int, seed: int = 3) -> Workflow:
    w = Workflow("epigenomics", seed)
    merged = []
    for _ in range(max(1, width // 10)):
        split = w.task("fastqSplit", 34.32)
        mapped = []
        for _ in range(10):
            clean = w.task("filterContams", 2.47, split)
            mapped.append(w.task("map", 201.89, w.task("fastq2bfq", 1.4, w.task("sol2sanger", 0.48, clean))))
        merged.append(w.task("mapMerge", 11.01, *mapped))
    w.task("pileup", 55.95, w.task("maqIndex", 43.57, w.task("mapMerge", 11.01, *merged)))
    return w


def inspiral(width: int, seed: int = 4) -> Workflow:
    w = Workflow("inspiral", seed)
    for _ in range(max(1, width // 10)):
        first = [w.task("Inspiral", 460.21, w.task("TmpltBank", 18.14)) for _ in range(10)]
        thinca = w.task("Thinca", 5.37, *first)
        second = [w.task("Inspiral", 460.21, w.task("TrigBank", 5.11, thinca)) for _ in range(10)]
        w.task("Thinca", 5.37, *second)
    return w


def sipht(width: int, seed: int = 5) -> Workflow:
    w = Workflow("sipht", seed)
    for _ in range(max(1, width // 15)):
        patser = w.task("PatserConcat", 0.03, *[w.task("Patser", 0.96) for _ in range(10)])
        srna = w.task(
            "SRNA", 12.4, *[w.task(kind, s) for kind, s in (("Findterm", 594.9), ("RNAMotif", 25.7), ("Blast", 1867.2))]
        )
        parse = w.task("FFNParse", 0.7, srna)
        blasts = [
            w.task(kind, s, parse) for kind, s in (("BlastSynteny", 3.4), ("BlastCandidate", 0.6), ("BlastQRNA", 440.9))
        ]
        w.task("SRNAAnnotate", 0.1, patser, *blasts)
    return w


def genome(width: int, seed: int = 6) -> Workflow:
    w = Workflow("1000genome", seed)
    for _ in range(max(1, width // 20)):
        merge = w.task("individuals_merge", 34.0, *[w.task("individuals", 105.0) for _ in range(12)])
        sifting = w.task("sifting", 2.5)
        for _ in range(4):
            w.task("mutation_overlap", 40.0, merge, sifting)
            w.task("frequency", 110.0, merge, sifting)
    return w


KINDS: dict[str, Callable[..., Workflow]] = {
    made.__name__: made for made in (montage, cybershake, epigenomics, inspiral, sipht, genome)
}
