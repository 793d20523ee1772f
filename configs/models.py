"""The steps of models.yaml: candidates, one fold of a cross-validation, and the test of the one that was chosen.

A candidate is a mapping of ``model`` (a name in ``MODELS``) and ``settings`` (its constructor's). Seeds are fixed, so every
run chooses the same.
"""

from __future__ import annotations

import math
import statistics
from itertools import product
from typing import Any

from procflow import step

try:
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, confusion_matrix
    from sklearn.model_selection import StratifiedKFold, train_test_split
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
except ImportError as missing:
    raise ImportError(f"models.yaml needs scikit-learn ({missing}): pip install '.[examples]'") from None

SEED = 0
MODELS = {
    "logistic regression": lambda **s: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, **s)),
    "nearest neighbours": KNeighborsClassifier,
    "support vectors": SVC,
    "random forest": lambda **s: RandomForestClassifier(random_state=SEED, n_jobs=1, **s),
    "extra trees": lambda **s: ExtraTreesClassifier(random_state=SEED, n_jobs=1, **s),
}
GRIDS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "quick": {"nearest neighbours": {"n_neighbors": [1, 5]}, "support vectors": {"C": [1.0], "gamma": [0.001]}},
    "small": {
        "logistic regression": {"C": [0.01, 0.1]},
        "nearest neighbours": {"n_neighbors": [1, 3, 5]},
        "support vectors": {"C": [1.0, 10.0], "gamma": [0.0005, 0.001]},
        "random forest": {"n_estimators": [100, 200]},
        "extra trees": {"n_estimators": [100, 200]},
    },
    "full": {
        "logistic regression": {"C": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
        "nearest neighbours": {"n_neighbors": [1, 2, 3, 5, 7, 9], "weights": ["uniform", "distance"]},
        "support vectors": {"C": [0.3, 1.0, 3.0, 10.0, 30.0], "gamma": [0.0003, 0.0005, 0.001, 0.002, 0.004]},
        "random forest": {"n_estimators": [200, 500], "max_features": [4, 8, 16]},
        "extra trees": {"n_estimators": [200, 500], "max_features": [4, 8, 16]},
    },
}

Digits = dict[str, Any]


def prepare(digits: int, folds: int, grid: str) -> tuple[Digits, Digits, list[dict[str, Any]], list[dict[str, Any]]]:
    """The digits for training, a fifth that nothing but the last test sees, the candidates, and the rows of each fold."""
    if grid not in GRIDS:
        raise ValueError(f"there is no grid {grid!r}: -p grid={', grid='.join(GRIDS)}")
    pixels, labels = load_digits(return_X_y=True)
    if digits:
        if not 100 <= digits <= len(labels):
            raise ValueError(f"digits is a number from 100 to {len(labels)}, or 0 for all, not {digits}")
        pixels, labels = pixels[:digits], labels[:digits]
    known, unseen, known_labels, unseen_labels = train_test_split(
        pixels, labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    cut = StratifiedKFold(folds, shuffle=True, random_state=SEED)
    parts = [{"learn": learn, "check": check} for learn, check in cut.split(known, known_labels)]
    return (
        {"pixels": known, "labels": known_labels},
        {"pixels": unseen, "labels": unseen_labels},
        candidates(GRIDS[grid]),
        parts,
    )


def candidates(grid: dict[str, dict[str, list[Any]]]) -> list[dict[str, Any]]:
    """Every model with every combination of its settings."""
    return [
        {"model": model, "settings": dict(zip(choices, chosen, strict=True))}
        for model, choices in grid.items()
        for chosen in product(*choices.values())
    ]


def trained(candidate: dict[str, Any], pixels: Any, labels: Any) -> Any:
    return MODELS[candidate["model"]](**candidate["settings"]).fit(pixels, labels)


def fit_and_score(part: dict[str, Any], candidate: dict[str, Any], training: Digits) -> float:
    """Train on the other folds, and give the share of this fold's digits that are read rightly."""
    pixels, labels = training["pixels"], training["labels"]
    model = trained(candidate, pixels[part["learn"]], labels[part["learn"]])
    return float(accuracy_score(labels[part["check"]], model.predict(pixels[part["check"]])))


def summarize(candidate: dict[str, Any], scores: list[float]) -> dict[str, Any]:
    """What a candidate comes to over its folds; one more row of the list of all that were tried."""
    spread = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
    summary = {
        **candidate,
        "accuracy": round(statistics.fmean(scores), 6),
        "spread": round(spread, 6),
        "folds": len(scores),
    }
    step.state.append("tried", summary)
    return summary


def final_test(chosen: dict[str, Any], training: Digits, unseen: Digits) -> dict[str, Any]:
    """The chosen one, trained on all folds, reads the digits it never saw: accuracy, and the pairs it takes for each other."""
    guesses = trained(chosen, training["pixels"], training["labels"]).predict(unseen["pixels"])
    counts = confusion_matrix(unseen["labels"], guesses, labels=range(10))
    np.fill_diagonal(counts, 0)
    wrong = [(int(counts[i, j]), i, j) for i, j in zip(*map(list, np.nonzero(counts)), strict=True)]
    return {
        "digits": len(guesses),
        "learned": len(training["labels"]),
        "accuracy": float(accuracy_score(unseen["labels"], guesses)),
        "wrong": [(count, int(i), int(j)) for count, i, j in sorted(wrong, key=lambda row: (-row[0], row[1], row[2]))],
    }


def described(candidate: dict[str, Any]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in candidate["settings"].items())
    return f"{candidate['model']} ({settings})"


def report(chosen: dict[str, Any], test: dict[str, Any]) -> str:
    """All candidates, best first, the one that was chosen, and how it did in the test."""
    rows = sorted(
        step.state["tried"], key=lambda row: (-row["accuracy"], described(row) != described(chosen), described(row))
    )
    wide = max(len(described(row)) for row in rows)
    lines = [
        f"{len(rows)} candidates, {chosen['folds']} folds of {test['learned']:,} digits",
        "",
        f"{'candidate':{wide}}  accuracy  +/-",
        *(f"{described(row):{wide}}  {row['accuracy']:>8.2%}  {row['spread']:.2%}" for row in rows),
        "",
        f"Chosen: {described(chosen)}",
        f"It reads {test['accuracy']:.2%} of {test['digits']} unseen digits.",
    ]
    lines += [f"  {i} taken for {j}: {count}" for count, i, j in test["wrong"][:5]]
    return "\n".join(lines)
