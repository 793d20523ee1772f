"""The example pipelines that do real work: a choice among variants, a contact sheet, model selection, a warehouse."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import servers

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
DEADLINE_S = 240
EXECUTORS = {"processes": ("-j", "2"), "threads": ("-j", "2"), "inline": ()}


def module(name: str) -> ModuleType:
    """A module beside the pipeline files, loaded from its path."""
    spec = importlib.util.spec_from_file_location(f"configs_{name}", CONFIGS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def command(name: str, state: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    line = [
        sys.executable,
        "-m",
        "procflow",
        "run",
        str(CONFIGS / f"{name}.yaml"),
        "--state-dir",
        str(state),
        *arguments,
    ]
    return subprocess.run(
        line,
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def run(name: str, state: Path, *arguments: str, **env: str) -> str:
    """What the pipeline prints; it must succeed."""
    done = command(name, state, *arguments, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- choose: variants and the best of them -----------------------------------------------------------------------------


def test_the_bound_is_below_the_shortest_trip_and_every_variant_is_a_trip() -> None:
    choose = module("choose")
    for seed in range(5):
        cities = choose.place_cities(8, seed)
        between = choose.distances(cities)
        shortest = min(choose.length([0, *rest], between) for rest in itertools.permutations(range(1, 8)))
        bound = choose.lower_bound(cities)
        assert 0.8 * shortest < bound <= shortest + 1e-3
        for found in (
            choose.nearest_neighbour(cities),
            choose.farthest_insertion(cities),
            choose.hilbert_curve(cities),
            choose.exchanged(cities),
            choose.annealed(cities, 2_000, seed),
        ):
            assert sorted(found["trip"]) == list(range(8))
            assert found["length"] == pytest.approx(choose.length(found["trip"], between), abs=1e-3)
            assert found["length"] >= shortest - 1e-3


def test_points_near_on_the_curve_are_near_in_the_square() -> None:
    choose = module("choose")
    cells = sorted(
        ((x, y) for x in range(8) for y in range(8)),
        key=lambda cell: choose.along_curve((cell[0] + 0.5) * 125, (cell[1] + 0.5) * 125),
    )
    assert all(abs(x - u) + abs(y - v) == 1 for (x, y), (u, v) in itertools.pairwise(cells))


def test_the_best_variant_is_chosen_on_every_executor(tmp_path: Path) -> None:
    given = ("-p", "cities=40", "-p", "rounds=20000")
    texts = {
        name: run("choose", tmp_path / name, *given, "--executor", name, *more) for name, more in EXECUTORS.items()
    }
    assert texts["processes"] == texts["threads"] == texts["inline"]
    lines = texts["inline"].splitlines()
    bound = int(re.match(r"40 cities; no round trip is shorter than ([\d,]+) km", lines[0])[1].replace(",", ""))  # type: ignore[index]
    found = [int(re.search(r" ([\d,]+) +[\d.]+%", line)[1].replace(",", "")) for line in lines[3:8]]  # type: ignore[index]
    assert found == sorted(found)
    assert bound <= found[0] < found[-1]
    assert ["<- chosen" in line for line in lines[3:8]] == [True, False, False, False, False]


def test_too_few_cities_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    done = command("choose", tmp_path, "-p", "cities=3", "--executor", "inline")
    assert done.returncode == 1
    assert "at least 5 cities, not 3: -p cities=5" in done.stderr


# -- images: a contact sheet -------------------------------------------------------------------------------------------


def test_the_contact_sheet_is_the_same_on_every_executor(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs the extra examples")
    from PIL import Image

    given = ("-p", "limit=3", "-p", "size=64", "-p", f"folder={tmp_path}")
    texts, sheets = set(), set()
    for name, more in EXECUTORS.items():
        texts.add(run("images", tmp_path / name, *given, "--executor", name, *more))
        sheets.add((tmp_path / "contact-sheet.png").read_bytes())
        (tmp_path / "contact-sheet.png").unlink()
    assert len(texts) == len(sheets) == 1
    (text,) = texts
    assert f"3 images, 6 operators: {tmp_path}/contact-sheet.png, 490 x 230 pixels" in text
    assert len(re.findall(r"^\S+( +[\d,.]+){6}$", text, re.MULTILINE)) == 3
    (tmp_path / "sheet.png").write_bytes(sheets.pop())
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (490, 230)
        assert len(sheet.getcolors(490 * 230)) > 1000


def test_an_image_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs the extra examples")
    from PIL import Image

    images = module("images")
    own = tmp_path / "own"
    own.mkdir()
    for number in range(10):
        Image.fromarray(images.drawn(number, 24)).save(own / f"disc{number}.png")
    (own / "disc4.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    given = ("-p", f"images={own}", "-p", "size=24", "-p", f"folder={tmp_path}", "--executor", "threads")
    done = command("images", tmp_path / "state", *given)
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"{own}/disc4.png can't be read as an image" in done.stderr
    assert done.stdout.endswith("\n1 of 10 left out because they can't be read\n")


def test_operators_measure_what_they_say() -> None:
    pytest.importorskip("skimage", reason="needs the extra examples")
    import numpy as np

    images = module("images")
    picture = np.zeros((60, 60, 3), np.uint8)
    for row, column in ((5, 5), (5, 40), (40, 20)):
        picture[row : row + 12, column : column + 12] = 250
    flat = np.full((40, 60, 3), 90, np.uint8)
    assert images.objects(picture)["objects"]["number"] == 3
    assert images.objects(flat)["objects"]["number"] == 0
    assert images.edges(flat)["edges"]["number"] == 0
    assert images.edges(picture)["edges"]["number"] > 2
    assert images.texture(flat)["texture"]["number"] < 1
    assert images.denoise(images.drawn(0, 48))["denoise"]["number"] > 3
    for name in images.HEADS:
        for given in (picture, flat):
            assert getattr(images, name)(given)[name]["picture"].shape == given.shape
    assert images.framed(flat, 60).shape == (66, 66, 3)


def test_a_folder_without_images_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs the extra examples")
    images = module("images")
    with pytest.raises(FileNotFoundError, match=r"no images in .*-p images=PATH"):
        images.find_images(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*-p images=PATH"):
        images.find_images(str(tmp_path / "gone"))


@pytest.mark.parametrize(("name", "library"), [("images", "skimage"), ("models", "sklearn")])
def test_a_library_that_is_missing_is_named_with_its_extra(name: str, library: str, tmp_path: Path) -> None:
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text(f"raise ModuleNotFoundError('no {library} here')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = command(name, tmp_path / "state", PYTHONPATH=path)
    assert done.returncode == 1
    assert f"needs scikit-{'image' if name == 'images' else 'learn'} (no {library} here)" in done.stderr
    assert "pip install '.[examples]'" in done.stderr


# -- models: cross-validation ------------------------------------------------------------------------------------------


def test_the_best_candidate_is_chosen_and_tested_on_unseen_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra examples")
    given = ("-p", "grid=quick", "-p", "folds=3", "-p", "digits=600")
    texts = {workers: run("models", tmp_path / workers, *given, "-j", workers) for workers in ("1", "2")}
    assert texts["1"] == texts["2"]
    lines = texts["1"].splitlines()
    assert lines[0] == "3 candidates, 3 folds of 480 digits"
    scores = [float(re.search(r" (\d+\.\d+)%", line)[1]) for line in lines[3:6]]  # type: ignore[index]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 90
    chosen = lines[7].removeprefix("Chosen: ")
    assert lines[3].startswith(chosen)
    read = re.fullmatch(r"It reads (\d+\.\d+)% of 120 unseen digits\.", lines[8])
    assert read is not None
    assert float(read[1]) > 90


def test_the_choice_is_that_of_scikit_learns_own_search() -> None:
    pytest.importorskip("sklearn", reason="needs the extra examples")
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    models = module("models")
    training, unseen, _, parts = models.prepare(400, 3, "quick")
    assert len(training["labels"]) + len(unseen["labels"]) == 400
    grid = {"C": [0.01, 1.0], "gamma": [0.001, 0.1]}
    search = GridSearchCV(SVC(), grid, cv=[(part["learn"], part["check"]) for part in parts], scoring="accuracy")
    search.fit(training["pixels"], training["labels"])
    ours = [
        models.summarize(candidate, [models.fit_and_score(part, candidate, training) for part in parts])["accuracy"]
        for candidate in models.candidates({"support vectors": grid})
    ]
    assert ours == pytest.approx(list(search.cv_results_["mean_test_score"]), abs=1e-6)


def test_a_memory_limit_is_refused_where_it_cannot_be_held(tmp_path: Path) -> None:
    done = command("models", tmp_path, "--executor", "threads")
    assert done.returncode == 2
    assert "executor threads can't hold a step to its memory limit" in done.stderr


# -- warehouse: a database and files -----------------------------------------------------------------------------------


def expected(orders: int, year: int) -> dict[str, Any]:
    """Net sales by region, worked out from the data alone."""
    rows, returns = module("warehouse").made(orders, year)
    net: dict[str, int] = {}
    for sign, table in ((1, rows), (-1, returns)):
        for row in table:
            net[row["region"]] = net.get(row["region"], 0) + sign * row["cents"]
    return net


def reported(text: str) -> dict[str, int]:
    found = re.findall(r"^(east|north|south|west) +([\d,.]+) ", text, re.MULTILINE)
    return {region: int(net.replace(",", "").replace(".", "")) for region, net in found}


def test_the_warehouse_reports_the_same_on_every_executor(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs the extra examples")
    pytest.importorskip("duckdb", reason="needs the extra examples")
    given = ("-p", f"warehouse=sqlite:///{tmp_path}/w.db", "-p", f"folder={tmp_path}/files", "-p", "orders=900")
    texts = {
        name: run("warehouse", tmp_path / name, *given, "--executor", name, *more) for name, more in EXECUTORS.items()
    }
    assert texts["processes"] == texts["threads"] == texts["inline"]
    text = texts["inline"]
    assert text.startswith("The year 2026, from 904 rows\n")
    assert reported(text) == expected(900, 2026)
    assert len(re.findall(r"^2026-\d\d .* #+$", text, re.MULTILINE)) == 12
    with closing(sqlite3.connect(tmp_path / "w.db")) as database:
        assert database.execute("SELECT COUNT(*) FROM procflow_orders").fetchone() == (900,)
    with (tmp_path / "files" / "returns.csv").open(newline="") as file:
        pieces = sum(int(row["pieces"]) for row in csv.DictReader(file))
    told = text.splitlines()[-1]
    assert sum(int(number) for number in re.findall(r"\d+", told)) == pieces > 0
    assert len(json.loads((tmp_path / "files" / "targets.json").read_text())) == 4


def test_a_year_without_returns_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs the extra examples")
    pytest.importorskip("duckdb", reason="needs the extra examples")
    given = ("-p", f"warehouse=sqlite:///{tmp_path}/w.db", "-p", f"folder={tmp_path}", "--executor", "inline")
    text = run("warehouse", tmp_path / "state", *given, "-p", "orders=1")
    assert text.endswith("Returned pieces: none\n")


def test_the_warehouse_may_be_postgresql(tmp_path: Path) -> None:
    pytest.importorskip("duckdb", reason="needs the extra examples")
    with servers.postgres() as url:
        parts = urlsplit(url)
        # The password stays out of the parameters, as the file says.
        plain = url.replace(f":{parts.password}@", "@") if parts.password else url
        given = ("-p", f"warehouse={plain}", "-p", f"folder={tmp_path}", "-p", "orders=900", "-j", "2")
        text = run("warehouse", tmp_path / "state", *given, PGPASSWORD=unquote(parts.password or ""))
    assert text.startswith("The year 2026, from 904 rows\n")
    assert reported(text) == expected(900, 2026)
