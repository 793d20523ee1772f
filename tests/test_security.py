"""Security: nothing is unpickled, written or run because somebody else prepared a file, a name or a text (F88 to F95).

Secrets have tests of their own (``test_secrets.py``).
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import procflow
from procflow import Map, Pipeline, PipelineError, Sequence, Shell, Step, StoreError
from procflow.launch import launch
from procflow.showing.progress import LineProgress
from procflow.showing.progress_json import JsonProgress
from procflow.storing.attempt_log import LogFolder, log_path
from procflow.storing.failures_file import FailuresFile
from procflow.storing.history import History
from procflow.storing.own_files import check_own, check_own_folder, open_own
from procflow.storing.state_folder import RunLock, StateFolder, is_safe_id, lock_name

PACKAGE = Path(procflow.__file__).parent
PRECIOUS = b"precious\n"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def one(given: object = 1) -> object:
    print("some output")
    return given


def bad(given: object = 1) -> object:
    print("some output")
    raise ValueError("no")


def pipeline() -> Pipeline:
    return Pipeline("p", steps=[Step("a", one), Step("b", bad, on_error="continue")])


def a_run(folder: Path, run_id: str = "r1") -> Path:
    """A run that left everything: a journal, logs, failures."""
    launch(pipeline(), state_dir=folder, executor="inline", run_id=run_id)
    return folder / "runs" / run_id


# -- F89: what others can write is not read ----------------------------------------------------------------------------

OURS = ["", "procflow.db", "writer.lock", "locks", "runs"]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("create", [True, False])
def test_a_folder_that_others_can_write_is_not_opened(tmp_path: Path, name: str, mode: int, create: bool) -> None:
    state = tmp_path / "state"
    a_run(state)
    path = state / name
    path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)
    with pytest.raises(StoreError, match="others may write it") as caught:
        StateFolder.open(state, create=create)
    assert str(path) in str(caught.value)
    assert f"chmod -R go-w {path}" in str(caught.value)


@pytest.mark.parametrize("name", OURS)
def test_a_folder_of_another_user_is_not_opened(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    a_run(state)
    owner = os.stat(state / name).st_uid
    real = os.lstat

    def foreign(path: Any, **options: Any) -> os.stat_result:
        found = real(path, **options)
        return _owned_by(found, owner + 1) if Path(path) == state / name else found

    monkeypatch.setattr("pathlib.Path.lstat", lambda self: foreign(self))
    with pytest.raises(StoreError, match=rf"belongs to user {owner + 1}, not to you \(user {owner}\)"):
        StateFolder.open(state, create=False)


def _owned_by(found: os.stat_result, uid: int) -> os.stat_result:
    return os.stat_result((*found[:4], uid, *found[5:10]))


@pytest.mark.parametrize("name", ["", "logs"])
def test_a_runs_folder_that_others_can_write_is_not_used_again(tmp_path: Path, name: str) -> None:
    run = a_run(tmp_path / "state")
    folder = StateFolder.open(tmp_path / "state")
    assert folder.open_run("r1") == run
    (run / name).chmod(0o777)
    with pytest.raises(StoreError, match="others may write it"):
        folder.open_run("r1")
    with pytest.raises(StoreError, match="the folder of this run is gone"):
        folder.open_run("r2")


class Trap:
    """A pickle that runs a command where it is opened."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, ("touch pwned",))


def test_a_pickle_in_a_journal_that_others_can_write_is_never_opened(tmp_path: Path) -> None:
    state = tmp_path / "state"
    a_run(state)
    from procflow.ref import Inline
    from procflow.storing.store_refs import encode_ref

    trap = encode_ref(Inline(pickle.dumps(Trap())))

    with closing(sqlite3.connect(state / "procflow.db", isolation_level=None)) as db:
        assert db.execute("UPDATE step_executions SET refs = ? WHERE refs IS NOT NULL", (trap,)).rowcount == 1
    (state / "procflow.db").chmod(0o666)
    with pytest.raises(StoreError, match="others may write it"):
        History.open(StateFolder.open(state, create=False))
    with pytest.raises(StoreError, match="others may write it"):
        a_run(state, "r2")
    assert not (tmp_path / "pwned").exists()


def test_a_reference_with_code_in_it_is_not_even_a_reference() -> None:
    import zlib

    from procflow.storing.store_refs import decode_ref

    body = pickle.dumps(Trap())
    with pytest.raises(StoreError, match="has no place in a ref"):
        decode_ref(b"R1" + zlib.crc32(body).to_bytes(4, "little") + body)
    assert not Path("pwned").exists()


def test_nothing_of_a_run_is_open_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        a_run(tmp_path / "state")
        launch(pipeline(), state_dir=tmp_path / "state", executor="inline")
        with closing(sqlite3.connect(tmp_path / "state" / "procflow.db")) as db:
            db.execute("SELECT count(*) FROM runs").fetchone()
            modes = {p: stat.S_IMODE(p.lstat().st_mode) for p in (tmp_path / "state", *(tmp_path / "state").rglob("*"))}
    finally:
        os.umask(before)
    names = {path.name for path in modes}
    assert names > {"procflow.db", "procflow.db-wal", "writer.lock", "failures.jsonl", "1.log", "logs", "locks", "r1"}
    for path, mode in modes.items():
        assert not mode & 0o077, f"{path} has mode {mode:o}"


# -- F90: links planted in advance -------------------------------------------------------------------------------------

FILES = [
    *("procflow.db", "procflow.db-wal", "procflow.db-shm", "procflow.db-journal", "procflow.db.new", "writer.lock"),
    *(".gitignore", "locks/p", "locks/.p.lease"),
]


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("name", FILES)
def test_a_link_at_any_name_leads_nothing_elsewhere(tmp_path: Path, name: str, link: Callable[..., None]) -> None:
    target, state = tmp_path / "target", tmp_path / "state"
    target.write_bytes(PRECIOUS)
    target.chmod(0o600)
    (state / name).parent.mkdir(mode=0o700, parents=True)
    state.chmod(0o700)
    link(target, state / name)
    said = str(state / name)
    try:
        a_run(state)
    except StoreError as error:
        said = str(error)
    assert str(state / name) in said
    assert target.read_bytes() == PRECIOUS
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", "locks", "runs", "runs/r1"])
def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    target, state = tmp_path / "target", tmp_path / "state"
    target.mkdir(mode=0o700)
    (state / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / name).symlink_to(target)
    with pytest.raises(StoreError, match=r"is a symbolic link|there is a run of this id already"):
        a_run(state)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["logs", "logs/a", "logs/a/1.log", "failures.jsonl", "failures.jsonl.new"])
@pytest.mark.parametrize("hard", [False, True])
def test_a_link_in_the_folder_of_a_run_that_goes_on_leads_nothing_elsewhere(
    tmp_path: Path, name: str, hard: bool
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / name).parent.mkdir(mode=0o700, parents=True)
    is_folder = not Path(name).suffix
    if is_folder and hard:
        return
    outside.mkdir(mode=0o700)
    target = outside if is_folder else outside / "target"
    if not is_folder:
        target.write_bytes(PRECIOUS)
        target.chmod(0o600)
    (os.link if hard else os.symlink)(target, run / name)
    logs = LogFolder(run)
    log = logs.open("a", "", 1)
    log.write(b"output\n")
    log.close()
    failures = FailuresFile(run)
    from procflow.attempt import Failure
    from procflow.events import RunFinished, RunStarted, StepFinished

    failures.handle(RunStarted(0.0, "r", "p", 1))
    failures.handle(StepFinished(0.1, "0", "a", "", "failed", 1, (), Failure("error", "E", "m")))
    failures.handle(RunFinished(0.2, "r", "failed", 1, 0, 1.0, 1.0))
    assert [path.read_bytes() for path in outside.rglob("*")] == ([] if is_folder else [PRECIOUS])
    if name.startswith("logs"):
        assert logs.trouble is not None
        assert re.search("is a symbolic link|hard links|Too many levels|Not a directory", logs.trouble)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "hard link", "writable"])
def test_only_a_plain_file_of_ours_is_opened_and_nothing_is_waited_for(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(PRECIOUS)
    if kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir(mode=0o700)
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "hard link":
        path.hardlink_to(other)
    else:
        path.write_bytes(PRECIOUS)
        path.chmod(0o666)
    for flags in (os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
        with pytest.raises((StoreError, OSError)):
            open_own(path, flags)
    assert other.read_bytes() == PRECIOUS
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises((StoreError, OSError)):
        RunLock(path).acquire("r")
    assert len(os.listdir("/proc/self/fd")) == fds


def test_what_is_ours_passes(tmp_path: Path) -> None:
    os.close(open_own(tmp_path / "new", os.O_RDWR | os.O_CREAT))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    check_own(tmp_path / "new", (tmp_path / "new").lstat())
    check_own_folder(tmp_path / "absent")
    with pytest.raises(StoreError, match="is no folder"):
        check_own_folder(tmp_path / "new")


# -- F92: no value becomes SQL -----------------------------------------------------------------------------------------

MAKERS = {"expression"}
"""Functions whose result is SQL made of names of our own tables and columns."""


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _bindings(function: ast.FunctionDef, name: str) -> Iterator[ast.expr]:
    """The expressions that give a local name its value; of a loop over tuples, the member at its place."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    yield node.value
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    yield from (v for t, v in zip(target.elts, node.value.elts, strict=True) if ast.unparse(t) == name)
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name) and node.target.id == name:
            yield node.iter
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Tuple):
            for place, target in enumerate(node.target.elts):
                if isinstance(target, ast.Name) and target.id == name:
                    rows = node.iter.elts if isinstance(node.iter, ast.Tuple) else []
                    yield from (
                        row.elts[place] if isinstance(row, ast.Tuple) else node.iter for row in rows or [node.iter]
                    )


def _fixed(part: ast.expr, function: ast.FunctionDef | None, open_names: set[str], depth: int = 0) -> bool:
    """Whether the text is made of constants alone; parameters of ``function`` it needs are added to ``open_names``."""
    again = lambda *parts: all(_fixed(p, function, open_names, depth + 1) for p in parts)  # noqa: E731
    if depth > 10:
        return False
    if isinstance(part, ast.Constant):
        return True
    if isinstance(part, (ast.Name, ast.Attribute)):
        name = part.id if isinstance(part, ast.Name) else part.attr
        if name.strip("_").isupper():
            return True
        found = list(_bindings(function, name)) if function is not None and isinstance(part, ast.Name) else []
        if not found and function is not None and name in {a.arg for a in function.args.args}:
            open_names.add(name)
            return True
        return bool(found) and again(*found)
    if isinstance(part, ast.JoinedStr):
        return again(*part.values)
    if isinstance(part, (ast.Tuple, ast.List)):
        return again(*part.elts)
    if isinstance(part, (ast.FormattedValue, ast.Starred)):
        return again(part.value)
    if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add):
        return again(part.left, part.right)
    if isinstance(part, ast.IfExp):
        return again(part.body, part.orelse)
    if isinstance(part, ast.Subscript):
        return again(part.value)
    if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr == "join":
        return again(part.func.value, *part.args)
    return isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in MAKERS


def _unfixed_sql(sources: dict[str, str]) -> list[str]:
    """Calls that pass SQL which is not made of constants, through any number of functions."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    sinks: dict[str, set[int]] = {"execute": {0}, "executemany": {0}, "executescript": {0}}
    found: set[str] = set()
    for _ in range(6):
        known = {name: set(places) for name, places in sinks.items()}
        for file, tree in trees.items():
            functions = _functions(tree)
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                inside = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
                function = min(inside, key=lambda f: (f.end_lineno or 0) - f.lineno, default=None)
                for place in known.get(name, ()):
                    _judge(file, call, place, function, sinks, found)
        if sinks == known:
            break
    return sorted(found)


def _judge(
    file: str, call: ast.Call, place: int, function: ast.FunctionDef | None, sinks: dict[str, set[int]], found: set[str]
) -> None:
    if place >= len(call.args):
        return
    open_names: set[str] = set()
    if not _fixed(call.args[place], function, open_names):
        found.add(f"{file}:{call.lineno}: {ast.unparse(call.args[place])}")
    elif function is not None and open_names:
        names = [a.arg for a in function.args.args if a.arg != "self"]
        sinks.setdefault(function.name, set()).update(names.index(name) for name in open_names)


def test_no_sql_is_made_of_values() -> None:
    # The journal's; what is asked of the user's own sources is the user's SQL, with bound values (test_sources.py).
    paths = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "sources"]
    sources = {path.name: path.read_text() for path in paths if "execute" in path.read_text()}
    assert {"store.py", "history.py", "store_schema.py"} <= sources.keys()
    # Made of names of tables and columns that stand in the code: of a loop over TABLES, of the table that is written.
    of_names = {"recovery.py": 1, "salvage.py": 2, "store_learned.py": 1}
    found = _unfixed_sql(sources)
    files = [place.partition(":")[0] for place in found]
    assert {file: files.count(file) for file in files} == of_names, found


@pytest.mark.parametrize(
    "source",
    [
        'def f(db, x):\n    x = input()\n    db.execute(f"SELECT {x}")',
        'def f(db, x):\n    db.execute("SELECT %s" % g(x))',
        'def f(db):\n    db.execute("SELECT " + g())',
        'def f(db):\n    db.execute("SELECT {}".format(g()))',
        'def f(db, x):\n    db.execute(f"SELECT {x}")\ndef h(db, row):\n    f(db, row.label)',
        'def f(db, x):\n    sql = f"SELECT {x}"\n    db.execute(sql)\ndef h(db):\n    f(db, g())',
        "class C:\n    def f(self, sql):\n        self.db.execute(sql)\n    def h(self):\n        self.f('SELECT' + g())",
    ],
)
def test_sql_made_of_values_would_be_seen(source: str) -> None:
    assert len(_unfixed_sql({"x.py": source})) == 1


QUOTES = ["'; DROP TABLE runs; --", '"', "\\", "%s ? :a", "\0", "$x", "'" * 50]


def test_texts_full_of_quotes_come_back_as_they_were(tmp_path: Path) -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    steps = Map("m", fail, items=QUOTES, tolerate="100%")
    run = Pipeline("p", steps=[steps], params={"odd": "x"}).run(
        executor="inline", state_dir=tmp_path / "s", odd={"k'": QUOTES}
    )
    assert [f.failure.message for f in run.failures] == QUOTES
    with History.open(StateFolder.open(tmp_path / "s", create=False)) as past:
        (row,) = past.runs()
        assert row.params == {"odd": {"k'": QUOTES}}
        assert row.run_id == run.run_id
        messages = {step.message for step in past.steps(run.run_id)}
    assert messages >= {f"ValueError: {text}" for text in QUOTES}


# -- F93: no name leads out of its folder ------------------------------------------------------------------------------

OUT = [
    "../../x",
    "..",
    ".",
    "/etc/passwd",
    "%2e%2e%2fx",
    "a/../../x",
    "a\0b",
    "a\nb",
    "~root",
    "C:\\x",
    "x" * 300,
    "é",
    "",
]


@pytest.mark.parametrize("name", OUT)
def test_a_run_id_that_is_no_plain_name_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    state = tmp_path / "state"
    if name == "":
        assert launch(pipeline(), state_dir=state, executor="inline", run_id=name).run_id, "one is made"
        return
    with pytest.raises(StoreError, match="can't be a file name"):
        a_run(state, name)
    assert not (state / "runs").exists() or list((state / "runs").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"state"}


@pytest.mark.parametrize("name", [n for n in OUT if n != ""])
def test_a_step_or_pipeline_with_such_a_name_is_refused(name: str) -> None:
    with pytest.raises(PipelineError):
        Step(name, one)
    with pytest.raises(PipelineError):
        Pipeline(name, steps=[Step("a", one)])


@given(label=st.text(max_size=300), item=st.text(max_size=300), number=st.integers(1, 10**6))
@settings(max_examples=300, deadline=None)
def test_the_log_of_any_label_and_item_lies_beneath_its_run(label: str, item: str, number: int) -> None:
    path = Path("/run") / log_path(label, item, number)
    assert os.path.normpath(path) == str(path)
    assert path.parts[:3] == ("/", "run", "logs")
    assert len(path.parts) <= 5
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", part) and part[0] != "." for part in path.parts[3:])


@given(file=st.one_of(st.none(), st.text(min_size=1, max_size=300).filter(lambda t: "\0" not in t)), name=st.text())
@settings(max_examples=300, deadline=None)
def test_the_lock_of_any_file_is_a_plain_name(file: str | None, name: str) -> None:
    assert is_safe_id(lock_name(file, name))


# -- F94: no value becomes a command or a condition --------------------------------------------------------------------

COMMANDS = [
    "a; echo pwned",
    "$(id)",
    "`id`",
    "a\nid",
    "&& id",
    "| id",
    "> x",
    "'; id; '",
    '"; id; "',
    "$HOME",
    "*",
    "\\",
]


@pytest.mark.parametrize("text", COMMANDS)
def test_a_text_stays_one_word_of_a_command_wherever_it_comes_from(tmp_path: Path, text: str) -> None:
    line = "printf '<%s>' {} end"
    steps = [
        Shell("param", line.format("${params.x}"), parse="text"),
        Shell("inside", line.format("pre-${params.x}-post"), parse="text"),
        Step("make", one, params={"given": text}),
        Shell("value", line.format("${make}"), parse="text"),
        Shell("words", ["printf", "<%s>", "${params.x}", "${make}"], parse="text"),
        Shell("by_env", "printf '<%s>' \"$X\"", env={"X": "${params.x}"}, parse="text"),
        Map("each", Shell("item", line.format("${item}"), parse="text"), items=[text]),
        Sequence("below", Shell("s", line.format("${params.x}"), parse="text")),
    ]
    done = Pipeline("p", steps=steps, params={"x": {"required": True}}).run(executor="inline", x=text)
    assert done.ok, done.failures
    word = f"<{text}>"
    assert done.outputs["param"] == done.outputs["value"] == done.outputs["s"] == f"{word}<end>"
    assert done.outputs["each"] == [f"{word}<end>"]
    assert done.outputs["inside"] == f"<pre-{text}-post><end>"
    assert done.outputs["words"] == f"{word}{word}"
    assert done.outputs["by_env"] == word
    assert {path.name for path in tmp_path.iterdir()} == {".procflow"}


def test_an_environment_variable_stays_one_word_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "a; echo pwned")
    done = Pipeline("p", steps=[Shell("s", "printf '<%s>' ${env.ODD}", parse="text")]).run(executor="inline")
    assert done.outputs["s"] == "<a; echo pwned>"


@pytest.mark.parametrize(
    "text", ["' == '' or 'x' == 'x", "${params.y}", "True", "__import__('os').system('touch pwned')"]
)
def test_a_value_is_never_read_as_a_part_of_a_condition(text: str) -> None:
    step = Step("a", one, when="${params.x} == 'wanted'")
    done = Pipeline("p", steps=[step], params={"x": "", "y": "wanted"}).run(executor="inline", x=text)
    assert done.steps["a"].status == "skipped"
    assert not Path("pwned").exists()


def test_a_condition_reads_what_a_reference_means_where_it_stands() -> None:
    make = Step("make", dict, params={"n": 5}, output="data")
    yes = Step("yes", one, when="${make.output.n} > 3 and ${params.low} < ${make.output.n}")
    no = Step("no", one, when="${make.output.n} > 7")
    block = Sequence("block", Step("inner", one), when="${make.output.n} == 5")
    done = Pipeline("p", steps=[make, yes, no, block], params={"low": 1}).run(executor="inline")
    assert {name: record.status for name, record in done.steps.items() if name in ("yes", "no")} == {
        "yes": "succeeded", "no": "skipped",
    }  # fmt: skip
    assert done.outputs["inner"] == 1


# -- F95: no text drives a terminal or forges a line -------------------------------------------------------------------

FORGED = (
    "\x1b[2J\x1b]0;title\x07\r2026-11-21T00:00:00Z run r1 succeeded\n\u2028\u2029\u202eevil\u200b\x9b31m\x00\x7f\ufeff"
)
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


def forge(item: str) -> None:
    print(item)
    odd = type(f"Odd{FORGED}", (Exception,), {})
    error = odd(item)
    if hasattr(error, "add_note"):
        error.add_note(item)
    raise error


def test_what_a_run_shows_is_safe_line_by_line_whatever_its_steps_say() -> None:
    lines: list[str] = []
    objects: list[str] = []
    steps = [
        Map("m", forge, items=[FORGED] * 2, tolerate="100%"),
        Step("a", forge, params={"item": FORGED}, retry={"retries": 1, "delay": 0}),
    ]
    observers = [LineProgress(lines.append), JsonProgress(objects.append)]
    done = Pipeline("p", steps=steps).run(executor="inline", observers=observers)
    assert done.status == "failed"
    assert any("FAILED step 1 (a) after 2 attempts" in line for line in lines)
    assert any("log " in line for line in lines)
    for line in lines:
        assert not UNSAFE.search(line), repr(line)
        assert not line.startswith("2026-11-21T00:00:00Z run r1 succeeded")
    assert len(lines) > 10
    for text in objects:
        assert text.isascii()
        assert "\n" not in text
        assert json.loads(text)["event"]
    (failures,) = Path(".procflow").glob("runs/*/failures.jsonl")
    data = failures.read_bytes()
    assert data.count(b"\n") == 3
    assert not UNSAFE.search(data.decode("ascii").replace("\n", ""))


def test_problems_of_a_hostile_file_are_told_on_safe_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from procflow.cli import cli

    text = 'name: p\nsteps:\n  - {name: a, function: "os:getpid", "od\\e[2Jd\\u202e\\n2026": 1}\n  - {type: "x\\e[1m\\r"}\n'
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "p.yaml"])
    shown = capsys.readouterr()
    assert end.value.code == 2
    assert "unknown key" in shown.err
    assert all(not UNSAFE.search(line) for line in (shown.out + shown.err).split("\n"))
