"""The state folder: what it refuses, its ids, and locks that die with their holder."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.errors import LockHeld, StoreError
from procflow.storing import state_folder
from procflow.storing.state_folder import RunLock, StateFolder, is_network_mount, is_safe_id, locate, lock_name

HOLD = """
import sys
from procflow.errors import LockHeld
from procflow.storing.state_folder import StateFolder
lock = StateFolder.open(sys.argv[1]).lock("nightly.yaml")
try:
    lock.acquire(sys.argv[2])
except LockHeld:
    print("held", flush=True)
else:
    print("got", flush=True)
    sys.stdin.read()
"""
DEADLINE_S = 30


def hold(folder: StateFolder, run_id: str) -> subprocess.Popen[str]:
    """Another process that takes the lock and keeps it until its stdin closes."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path), run_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder.open(tmp_path / ".procflow")


def test_a_new_folder_is_private_and_ignored_by_git(folder: StateFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert (folder.path / ".gitignore").read_text() == "*\n"
    assert sorted(p.name for p in folder.path.iterdir()) == [".gitignore", "locks", "runs"]
    assert StateFolder.open(folder.path) == folder


def test_a_folder_that_others_can_read_is_made_private(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    folder = StateFolder.open(tmp_path / "state")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_reading_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    StateFolder.open(tmp_path / "state", create=False)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o755
    assert list((tmp_path / "state").iterdir()) == []


def test_a_missing_folder_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no state folder.*--state-dir"):
        StateFolder.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(StoreError, match=rf"{path}: others may write it .*chmod -R go-w"):
        StateFolder.open(path)


@pytest.mark.parametrize("name", ["procflow.db", "runs", "locks"])
def test_an_entry_that_others_can_write_is_refused(folder: StateFolder, name: str) -> None:
    entry = folder.path / name
    if name == "procflow.db":
        entry.touch()
    entry.chmod(0o766)
    with pytest.raises(StoreError, match=rf"{name}: others may write it"):
        StateFolder.open(folder.path)


@pytest.mark.parametrize("create", [True, False])
def test_a_folder_of_somebody_else_is_refused(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StoreError, match=rf"belongs to user {owner}, not to you .*chown"):
        StateFolder.open(folder.path, create=create)


def test_a_symbolic_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("state", "dangling"):
        with pytest.raises(StoreError, match="is a symbolic link"):
            StateFolder.open(tmp_path / name)
    assert list((tmp_path / "target").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["procflow.db", "procflow.db-wal", "writer.lock", "runs", "locks"])
def test_a_symbolic_link_inside_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    (path / name).symlink_to(tmp_path / "canary")
    with pytest.raises(StoreError, match=rf"{re.escape(name)}: is a symbolic link"):
        StateFolder.open(path)
    assert not (tmp_path / "canary").exists()


def test_a_file_in_its_place_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("mine")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        StateFolder.open(tmp_path / "state")
    with pytest.raises(StoreError, match="can't be made"):
        StateFolder.open(tmp_path / "state" / "below")
    assert (tmp_path / "state").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.EROFS, "read-only"), (errno.EACCES, "permissions"), (errno.ENOSPC, "free some space")],
)
def test_a_place_that_cant_be_written_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=rf"{tmp_path}/state: can't be made: .*{hint}"):
        StateFolder.open(tmp_path / "state")


def test_a_folder_on_a_read_only_mount_is_refused_for_writing_only(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match="can't be written"):
        StateFolder.open(folder.path)
    assert StateFolder.open(folder.path, create=False) == folder


def test_run_ids_are_local_time_and_chance_and_name_private_folders(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        run_id = folder.new_run(now=1795226400.0)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert re.fullmatch(r"20261121-110000-[a-z2-7]{3}", run_id)
    assert stat.S_IMODE(folder.run(run_id).stat().st_mode) == 0o700
    assert folder.logs(run_id) == folder.path / "runs" / run_id / "logs"


def test_run_ids_of_one_second_are_distinct(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = iter("aaa" + "aaa" + "aab")
    monkeypatch.setattr(state_folder.secrets, "choice", lambda _: next(letters))
    assert [folder.new_run(now=0.0)[-3:] for _ in range(2)] == ["aaa", "aab"]


def test_when_no_id_is_free_it_says_so(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_folder.secrets, "choice", lambda _: "a")
    folder.new_run(now=0.0)
    with pytest.raises(StoreError, match="no free run id"):
        folder.new_run(now=0.0)


def test_a_given_run_id_is_taken_once(folder: StateFolder) -> None:
    assert folder.new_run("mine") == "mine"
    with pytest.raises(StoreError, match="there is a run of this id already"):
        folder.new_run("mine")


TRAPS = ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b", "a\nb", "%2e%2e/", ".hidden", "a" * 129, "naïve", "a b"]


@pytest.mark.parametrize("text", TRAPS)
def test_an_id_that_is_no_plain_name_never_becomes_a_path(folder: StateFolder, text: str) -> None:
    for use in (folder.run, folder.logs, folder.lock, folder.new_run):
        if use == folder.new_run and not text:
            continue
        with pytest.raises(StoreError, match="can't be a file name"):
            use(text)


@given(st.text(max_size=140))
def test_every_accepted_id_stays_inside_its_folder(text: str) -> None:
    if is_safe_id(text):
        assert os.path.normpath(f"/root/{text}") == f"/root/{text}"
        assert len(os.fsencode(text)) <= 128


@given(st.text(alphabet=st.characters(exclude_characters="/\0"), min_size=1, max_size=300))
def test_every_pipeline_has_a_lock_name_that_is_a_file_name(name: str) -> None:
    assert is_safe_id(lock_name(None, name))


def test_lock_names_are_file_names_and_odd_ones_stay_apart() -> None:
    assert lock_name("/a/b/nightly.yaml", "x") == "nightly.yaml"
    assert lock_name(None, "nightly") == "nightly"
    assert lock_name("my jobs.yaml", "x") != lock_name("my_jobs.yaml", "x") != lock_name("my-jobs.yaml", "x")
    assert lock_name("my jobs.yaml", "x") != lock_name("my\tjobs.yaml", "x")


def test_the_folder_is_the_option_then_the_variable_then_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)
    assert locate() == tmp_path / ".procflow"
    assert locate(None, "sub/nightly.yaml") == tmp_path / "sub" / ".procflow"
    monkeypatch.setenv("PROCFLOW_STATE_DIR", "elsewhere")
    assert locate(None, "sub/nightly.yaml") == tmp_path / "elsewhere"
    assert locate("given", "sub/nightly.yaml") == tmp_path / "given"


MOUNTS = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /home rw,relatime shared:1 - nfs4 server:/home rw,vers=4.2
31 30 0:27 / /home/me/local\040disk rw - xfs /dev/vdb rw
32 22 0:28 / /share rw - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [("/data", False), ("/home/me", True), ("/home/me/local disk/x", False), ("/share", True), ("/homework", False)],
)
def test_network_file_systems_are_known_by_their_mount(path: str, network: bool) -> None:
    assert is_network_mount(Path(path), MOUNTS) is network


def test_the_lock_is_held_once_and_names_its_holder(folder: StateFolder) -> None:
    first, second = folder.lock("nightly.yaml"), folder.lock("nightly.yaml")
    first.acquire("run-1")
    with pytest.raises(
        LockHeld, match=rf"nightly.yaml is running already: pid {os.getpid()}, run run-1, started 20"
    ) as e:
        second.acquire("run-2")
    assert e.value.exit_code == 75
    holder = second.holder()
    assert holder is not None
    assert (holder.pid, holder.run_id) == (os.getpid(), "run-1")
    first.release()
    assert second.holder() is None
    with second:
        second.acquire("run-2")
        assert second.held
    assert not second.held


def test_locks_of_two_pipelines_do_not_meet(folder: StateFolder) -> None:
    with folder.lock("a.yaml") as a, folder.lock("b.yaml") as b:
        a.acquire("1")
        b.acquire("2")
        assert a.held
        assert b.held


def test_the_file_stays_so_that_it_cant_be_locked_twice(folder: StateFolder) -> None:
    lock = folder.lock("a")
    lock.acquire("1")
    before = lock.path.stat().st_ino
    lock.release()
    lock.release()
    assert lock.path.stat().st_ino == before


def test_waiting_ends_at_its_deadline(folder: StateFolder) -> None:
    now = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    with folder.lock("a") as held:
        held.acquire("1")
        with pytest.raises(LockHeld, match="after waiting 10"):
            RunLock(held.path, clock=lambda: now[0], sleep=sleep).acquire("2", wait_s=10)
    assert now[0] == pytest.approx(10)
    assert max(slept) <= 0.25


def test_waiting_gets_the_lock_when_its_holder_ends(folder: StateFolder) -> None:
    other = hold(folder, "theirs")
    try:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "got\n"
        lock = RunLock(folder.lock("nightly.yaml").path, sleep=lambda s: other.stdin.close() or time.sleep(s))  # type: ignore[union-attr,func-returns-value]
        lock.acquire("mine", wait_s=DEADLINE_S)
        assert json.loads(lock.path.read_text())["run_id"] == "mine"
        lock.release()
        other.wait(DEADLINE_S)
    finally:
        other.stdin = None
        end(other)


def test_a_killed_holder_leaves_no_lock(folder: StateFolder) -> None:
    other = hold(folder, "theirs")
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "got\n"
        with pytest.raises(LockHeld, match=rf"pid {other.pid}, run theirs"):
            folder.lock("nightly.yaml").acquire("mine")
        other.send_signal(signal.SIGKILL)
        other.wait(DEADLINE_S)
        with folder.lock("nightly.yaml") as lock:
            assert lock.holder() is None
            lock.acquire("mine")
            assert lock.held
    finally:
        end(other)


def test_of_many_that_start_at_once_one_gets_the_lock(folder: StateFolder) -> None:
    contenders = [hold(folder, f"run-{i}") for i in range(4)]
    try:
        said = [p.stdout.readline().strip() for p in contenders if p.stdout is not None]
    finally:
        for process in contenders:
            end(process)
    assert sorted(said) == ["got", "held", "held", "held"]


def test_a_child_does_not_inherit_the_lock(folder: StateFolder) -> None:
    lock = folder.lock("a")
    lock.acquire("1")
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        lock.release()
        folder.lock("a").acquire("2")
    finally:
        child.kill()
        child.wait(DEADLINE_S)


def test_somebody_who_looks_at_a_lock_does_not_stop_a_start(folder: StateFolder) -> None:
    import fcntl

    lock = folder.lock("a")
    lock.acquire("1")
    lock.release()
    with open(lock.path) as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        RunLock(lock.path, sleep=lambda _: fcntl.flock(probe, fcntl.LOCK_UN)).acquire("2")


def test_a_lock_whose_text_is_damaged_still_holds(folder: StateFolder) -> None:
    lock = folder.lock("a")
    lock.acquire("1")
    lock.path.write_text('{"pid": "x"')
    assert folder.lock("a").holder() is not None
    with pytest.raises(LockHeld, match="another process holds"):
        folder.lock("a").acquire("2")


COMMANDS = [
    *(["history"], ["show"], ["logs"], ["why", "a"], ["report"], ["trace"], ["clean"], ["resume"], ["retry"]),
    *(["diff", "a", "b"], ["recover"], ["doctor"], ["replay", "x", "y"], ["run", "p.yaml"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_refuses_a_file_as_its_state_folder_in_the_same_words(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("name: p\nsteps: [{type: shell, name: a, command: [echo]}]\n")
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "procflow", *command, "--state-dir", "file"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = f"{tmp_path / 'file'}: is a file, not a folder; move it away, or name another with --state-dir"
    assert said in done.stdout + done.stderr
    assert done.returncode == (1 if command == ["doctor"] else 74)
