"""Failures: an exception zoo becomes data, and deaths are told clearly."""

from __future__ import annotations

import pickle
import signal
from typing import Any

import pytest

from procflow import failure as failure_module
from procflow.attempt import Failure
from procflow.call import StepCall
from procflow.failure import CommandFailed, failure_from, lost_failure
from procflow.working.perform import perform


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("only one")


class BadStr(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class ExitStr(Exception):
    def __str__(self) -> str:
        raise SystemExit(9)


class BadRepr(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class ExitsWhenRebuilt(Exception):
    def __reduce__(self) -> Any:
        return (_exit, ())


def _exit() -> None:
    raise SystemExit(7)


def failed(function: Any) -> Failure:
    outcome = perform(StepCall("transform", "0", "f", function=function), {})
    assert type(outcome).__name__ == "Failed"
    return outcome.failure  # type: ignore[union-attr]


def raising(exc: BaseException) -> Any:
    def step() -> None:
        raise exc

    return step


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError, StopIteration]
)
def test_whatever_a_step_raises_is_a_failure(kind: type[BaseException]) -> None:
    failure = failed(raising(kind("why")))
    assert failure.cause == "error"
    assert failure.type == kind.__name__
    assert failure.message == "why"
    assert failure.kinds[0] == kind.__name__
    assert not {"BaseException", "object"} & set(failure.kinds)


def test_an_exception_that_cannot_be_rebuilt_arrives_as_text_only() -> None:
    failure = failed(raising(TwoArguments(1, 2)))
    assert failure.message == "only one"
    assert failure.type == f"{__name__}.TwoArguments"
    assert failure.kinds == ("TwoArguments", "Exception")
    assert failure.exception is None


def test_an_exception_that_can_be_rebuilt_comes_along() -> None:
    failure = failed(raising(KeyError("a", 3)))
    assert failure.exception is not None
    rebuilt = pickle.loads(failure.exception)
    assert type(rebuilt) is KeyError
    assert rebuilt.args == ("a", 3)


@pytest.mark.parametrize("exc", [BadRepr("m"), ExitsWhenRebuilt("m")])
def test_a_hostile_pickle_of_an_exception_is_left_behind(exc: BaseException) -> None:
    failure = failed(raising(exc))
    assert failure.exception is None
    assert failure.message == "m"


@pytest.mark.parametrize(("exc", "name"), [(BadStr(), "ValueError"), (ExitStr(), "SystemExit")])
def test_a_str_that_raises_is_survived(exc: BaseException, name: str) -> None:
    failure = failed(raising(exc))
    assert failure.message == f"<no message: its __str__ raised {name}>"
    assert type(exc).__name__ in failure.traceback


def test_a_huge_message_is_bounded_everywhere() -> None:
    failure = failed(raising(ValueError("x" * 100_000_000)))
    assert len(failure.message) < 10_200
    assert "characters left out" in failure.message
    assert len(failure.traceback) < 70_000
    assert failure.exception is None


def test_surrogates_and_nuls_can_be_written_to_a_file() -> None:
    failure = failed(raising(ValueError("a\udc80b\0c")))
    assert failure.message.encode() == b"a\\udc80b\0c"
    assert failure.traceback.encode()


def test_causes_come_first_and_cycles_end() -> None:
    first, second = ValueError("first"), RuntimeError("second")

    def step() -> None:
        try:
            raise first
        except ValueError:
            raise second from first

    first.__cause__ = second
    failure = failed(step)
    assert failure.traceback.index("ValueError: first") < failure.traceback.index("RuntimeError: second")
    assert "direct cause" in failure.traceback
    assert failure.type == "RuntimeError"


def test_context_is_told_and_from_none_hides_it() -> None:
    def handled() -> None:
        try:
            raise ValueError("inner")
        except ValueError:
            raise RuntimeError("outer")  # noqa: B904

    def hidden() -> None:
        try:
            raise ValueError("inner")
        except ValueError:
            raise RuntimeError("outer") from None

    assert "ValueError: inner" in failed(handled).traceback
    assert "inner" not in failed(hidden).traceback


def test_notes_are_told() -> None:
    exc = ValueError("m")
    exc.__notes__ = ["look at row 3", 5]
    text = failed(raising(exc)).traceback
    assert "look at row 3" in text


def test_the_traceback_has_the_users_frames_only() -> None:
    def inner() -> None:
        pickle.loads(b"garbage")

    def step() -> None:
        inner()

    failure = failed(step)
    assert "in step" in failure.traceback
    assert "in inner" in failure.traceback
    assert "perform.py" not in failure.traceback
    assert "transform.py" not in failure.traceback
    assert failure.user_place.startswith(__file__ + ":")
    assert int(failure.user_place.rpartition(":")[2]) == inner.__code__.co_firstlineno + 1


def test_async_steps_show_no_event_loop() -> None:
    async def step() -> None:
        raise ValueError("m")

    text = failed(step).traceback
    assert "in step" in text
    assert "asyncio" not in text


def test_deep_recursion_gives_a_bounded_traceback() -> None:
    def step(n: int = 0) -> None:
        step(n + 1)

    failure = failed(step)
    assert failure.type == "RecursionError"
    assert "left out" in failure.traceback
    assert len(failure.traceback) < 70_000


def test_an_error_in_what_a_step_is_given_has_no_traceback_of_procflow() -> None:
    outcome = perform(StepCall("transform", "0", "f", function="no_such_module_here:f"), {})
    failure = outcome.failure  # type: ignore[union-attr]
    assert failure.type == "FunctionError"
    assert "procflow/" not in failure.traceback


def test_a_command_that_failed_tells_its_code() -> None:
    assert failure_from(CommandFailed("m", 3)).exit_code == 3
    assert failure_from(CommandFailed("m", None, 9)).signal == 9


def test_the_making_of_a_traceback_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(exc: BaseException) -> str:
        raise OSError("source is gone")

    monkeypatch.setattr(failure_module, "_traceback_text", broken)
    assert failed(raising(ValueError("m"))).traceback == "<no traceback: OSError>"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"cause": "crash", "signal": signal.SIGSEGV}, "worker died: SIGSEGV (11)"),
        ({"cause": "crash", "exit_code": -11}, "worker died: SIGSEGV (11)"),
        ({"cause": "crash", "exit_code": 0}, "worker died: exit code 0 without a result"),
        ({"cause": "crash", "exit_code": 3}, "worker died: exit code 3"),
        ({"cause": "crash"}, "worker died"),
        ({"cause": "timeout", "timeout_s": 600.0, "signal": 9}, "stopped: timed out after 10m 00s"),
        ({"cause": "idle", "timeout_s": 600.0}, "stopped: no heartbeat or progress for 10m 00s"),
        ({"cause": "cancelled"}, "stopped: its result is no longer needed"),
        (
            {"cause": "oom", "peak_rss_bytes": 900 << 20, "memory_bytes": 500 << 20},
            "stopped: used too much memory, peak memory 900 MiB, limit 500 MiB",
        ),
        ({"cause": "spawn", "exit_code": 1, "detail": "no"}, "no worker could be started: it ended by exit code 1; no"),
        ({"cause": "crash", "signal": 200}, "worker died: signal (200)"),
    ],
)  # fmt: skip
def test_deaths_are_told(arguments: dict[str, Any], says: str) -> None:
    failure = lost_failure(**arguments)
    assert failure.message == says
    assert failure.cause == arguments["cause"]


def test_sigkill_points_to_memory() -> None:
    failure = lost_failure("crash", signal=9, peak_rss_bytes=310 << 20)
    assert failure.message.startswith("worker died: SIGKILL (9), peak memory 310 MiB; SIGKILL often means")
    assert (failure.signal, failure.exit_code, failure.peak_rss_bytes) == (9, None, 310 << 20)
