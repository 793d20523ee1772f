"""Nothing of a run outlives it: the reaper, the sweep by token, orphans, and other people's children left alone."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import GONE_S, LONG_S, Forked, forked, is_alive, marked, soon
from steps_for_signals import start_daemon

from procflow import Pipeline, Step
from procflow.cli import cli
from procflow.executors import family
from procflow.guarding import reaper as reaper_module
from procflow.guarding import sweep
from procflow.guarding.reaper import Reaper, new_token
from procflow.guarding.sweep import TOKEN_NAME
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder

MODULE = "steps_for_signals"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A token that children of this test bear; what is left with it at the end is killed."""
    made = new_token()
    monkeypatch.setenv(TOKEN_NAME, made)
    yield made
    assert sweep.sweep(made) == []


@pytest.fixture
def reaper(token: str) -> Iterator[Reaper]:
    made = Reaper(token)
    made.start()
    yield made
    made.finish()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def sleeper(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*command, "sleep", "600"], stdin=subprocess.DEVNULL)


# The sweep


def test_a_daemon_that_forked_twice_is_found_by_its_token_and_killed(token: str, tmp_path: Path) -> None:
    daemon = start_daemon(str(tmp_path))
    assert (daemon, False) in sweep.bearers(token)
    assert os.getsid(daemon) != os.getsid(0)
    assert sweep.sweep(token) == []
    assert not is_alive(daemon)


def test_a_process_with_another_token_is_left_alone(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (f"{token}0", token[:-1], ""):
        monkeypatch.setenv(TOKEN_NAME, other)
        with sleeper() as process:
            sweep.sweep(token)
            assert process.poll() is None
            process.kill()


def test_processes_that_start_others_while_they_are_killed_are_all_caught(token: str) -> None:
    # Each waits a little, starts one other, and ends: a hundred, one after the other, six at a time.
    code = (
        "import os, time\n"
        "for _ in range(6):\n"
        "    if os.fork() == 0: break\n"
        "for _ in range(100):\n"
        "    time.sleep(0.002)\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid()\n"
        "time.sleep(60)"
    )
    subprocess.run([sys.executable, "-S", "-c", code], stdin=subprocess.DEVNULL, check=True)
    assert sweep.sweep(token, 10.0) == []
    time.sleep(0.02)
    assert list(sweep.bearers(token)) == []


def looks(monkeypatch: pytest.MonkeyPatch, seen: Iterator[tuple[list[int], set[int]]]) -> list[int]:
    """Have sweeps see these bearers and dark processes, look by look; who is killed."""
    killed: list[int] = []

    def bearers(token: str, dark: set[int]) -> Iterator[tuple[int, bool]]:
        found, unreadable = next(seen)
        dark |= unreadable
        return iter([(pid, False) for pid in found])

    monkeypatch.setattr(sweep, "bearers", bearers)
    monkeypatch.setattr(sweep, "_kill", killed.append)
    return killed


def test_a_process_that_went_dark_meanwhile_may_have_left_another_so_there_is_one_more_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = iter([([], {1}), ([], {1, 2}), ([7], {1, 2}), ([], {1, 7}), ([], {1, 7}), ([9], set())])
    killed = looks(monkeypatch, seen)
    assert sweep.sweep("t") == []
    assert killed == [7]
    assert next(seen) == ([9], set()), "nobody looked any more"


def test_where_processes_of_others_come_and_go_all_the_time_the_looking_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([([], {pid}) for pid in range(1000)])
    looks(monkeypatch, seen)
    assert sweep.sweep("t", 60.0) == []
    assert next(seen) == ([], {sweep.CALM_MOST})


def test_what_bears_the_token_in_its_name_is_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    token = new_token()
    kept, folder = tmp_path / "kept", tmp_path / f"{sweep.prefix(token)}-work"
    kept.mkdir()
    (kept / "file").touch()
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").touch()
    (folder / "link").symlink_to(kept)
    (tmp_path / f"{sweep.prefix(token)}-segment").touch()
    (tmp_path / f"{sweep.prefix(token)}-link").symlink_to(kept)
    assert sweep.remove_left(token, (str(tmp_path), str(tmp_path / "missing"))) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()


def test_the_words_for_the_token_are_the_same_everywhere() -> None:
    assert family.TOKEN_NAME == sweep.TOKEN_NAME
    assert sweep.environment("t") == {TOKEN_NAME: "t"}
    assert new_token() != new_token()


def test_the_reaper_imports_nothing_of_procflow_and_little_else() -> None:
    code = f"import sys; sys.path.append({os.path.dirname(sweep.__file__)!r}); import sweep; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"procflow", "typing", "enum", "re", "signal", "subprocess"} & set(loaded.stdout.split())


# The reaper process


def parent_with_daemon(token: str, folder: Path, before: Callable[[Reaper], None] = lambda reaper: None) -> int:
    """A parent with a reaper, a daemon that bears the token, a segment; it waits to be killed."""
    reaper = Reaper(token)
    reaper.start()
    os.environ[TOKEN_NAME] = token
    daemon = start_daemon(str(folder))
    del os.environ[TOKEN_NAME]
    Path(sweep.SHM, f"{sweep.prefix(token)}-x").touch()
    before(reaper)
    (folder / "pids").write_text(f"{reaper.pid} {daemon}")
    time.sleep(60)
    return 0


def pids(folder: Path) -> list[int]:
    path = folder / "pids"
    assert soon(lambda: path.exists() and path.read_text())
    return [int(pid) for pid in path.read_text().split()]


def test_when_the_parent_is_killed_all_that_bears_the_token_is_gone_within_two_seconds(tmp_path: Path) -> None:
    token = new_token()
    with forked(lambda: parent_with_daemon(token, tmp_path), tmp_path) as child:
        reaper, daemon = pids(tmp_path)
        child.send(signal.SIGKILL)
        child.wait()
        assert soon(lambda: not is_alive(daemon) and not is_alive(reaper), GONE_S)
        assert not Path(sweep.SHM, f"{sweep.prefix(token)}-x").exists()


def test_the_reaper_sees_the_parents_end_even_where_a_fork_holds_the_pipe(tmp_path: Path) -> None:
    def fork(reaper: Reaper) -> None:
        if os.fork() == 0:
            time.sleep(10)
            os._exit(0)

    with forked(lambda: parent_with_daemon(new_token(), tmp_path, fork), tmp_path) as child:
        reaper, daemon = pids(tmp_path)
        child.send(signal.SIGKILL)
        child.wait()
        assert soon(lambda: not is_alive(daemon) and not is_alive(reaper), GONE_S)


def test_a_parent_that_closes_all_its_descriptors_is_not_taken_for_dead(tmp_path: Path) -> None:
    with forked(
        lambda: parent_with_daemon(new_token(), tmp_path, lambda reaper: os.closerange(3, 256)), tmp_path
    ) as child:
        reaper, daemon = pids(tmp_path)
        time.sleep(0.3)
        assert is_alive(daemon)
        assert is_alive(reaper)
        child.send(signal.SIGKILL)
        child.wait()
        assert soon(lambda: not is_alive(daemon) and not is_alive(reaper), GONE_S)


def stand_in(reaper: int | None) -> int:
    """The reaper's stand-in, once it has one."""
    path = Path(f"/proc/{reaper}/task/{reaper}/children")
    seen: list[str] = []

    def look() -> bool:
        seen[:] = path.read_text().split()
        return bool(seen)

    assert soon(look)
    return int(seen[0])


@pytest.mark.parametrize("order", ["parent first", "reaper first"])
def test_with_parent_and_reaper_killed_at_once_the_stand_in_sweeps(tmp_path: Path, order: str) -> None:
    token = new_token()
    with forked(lambda: parent_with_daemon(token, tmp_path), tmp_path) as child:
        reaper, daemon = pids(tmp_path)
        second = stand_in(reaper)
        for pid in (child.pid, reaper) if order == "parent first" else (reaper, child.pid):
            os.kill(pid, signal.SIGKILL)
        child.wait()
        assert soon(lambda: not is_alive(daemon) and not is_alive(second), GONE_S)
        assert not Path(sweep.SHM, f"{sweep.prefix(token)}-x").exists()


def test_a_stand_in_that_is_killed_is_replaced_and_the_reaper_does_its_work(tmp_path: Path) -> None:
    with forked(lambda: parent_with_daemon(new_token(), tmp_path), tmp_path) as child:
        reaper, daemon = pids(tmp_path)
        first = stand_in(reaper)
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: stand_in(reaper) != first)
        second = stand_in(reaper)
        assert is_alive(daemon)
        child.send(signal.SIGKILL)
        child.wait()
        assert soon(lambda: not any(is_alive(pid) for pid in (daemon, reaper, second)), GONE_S)


def test_a_stand_in_whose_reaper_alone_was_killed_sweeps_nothing_and_goes(reaper: Reaper, tmp_path: Path) -> None:
    second, daemon = stand_in(reaper.pid), start_daemon(str(tmp_path))
    assert reaper.pid is not None
    os.kill(reaper.pid, signal.SIGKILL)
    assert select.select([reaper.fileno()], [], [], 5.0)[0]
    time.sleep(0.1)
    assert is_alive(second), "nobody has taken over yet"
    assert reaper.revive()
    assert soon(lambda: not is_alive(second), sweep.ENDING_S + GONE_S)
    assert is_alive(daemon)
    assert is_alive(stand_in(reaper.pid))
    assert soon(lambda: reaper.collect(float("inf")) >= 0 and not os.path.exists(f"/proc/{second}"))


def test_a_stand_in_ends_with_its_reaper_and_is_in_no_group_with_it(token: str) -> None:
    reaper = Reaper(token)
    reaper.start()
    second = stand_in(reaper.pid)
    assert soon(lambda: os.getpgid(second) == second)
    assert reaper.finish() == []
    assert not os.path.exists(f"/proc/{second}")


def test_signals_do_not_end_the_reaper_at_any_moment(reaper: Reaper) -> None:
    assert reaper.pid is not None
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE):
            os.kill(reaper.pid, number)
        assert not reaper.dead()
        time.sleep(0.01)
    assert os.getsid(reaper.pid) == reaper.pid


def test_the_reaper_bears_no_token_and_holds_no_descriptor_of_the_parent(reaper: Reaper) -> None:
    assert reaper.pid not in dict(sweep.bearers(reaper.token))
    links = {os.readlink(f"/proc/{reaper.pid}/fd/{fd}").partition(":")[0] for fd in ("0", "1", "2")}
    assert links == {"pipe", "/dev/null"}
    assert os.readlink(f"/proc/{reaper.pid}/cwd") == "/"
    inherited = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds() if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not {
        os.readlink(f"/proc/{reaper.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{reaper.pid}/fd") if int(fd) > 2
    } & {link for link in inherited if not link.startswith("anon_inode")}


def test_starting_it_costs_less_than_30_milliseconds(token: str) -> None:
    costs = []
    for _ in range(5):
        reaper = Reaper(token)
        begun = time.perf_counter()
        reaper.start()
        costs.append(time.perf_counter() - begun)
        reaper.finish()
    assert min(costs) < 0.03


def test_a_clean_end_leaves_no_process_no_zombie_and_no_descriptor(token: str) -> None:
    before = open_fds()
    seen = []
    for _ in range(5):
        reaper = Reaper(token)
        reaper.start()
        seen.append(reaper.pid)
        assert reaper.finish() == []
        assert reaper.finish() == []
    assert open_fds() == before
    assert not [pid for pid in seen if os.path.exists(f"/proc/{pid}")]


def test_a_killed_reaper_is_noticed_by_its_descriptor_and_started_anew(reaper: Reaper) -> None:
    for _ in range(3):
        first = reaper.pid
        assert first is not None
        assert not select.select([reaper.fileno()], [], [], 0)[0]
        os.kill(first, signal.SIGKILL)
        assert select.select([reaper.fileno()], [], [], 5.0)[0]
        assert reaper.revive()
        assert reaper.pid not in (first, None)
        assert not reaper.revive(), "it lives"


def test_a_reaper_that_is_killed_again_and_again_is_given_up(token: str) -> None:
    said: list[str] = []
    before = open_fds()
    reaper = Reaper(token, say=said.append)
    reaper.start()
    for _ in range(reaper_module.REVIVALS + 1):
        assert reaper.pid is not None
        os.kill(reaper.pid, signal.SIGKILL)
        assert soon(reaper.dead)
        reaper.revive()
    assert reaper.pid is None
    assert reaper.fileno() == -1
    assert said == ["the reaper was killed 11 times; the run goes on without one"]
    assert reaper.finish() == []
    assert open_fds() == before


def test_a_reaper_that_can_not_be_started_is_said_and_harms_nothing(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    before = open_fds()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    reaper = Reaper(token, say=said.append)
    reaper.start()
    assert reaper.pid is None
    assert "can't be started" in said[0]
    assert reaper.finish() == []
    assert open_fds() == before


# Children of this process


def subreaper() -> int:
    value = ctypes.c_int(-1)
    ctypes.CDLL(None).prctl(reaper_module.PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0)
    return value.value


def test_orphans_are_adopted_while_any_run_is_on_and_no_longer(token: str) -> None:
    assert subreaper() == 0
    first, second = Reaper(token), Reaper(token)
    first.start()
    second.start()
    first.finish()
    assert subreaper() == 1
    second.finish()
    assert subreaper() == 0


def test_a_daemon_becomes_our_child_and_is_waited_for(reaper: Reaper, tmp_path: Path) -> None:
    daemon = start_daemon(str(tmp_path))
    assert soon(lambda: parent_of(daemon) == os.getpid())
    reaper.collect(float("inf"))
    os.kill(daemon, signal.SIGKILL)
    assert soon(lambda: reaper.collect(float("inf")) == 1)
    assert not os.path.exists(f"/proc/{daemon}")


def test_an_orphan_that_ended_before_it_was_seen_is_waited_for(reaper: Reaper) -> None:
    code = "import os\nos.setsid()\nif os.fork() == 0: os.write(1, str(os.getpid()).encode()); os._exit(0)\nos._exit(0)"
    orphan = int(subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=True).stdout)
    assert soon(lambda: parent_of(orphan) in (os.getpid(), None))
    assert soon(lambda: reaper.collect(float("inf")) >= 0 and not os.path.exists(f"/proc/{orphan}"))


def test_children_of_the_program_itself_are_not_stolen(reaper: Reaper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_NAME)
    own = [
        subprocess.Popen(["sh", "-c", "exit 7"], stdin=subprocess.DEVNULL, start_new_session=session)
        for session in (False, True)
    ]
    living = sleeper()
    assert soon(lambda: not any(is_alive(process.pid) for process in own))
    for _ in range(3):
        reaper.collect(float("inf"))
    reaper.finish()
    assert [process.wait(LONG_S) for process in own] == [7, 7]
    assert living.poll() is None
    living.kill()
    living.wait(LONG_S)


def test_workers_are_left_to_their_executor(token: str) -> None:
    worker = sleeper()
    reaper = Reaper(token, workers=lambda: {worker.pid})
    reaper.start()
    os.kill(worker.pid, signal.SIGTERM)
    assert soon(lambda: not is_alive(worker.pid))
    assert reaper.collect(float("inf")) == 0
    assert worker.wait(LONG_S) == -signal.SIGTERM
    reaper.finish()


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


# Whole runs


def run_step(function: str, folder: Path, **options: Any) -> Any:
    step = Step("s", f"{MODULE}:{function}", params={"folder": str(folder)}, **options)
    return Pipeline("p", steps=[step]).run(workers=1, state_dir=folder / "s")


def test_a_run_leaves_no_daemon_no_zombie_no_descriptor_and_no_thread(tmp_path: Path) -> None:
    run_step("start_daemon", tmp_path)
    before, threads = open_fds(), threading.active_count()
    daemon = run_step("start_daemon", tmp_path).outputs["s"]
    assert not os.path.exists(f"/proc/{daemon}")
    assert open_fds() == before
    assert threading.active_count() == threads
    assert subreaper() == 0


def test_workers_and_what_they_start_bear_the_token_of_their_run(tmp_path: Path) -> None:
    pipeline = Pipeline("p", steps=[Step("s", f"{MODULE}:environment")])
    tokens = {pipeline.run(workers=1, state_dir=tmp_path).outputs["s"][TOKEN_NAME] for _ in range(2)}
    assert len(tokens) == 2


def reaper_of(child: Forked) -> int | None:
    for pid in marked(child.mark):
        try:
            if b"sweep.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return None


def working(folder: Path) -> int:
    """The worker's pid, once its step is at work."""
    assert soon(lambda: list(folder.glob("working-*")))
    (path,) = folder.glob("working-*")
    return int(path.name.rpartition("-")[2])


def test_a_reaper_killed_during_a_run_is_replaced_and_the_replacement_works(tmp_path: Path) -> None:
    with forked(lambda: run_step("polite", tmp_path).exit_code, tmp_path) as child:
        worker = working(tmp_path)
        first = reaper_of(child)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: reaper_of(child) not in (None, first), 5.0)
        assert is_alive(worker)
        child.send(signal.SIGKILL)
        child.wait()
        assert soon(lambda: not is_alive(worker), 1.0)
        assert child.left() == []


def test_with_nobody_left_the_worker_dies_at_once_and_the_rest_at_the_next_start(tmp_path: Path) -> None:
    with forked(lambda: run_step("stubborn", tmp_path).exit_code, tmp_path) as child:
        worker = working(tmp_path)
        daemon = int((tmp_path / "daemon").read_text())
        reaper = reaper_of(child)
        assert reaper is not None
        second = stand_in(reaper)
        child.send(signal.SIGSTOP)
        os.kill(reaper, signal.SIGSTOP)
        os.kill(second, signal.SIGKILL)
        os.kill(reaper, signal.SIGKILL)
        child.send(signal.SIGKILL)
        child.wait()
        assert soon(lambda: not is_alive(worker), 1.0)
        assert is_alive(daemon), "nobody is there to end it"

        def is_dead_before_the_first_step() -> int:
            result = Pipeline("p", steps=[Step("look", lambda: os.path.exists(f"/proc/{daemon}/environ"))]).run(
                executor="inline", state_dir=tmp_path / "s"
            )
            return int(is_alive(daemon)) + result.exit_code

        with forked(is_dead_before_the_first_step, tmp_path) as second:
            assert second.wait() == 0, second.errors
        assert child.left() == []


def test_history_says_of_a_killed_run_that_it_does_not_go_on(tmp_path: Path) -> None:
    with forked(lambda: run_step("polite", tmp_path).exit_code, tmp_path) as child:
        working(tmp_path)
        child.send(signal.SIGKILL)
        child.wait()
        with History.open(StateFolder.open(tmp_path / "s", create=False)) as history:
            (run,) = history.runs()
        assert run.status != "succeeded"
        assert child.left() == []


# Commands that the parent itself has started, for steps that run in it


@pytest.mark.parametrize("executor", ["threads", "inline"])
def test_a_command_of_a_step_in_the_parent_dies_with_it_and_so_do_its_children(executor: str, tmp_path: Path) -> None:
    command = f"(setsid sleep 611 &); sleep 612 & echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/shell; wait"
    with forked(lambda: run_commands(tmp_path, executor, {"command": command}), tmp_path) as child:
        assert soon((tmp_path / "shell").exists), child.errors
        shell = int((tmp_path / "shell").read_text())
        child.send(signal.SIGKILL)
        child.wait()
        assert child.left() == []
        assert not is_alive(shell)


@pytest.mark.parametrize("executor", ["threads", "inline"])
def test_what_a_command_in_the_parent_leaves_behind_ends_with_the_run(executor: str, tmp_path: Path) -> None:
    command = "setsid sleep 613 > /dev/null 2>&1 &"
    with forked(lambda: run_commands(tmp_path, executor, {"command": command}), tmp_path) as child:
        assert child.wait() == 0, child.errors
        assert child.left() == []


def test_the_exit_code_of_a_command_in_the_parent_is_its_own_while_workers_run_beside_it(tmp_path: Path) -> None:
    steps = [{"command": f"sleep 0.0{i}; exit 3", "ok_codes": [3], "executor": "threads"} for i in range(10)]
    beside = {"command": "sleep 0.4", "executor": "processes"}
    with forked(lambda: run_commands(tmp_path, "threads", beside, *steps), tmp_path) as child:
        assert child.wait() == 0, child.errors


@pytest.mark.parametrize("executor", ["threads", "inline"])
def test_what_a_function_in_the_parent_starts_dies_with_a_run_of_the_command_line(
    executor: str, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(
        f"name: p\nsteps:\n  - {{name: a, function: '{MODULE}:start_and_wait', params: {{folder: {tmp_path}}}}}\n"
    )

    def run() -> int:
        cli.main(["run", str(tmp_path / "p.yaml"), "--executor", executor, "--state-dir", str(tmp_path / "s")])

    with forked(run, tmp_path) as child:
        assert soon((tmp_path / "started").exists), child.errors
        child.send(signal.SIGKILL)
        child.wait()
        assert child.left() == []
        assert not is_alive(int((tmp_path / "started").read_text()))


def run_commands(folder: Path, executor: str, *steps: dict[str, Any]) -> int:
    named: list[dict[str, Any]] = [
        {"executor": executor, **step, "type": "shell", "name": f"c{i}"} for i, step in enumerate(steps)
    ]
    block = {"type": "parallel", "name": "all", "steps": named}
    return Pipeline("p", steps=[block]).run(workers=2, state_dir=folder / "s").exit_code
