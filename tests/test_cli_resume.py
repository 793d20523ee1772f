"""``resume``, ``retry``, and ``run --from --only --skip --force``: what is kept, what runs again, and what is refused."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from procflow import Pipeline, Step
from procflow.cli import cli
from procflow.errors import ProcflowError, StoreError
from procflow.storing import store_seal
from procflow.storing.state_folder import StateFolder
from procflow.working import functions

JOBS = '''
import os

def told(key):
    """Adds the key to the list of what ran."""
    with open(os.environ["RAN"], "a") as file:
        file.write(key + "\\n")

def broken(key):
    return os.path.exists(f"{os.environ['RAN']}.{key}")

def make(key="x", **values):
    told(key)
    if broken(key):
        raise ValueError(f"{key} is broken")
    return f"{key}({','.join(str(v) for _, v in sorted(values.items()))})"

def each(item):
    told(f"item{item}")
    if broken(f"item{item}"):
        raise ValueError(f"item {item} is broken")
    return item * 10

def total(rows):
    told("total")
    return sum(rows)
'''
STEPS = """
name: p
params: {day: monday}
show: [end]
steps:
  - {type: transform, name: first, function: "jobs:make", params: {key: first, day: "${params.day}"}}
  - type: parallel
    name: wide
    on_error: finish
    steps:
      - {type: transform, name: a, function: "jobs:make", params: {key: a}, inputs: {x: first}}
      - {type: transform, name: b, function: "jobs:make", params: {key: b}, inputs: {x: first}}
  - {type: map, name: rows, items: {range: [0, 6]}, function: "jobs:each", batch: 1, on_error: finish}
  - {type: transform, name: sum, function: "jobs:total", inputs: [rows]}
  - {type: transform, name: end, function: "jobs:make", params: {key: end}, inputs: {a: a, b: b, s: sum}}
"""
ALL = ["first", "a", "b", "item0", "item1", "item2", "item3", "item4", "item5", "total", "end"]
END = "end(a(first(monday)),b(first(monday)),150)\n"


class Place:
    """A folder with the pipeline, in which steps can be broken and mended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs.py").write_text(JOBS)
        (folder / "p.yaml").write_text(STEPS)

    def run(self, *args: str, code: int = 0, file: str = "p.yaml") -> Result:
        return self.invoke("run", file, *args, "--executor", "inline", "-j", "1", code=code)

    def invoke(self, *args: str, code: int = 0) -> Result:
        for name in ("jobs", "w"):
            sys.modules.pop(name, None)
        functions._resolved.clear()
        result = CliRunner().invoke(cli, args)
        assert result.exit_code == code, result.output
        return result

    def ran(self) -> list[str]:
        """What ran since this was asked last."""
        path = self.folder / "ran"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return lines

    def break_(self, key: str) -> None:
        (self.folder / f"ran.{key}").touch()

    def tell(self, key: str) -> None:
        with open(self.folder / "ran", "a") as file:
            file.write(key + "\n")

    def is_broken(self, key: str) -> bool:
        return (self.folder / f"ran.{key}").exists()

    def mend(self, key: str) -> None:
        (self.folder / f"ran.{key}").unlink()

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def rewrite(self, table: str, change: str, where: str = "1") -> None:
        """Change rows of the journal as if they had been written so."""
        with closing(sqlite3.connect(self.folder / ".procflow/procflow.db")) as db, db:
            db.execute(f"UPDATE {table} SET {change} WHERE {where}")
            store_seal.install(db)
            store_seal.reseal(db, table, where, ())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(functions, "_added", set())
    monkeypatch.setattr(functions, "_resolved", {})
    yield Place(tmp_path)
    sys.modules.pop("jobs", None)


def plan_of(text: str) -> dict[str, str]:
    """Label to ``kept`` or the reason for running, from the lines of ``--plan``."""
    found = {}
    for line in text.splitlines()[1:]:
        word, _, rest = line.split(None, 2)
        label, _, why = rest.partition("  ")
        found[label.strip()] = "kept" if word == "kept" else why.strip()
    return found


def test_a_failed_run_goes_on_where_it_stopped(place: Place) -> None:
    place.break_("b")
    failed = place.run("--run-id", "r", code=1)
    assert re.search(r"procflow\S* resume r\n|cli resume r\n", failed.output) or " resume r\n" in failed.output
    assert place.ran() == ["first", "a", "b"]
    place.mend("b")
    done = place.invoke("resume")
    assert place.ran() == ["b", *ALL[3:]]
    assert done.stdout == END
    assert "resuming run r of p.yaml (failed)" in done.stderr
    assert "Pipeline step 1.0 (wide/a): kept, done before" in done.stderr or "(a): kept, done before" in done.stderr


def test_a_map_goes_on_with_the_items_that_are_missing(place: Place) -> None:
    place.break_("item4")
    place.run("--run-id", "r", code=1)
    place.mend("item4")
    place.ran()
    assert plan_of(place.invoke("resume", "--plan").stdout)["rows"] == "5 of 6 items kept; not all its items are done"
    assert place.ran() == []
    assert place.invoke("resume", "r").stdout == END
    assert place.ran() == ["item4", "total", "end"]
    shown = place.invoke("show", "r").stdout
    assert re.search(r"^kept +3 steps of earlier sessions$", shown, re.M)
    assert re.search(r"^-- session 1, \S+ \S+ +failed\n(.*\n)+-- session 2, \S+ \S+ +succeeded\n", shown, re.M)
    assert re.search(r"^first +kept +succeeded", shown, re.M)
    assert "item 4 is broken" not in shown.partition("-- session 2")[2]


def test_hooks_are_no_steps_and_count_their_attempts_on_and_a_whole_map_is_said_to_be_kept(place: Place) -> None:
    with (place.folder / "p.yaml").open("a") as file:
        file.write("on_finish: [{type: transform, name: bye, function: 'jobs:make', params: {key: bye}}]\n")
    place.break_("end")
    failed = place.run("--run-id", "r", "--progress", "plain", code=1)
    assert ": 6 steps (5 succeeded, 1 failed), 6 items" in failed.stderr
    place.mend("end")
    done = place.invoke("resume", "--progress", "plain").stderr
    assert "(rows): kept, done before: 6 of 6 items; produced rows\n" in done
    assert "(bye): attempt 2 started\n" in done
    shown = place.invoke("show", "r").stdout
    assert re.search(r"^kept +5 steps of earlier sessions$", shown, re.M)
    assert re.search(r"^rows +1 +map +succeeded .*done before$", shown, re.M)
    assert re.findall(r"^on_finish/bye +(\d) +task +succeeded", shown, re.M) == ["1", "2"]


def test_what_succeeded_is_not_resumed(place: Place) -> None:
    place.run("--run-id", "r")
    place.ran()
    for words in (("resume",), ("resume", "r"), ("retry",), ("retry", "r"), ("resume", "r", "--plan")):
        assert "run r has succeeded" in place.invoke(*words).stderr
    assert place.ran() == []


def other(place: Place, name: str, run_id: str, code: int = 0) -> None:
    """Run another pipeline of the same state folder."""
    (place.folder / f"{name}.yaml").write_text(
        f"name: {name}\nsteps: [{{type: transform, name: s, function: 'jobs:make', params: {{key: {name}}}}}]\n"
    )
    place.run("--run-id", run_id, file=f"{name}.yaml", code=code)


def test_a_resume_without_a_run_takes_the_newest_and_says_when_a_newer_one_is_passed_over(place: Place) -> None:
    place.break_("b")
    place.run("--run-id", "r", code=1)
    other(place, "q", "good")
    place.mend("b")
    said = place.invoke("resume").stderr
    assert "resuming run r of p.yaml (failed); the newest run is good of q (succeeded)\n" in said


def test_the_newest_run_is_resumed_though_others_failed_before(place: Place) -> None:
    for name in ("q", "b"):
        place.break_(name)
    place.run("--run-id", "r", code=1)
    other(place, "q", "bad", code=1)
    place.mend("q")
    assert "resuming run bad of q.yaml (failed)\n" in place.invoke("resume").stderr


def test_a_resume_that_could_mean_several_pipelines_is_refused_with_their_runs(place: Place) -> None:
    for name in ("q", "b"):
        place.break_(name)
    place.run("--run-id", "r", code=1)
    other(place, "q", "bad", code=1)
    other(place, "fine", "good")
    for command in ("resume", "retry"):
        said = place.invoke(command, code=2).stderr
        assert "the newest run, good of " in said
        assert f"bad of {place.folder / 'q.yaml'} (failed), r of {place.folder / 'p.yaml'} (failed)" in said
    place.mend("b")
    assert place.invoke("resume", "r").stdout == END


def test_a_failure_that_a_later_run_made_good_is_not_resumed(place: Place) -> None:
    place.break_("b")
    place.run("--run-id", "r", code=1)
    place.mend("b")
    place.run("--run-id", "again")
    other(place, "q", "good")
    assert "run good has succeeded" in place.invoke("resume").stderr


def test_a_partial_run_is_not_resumed_but_what_failed_in_it_can_be_retried(place: Place) -> None:
    place.edit("p.yaml", "batch: 1, on_error: finish", "batch: 1, on_error: continue, tolerate: 1")
    place.break_("item2")
    place.run("--run-id", "r", code=3)
    place.ran()
    assert "1 tolerated failure" in place.invoke("resume", "r", code=3).stderr
    place.mend("item2")
    assert place.invoke("retry", "r").stdout == END
    assert place.ran() == ["item2", "total", "end"]


def test_retry_is_a_new_run_that_keeps_what_succeeded(place: Place) -> None:
    place.break_("b")
    place.run("--run-id", "old", code=1)
    place.ran()
    again = place.invoke("retry", code=1)
    assert "retrying run old" in again.stderr
    assert place.ran() == ["b"]
    place.mend("b")
    place.invoke("retry")
    assert place.ran() == ["b", *ALL[3:]]
    runs = place.invoke("history").stdout
    assert len(runs.splitlines()) == 4
    assert re.search(r"^kept +2 steps of run \S+$", place.invoke("show").stdout, re.M)
    assert re.search(r"^wide/a +kept +succeeded", place.invoke("show").stdout, re.M)


def test_a_new_run_that_was_cut_off_goes_on_with_what_it_took_over(place: Place) -> None:
    place.break_("b")
    place.run("--run-id", "old", code=1)
    place.mend("b")
    place.break_("total")
    place.edit("jobs.py", 'told("total")', 'told("total"); assert not broken("total")')
    place.invoke("retry", "old", code=1)
    place.ran()
    place.mend("total")
    assert place.invoke("resume").stdout == END
    assert place.ran() == ["total", "end"]


# -- what changed -----------------------------------------------------------------------------------------------------


def test_what_changed_runs_again_with_all_that_builds_on_it(place: Place) -> None:
    place.break_("end")
    place.run("--run-id", "r", code=1)
    place.mend("end")
    place.ran()
    place.edit("p.yaml", "params: {key: a}", "params: {key: a, more: 1}")
    place.edit("jobs.py", "return sum(rows)", "return sum(rows) + 1")
    assert plan_of(place.invoke("resume", "--plan").stdout) == {
        "first": "kept",
        "wide/a": "params changed",
        "wide/b": "kept",
        "rows": "kept",
        "sum": "code changed (total)",
        "end": "reads 'a', a value of wide/a, which runs again",
    }
    assert place.invoke("resume").stdout == "end(a(1,first(monday)),b(first(monday)),151)\n"
    assert place.ran() == ["a", "total", "end"]


def test_an_item_function_that_changed_runs_for_every_item(place: Place) -> None:
    place.break_("total")
    place.edit("jobs.py", 'told("total")', 'told("total"); assert not broken("total")')
    place.run("--run-id", "r", code=1)
    place.ran()
    place.edit("jobs.py", "return item * 10", "return item * 20")
    place.mend("total")
    place.invoke("resume")
    assert place.ran() == [*ALL[3:]]


def test_a_change_that_was_resumed_and_cut_off_is_not_forgotten(place: Place) -> None:
    place.break_("end")
    place.run("--run-id", "r", code=1)
    place.edit("jobs.py", "return sum(rows)", "return sum(rows) + 1")
    place.ran()
    place.invoke("resume", code=1)
    assert place.ran() == ["total", "end"]
    place.mend("end")
    assert plan_of(place.invoke("resume", "--plan").stdout)["sum"] == "kept"
    place.edit("jobs.py", "return sum(rows) + 1", "return sum(rows)")
    assert plan_of(place.invoke("resume", "--plan").stdout)["sum"] == "code changed (total)"
    assert place.invoke("resume").stdout == END
    assert place.ran() == ["total", "end"]


def test_limits_and_comments_change_nothing(place: Place) -> None:
    place.break_("end")
    place.run("--run-id", "r", code=1)
    place.mend("end")
    place.ran()
    place.edit("p.yaml", "name: first, function:", "retries: 1, priority: 3, name: first, function:")
    place.edit("jobs.py", "return sum(rows)", "# all of them\n    return sum(rows)")
    place.invoke("resume")
    assert place.ran() == ["end"]


def test_a_step_that_was_put_in_front_leaves_the_others_what_they_are(place: Place) -> None:
    place.break_("end")
    place.run("--run-id", "r", code=1)
    place.mend("end")
    place.ran()
    place.edit("p.yaml", "steps:\n  - {type: transform, name: first", (
        'steps:\n  - {type: transform, name: new, function: "jobs:make", params: {key: new}}\n'
        "  - {type: transform, name: first"
    ))  # fmt: skip
    plan = plan_of(place.invoke("resume", "--plan").stdout)
    assert (plan["new"], plan["first"], plan["rows"], plan["end"]) == ("is new", "kept", "kept", "failed")
    place.invoke("resume")
    assert place.ran() == ["new", "end"]


def test_parameters_are_those_of_the_run_unless_given_anew(place: Place) -> None:
    place.break_("end")
    place.run("--run-id", "r", "-p", "day=sunday", code=1)
    place.mend("end")
    place.ran()
    assert "sunday" in place.invoke("resume").stdout
    assert place.ran() == ["end"]
    place.break_("end")
    place.run("--run-id", "s", "-p", "day=sunday", code=1)
    place.mend("end")
    place.ran()
    assert "tuesday" in place.invoke("resume", "-p", "day=tuesday").stdout
    assert place.ran() == ["first", "a", "b", "end"]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_refused_with_75(place: Place) -> None:
    place.break_("end")
    place.run("--run-id", "r", code=1)
    place.rewrite("runs", "status = 'running'")
    lock = StateFolder.open(".procflow").lock("p.yaml")
    with lock:
        lock.acquire("r")
        for words in (("resume",), ("resume", "r"), ("retry", "r")):
            assert "still going on" in place.invoke(*words, code=75).stderr


def test_another_run_of_the_file_in_between_is_refused_with_75(place: Place) -> None:
    place.break_("end")
    place.run("--run-id", "r", code=1)
    with StateFolder.open(".procflow").lock("p.yaml") as lock:
        lock.acquire("other")
        assert "run other" in place.invoke("resume", "r", code=75).stderr


def test_a_file_that_is_gone_is_told(place: Place) -> None:
    place.break_("end")
    place.run("--run-id", "r", code=1)
    (place.folder / "p.yaml").unlink()
    assert re.search(r"its pipeline file /\S+/p.yaml is gone", place.invoke("resume", code=2).stderr)


def test_unknown_runs_are_usage_errors(place: Place) -> None:
    assert "there is no state folder" in place.invoke("resume", code=74).stderr
    place.run("--run-id", "abc")
    assert "there is no run 'abd'; did you mean abc?" in place.invoke("resume", "abd", code=2).stderr


@pytest.mark.parametrize(
    ("column", "version", "said"),
    [("python_version", "3.9.1", "made with Python 3.9.1"), ("procflow_version", "99.0", "made by procflow 99.0")],
)
def test_results_of_another_version_are_refused_unless_forced(
    place: Place, column: str, version: str, said: str
) -> None:
    place.break_("end")
    place.run("--run-id", "r", code=1)
    place.mend("end")
    place.ran()
    place.rewrite("runs", f"{column} = '{version}'")
    for words in (("resume",), ("resume", "--plan"), ("retry",)):
        refused = place.invoke(*words, code=2).stderr
        assert said in refused
        assert "--force keeps them" in refused
    place.invoke("resume", "--force")
    assert place.ran() == ["end"]


# -- steps that are chosen --------------------------------------------------------------------------------------------


def test_from_runs_the_step_and_all_after_it(place: Place) -> None:
    place.run()
    place.ran()
    assert place.run("--from", "rows").stdout == END
    assert place.ran() == ALL[3:]
    place.run("--from", "sum")
    assert place.ran() == ["total", "end"]
    place.run("--from", "wide/b")
    assert place.ran() == ["b", *ALL[3:]]
    place.run("--from", "0")
    assert sorted(place.ran()) == sorted(ALL), "what took longest then begins first now"


def test_from_uses_earlier_results_whatever_they_were_made_from(place: Place) -> None:
    place.run()
    place.ran()
    place.edit("jobs.py", "return item * 10", "return item * 20")
    assert place.run("--from", "sum").stdout == END
    assert place.ran() == ["total", "end"]


def test_from_uses_a_map_whose_failures_were_tolerated_as_it_is(place: Place) -> None:
    place.edit(
        "p.yaml", "on_error: finish}\n  - {type: transform, name: sum", "tolerate: 1}\n  - {type: transform, name: sum"
    )
    place.break_("item4")
    place.run("--run-id", "r", code=3)
    assert place.ran() == ALL
    for run_id in ("again", "and_again"):
        done = place.run("--from", "sum", "--run-id", run_id, code=3)
        assert place.ran() == ["total", "end"]
        assert done.stdout == END.replace("150", "110")
        assert "item 4): FAILED: FailedBefore: it failed in the run whose results are used" in done.stderr
    # What succeeded can still be told from what is missing.
    assert plan_of(place.invoke("retry", "and_again", "--plan").stdout)["rows"].startswith("5 of 6 items kept")


def test_from_without_a_result_that_a_map_needs_is_refused_though_others_are_tolerated(place: Place) -> None:
    place.edit(
        "p.yaml", "on_error: finish}\n  - {type: transform, name: sum", "tolerate: 1}\n  - {type: transform, name: sum"
    )
    place.break_("item4")
    place.run("--run-id", "r", code=3)
    place.rewrite("step_executions", "failed_count = 0", "kind = 'map'")
    assert "rows comes before it and has no result" in place.run("--from", "sum", code=2).stderr


def test_from_without_earlier_results_is_refused(place: Place) -> None:
    assert "there are no earlier results" in place.run("--from", "end", code=2).stderr
    place.break_("b")
    place.run("--run-id", "r", code=1)
    place.ran()
    refused = place.run("--from", "end", code=2).stderr
    assert "--from end: wide/b comes before it and has no result in run r (failed)" in refused
    assert place.ran() == []
    assert len(place.invoke("history").stdout.splitlines()) == 2


def test_only_runs_just_the_steps_that_are_named(place: Place) -> None:
    place.run()
    place.ran()
    place.run("--only", "sum")
    assert place.ran() == ["total"]
    place.run("--only", "a", "--only", "end")
    assert place.ran() == ["a", "end"]
    place.run("--only", "rows")
    assert place.ran() == [key for key in ALL if key.startswith("item")]
    place.run("--only", "wide")
    assert place.ran() == ["a", "b"]


def test_skip_keeps_the_last_value_or_leaves_out_the_readers(place: Place) -> None:
    place.run("--skip", "sum")
    assert place.ran() == ALL[:9]
    place.run()
    place.ran()
    assert place.run("--skip", "rows", "--skip", "a").stdout == END
    assert place.ran() == ["first", "b", "total", "end"]
    assert place.run("--skip", "wide").stdout == END
    assert place.ran() == ["first", *ALL[3:]]


def test_a_run_of_chosen_steps_that_was_cut_off_goes_on_with_the_same_choice(place: Place) -> None:
    place.run()
    place.break_("item3")
    place.run("--only", "rows", code=1)
    place.mend("item3")
    place.ran()
    place.invoke("resume")
    assert place.ran() == ["item3"]
    place.break_("end")
    place.run("--from", "sum", code=1)
    place.mend("end")
    place.ran()
    assert place.invoke("resume").stdout == END
    assert place.ran() == ["end"]


@pytest.mark.parametrize("option", ["--from", "--only", "--skip"])
def test_unknown_steps_are_refused_with_what_is_near(place: Place, option: str) -> None:
    place.run()
    place.ran()
    assert "did you mean first?" in place.run(option, "frist", code=2).stderr
    assert "steps are first, wide," in place.run(option, "zzz", code=2).stderr
    assert place.ran() == []


def test_a_name_that_means_two_steps_is_refused(place: Place) -> None:
    place.edit("p.yaml", "name: end,", "name: b, output: end,")
    place.run("--run-id", "r")
    assert place.run("--only", "b").exit_code == 0  # the whole label of the last step
    place.edit("p.yaml", "  - {type: transform, name: b, output: end,", (
        "  - type: sequence\n    name: last\n    steps:\n      - {type: transform, name: b, output: end,"
    ))  # fmt: skip
    assert "step 'b' may be wide/b, last/b" in place.run("--only", "b", code=2).stderr


def test_force_alone_is_refused_and_keeps_results_of_another_version_of_chosen_steps(place: Place) -> None:
    place.run()
    place.ran()
    assert "there is nothing to force" in place.run("--force", code=2).stderr
    place.rewrite("runs", "python_version = '3.9.1'")
    assert "--force keeps them" in place.run("--only", "end", code=2).stderr
    assert place.ran() == []
    place.run("--only", "end", "--force")
    assert place.ran() == ["end"]


def test_results_of_steps_that_have_changed_are_used_for_chosen_steps_and_that_is_said(place: Place) -> None:
    place.run("--run-id", "r")
    place.ran()
    assert "have changed" not in place.run("--only", "end").stderr
    place.edit("p.yaml", "key: first", "key: other")
    said = place.run("--only", "end").stderr
    (line,) = [line for line in said.splitlines() if "have changed since" in line]
    assert "first (params)" in line
    assert "end" not in line.partition("since")[2]
    place.ran()
    assert "have changed" not in place.run("--from", "first").stderr, "it runs, so nothing old of it is used"


# -- maps of steps, conditions, merges --------------------------------------------------------------------------------

NESTED = """
name: p
show: [sum]
steps:
  - type: map
    name: outer
    items: {range: [0, 4]}
    max_parallelism: 1
    steps:
      - {type: transform, name: one, function: "w:one", inputs: [item]}
      - {type: transform, name: two, function: "w:two", inputs: [one]}
  - type: parallel
    name: both
    when: "outer"
    on_error: continue
    tolerate: 1
    merge: w:joined
    output: joined
    steps:
      - {type: transform, name: x, function: "w:x", inputs: [outer]}
      - {type: transform, name: y, function: "w:y"}
  - {type: transform, name: sum, function: "w:last", inputs: [joined], output: sum}
  - {type: transform, name: check, function: "w:check", inputs: [sum]}
"""
NESTED_JOBS = """
from jobs import told, broken
def one(item):
    told(f"one{item}")
    return item
def two(one):
    told(f"two{one}")
    if broken(f"two{one}"): raise ValueError("no")
    return one + 1
def x(outer):
    told("x")
    return sum(outer)
def y():
    told("y")
    if broken("y"): raise ValueError("no")
    return 100
def joined(results):
    told("joined")
    return results
def last(joined):
    told("last")
    return sum(value for value in joined.values() if isinstance(value, int))
def check(sum):
    told("check")
    if broken("check"): raise ValueError("no")
"""


@pytest.fixture
def nested(place: Place) -> Place:
    (place.folder / "p.yaml").write_text(NESTED)
    (place.folder / "w.py").write_text(NESTED_JOBS)
    return place


def test_a_map_of_steps_goes_on_inside_an_item(nested: Place) -> None:
    nested.break_("two2")
    nested.run(code=1)
    nested.mend("two2")
    assert nested.ran() == ["one0", "two0", "one1", "two1", "one2", "two2"]
    plan = plan_of(nested.invoke("resume", "--plan").stdout)
    assert plan["both/x"] == "reads 'outer', a value of outer, which runs again"
    assert nested.invoke("resume").stdout == "110\n"
    assert nested.ran() == ["two2", "one3", "two3", "x", "y", "joined", "last", "check"]


def test_a_block_that_lacked_a_member_is_merged_anew_once_it_has_it(nested: Place) -> None:
    nested.break_("y")
    nested.break_("check")
    nested.run(code=1)
    assert nested.ran()[8:] == ["x", "y", "joined", "last", "check"]
    nested.mend("y")
    plan = plan_of(nested.invoke("resume", "--plan").stdout)
    assert plan["both/y"] == "failed"
    assert plan["both (its merge)"] == "needs both, which runs again"
    # The first session makes it anew and fails again behind it; the next one keeps what that made.
    nested.invoke("resume", code=1)
    assert nested.ran() == ["y", "joined", "last", "check"]
    nested.mend("check")
    assert nested.invoke("resume").stdout == "110\n"
    assert nested.ran() == ["check"]


def test_nothing_of_a_whole_nested_run_is_done_again(nested: Place) -> None:
    nested.break_("check")
    nested.run(code=1)
    nested.ran()
    for _ in range(3):
        nested.invoke("resume", code=1)
        assert nested.ran() == ["check"]


def test_the_clock_of_a_run_holds_over_its_sessions(place: Place) -> None:
    place.edit("p.yaml", "params: {day: monday}", "params: {day: monday}\nlimits: {timeout: 1h}")
    place.break_("end")
    place.invoke("run", "p.yaml", "--run-id", "r", "-j", "1", code=1)
    place.mend("end")
    # As if it had been killed after two hours.
    place.rewrite("runs", "status = 'running'")
    place.rewrite("sessions", "ended = NULL")
    place.rewrite("step_executions", "ended = 7200", "label = 'sum'")
    began = time.monotonic()
    assert "took longer than its timeout" in place.invoke("resume", code=4).stderr
    assert time.monotonic() - began < 30
    # What ran out of time has a new clock.
    assert place.invoke("resume").stdout == END


# -- from Python ------------------------------------------------------------------------------------------------------


def test_a_pipeline_without_a_file_goes_on_where_it_was_built(place: Place) -> None:
    def one(factor: int) -> int:
        place.tell("one")
        return factor

    def two(one: int) -> int:
        place.tell("two")
        if place.is_broken("two"):
            raise ValueError("no")
        return one + 1

    pipeline = Pipeline("q", params={"factor": 1}, steps=[
        Step("one", one, params={"factor": "${params.factor}"}), Step("two", two, inputs=["one"]),
    ])  # fmt: skip
    place.break_("two")
    with pytest.raises(StoreError, match="there is no state folder"):
        pipeline.resume()
    first = pipeline.run(executor="inline", factor=5)
    assert (first.status, place.ran()) == ("failed", ["one", "two"])
    place.mend("two")
    assert "has no file" in place.invoke("resume", code=2).stderr
    done = pipeline.resume(first.run_id[:-1])
    assert (done.status, done.run_id, done.outputs["two"]) == ("succeeded", first.run_id, 6)
    assert place.ran() == ["two"]
    with pytest.raises(ProcflowError, match="has succeeded"):
        pipeline.resume()
    with pytest.raises(ProcflowError, match="is of q, not of this pipeline"):
        Pipeline("other", steps=[Step("one", one)]).resume(first.run_id)


def test_a_parameter_that_the_journal_can_not_hold_is_asked_for_again(place: Place) -> None:
    def one(values: set[int]) -> int:
        return len(values)

    def two() -> None:
        if place.is_broken("two"):
            raise ValueError("no")

    pipeline = Pipeline("q", params={"values": None}, steps=[
        Step("one", one, params={"values": "${params.values}"}), Step("two", two),
    ])  # fmt: skip
    place.break_("two")
    pipeline.run(executor="inline", values={1, 2})
    place.mend("two")
    with pytest.raises(ProcflowError, match="does not hold the value of values"):
        pipeline.resume()
    assert pipeline.resume(values={1, 2}).outputs["one"] == 2
