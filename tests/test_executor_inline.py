"""The inline executor keeps the contract, in the calling thread."""

from __future__ import annotations

import os
import select
import threading

import pytest
from executor_contract import ExecutorContract, attempt, finish, run, value

from procflow.errors import ExecutorError
from procflow.executors.inline import InlineExecutor


class TestInlineExecutor(ExecutorContract):
    def make_executor(self, slots: int) -> InlineExecutor:
        return InlineExecutor()


def test_a_step_runs_in_the_calling_thread() -> None:
    with InlineExecutor() as executor:
        ended = run(executor, attempt(1, "pid"), attempt(2, threading.get_ident))
    assert (value(ended[1]), value(ended[2])) == (os.getpid(), threading.get_ident())


def test_the_descriptor_is_readable_while_an_attempt_waits_to_be_run() -> None:
    with InlineExecutor() as executor:
        assert select.select([executor], [], [], 0)[0] == []
        executor.submit(attempt(1, "double", 1))
        assert select.select([executor], [], [], 0)[0] == [executor]
        finish(executor)
        assert select.select([executor], [], [], 0)[0] == []


def test_a_second_attempt_at_a_time_is_refused() -> None:
    with InlineExecutor() as executor:
        executor.submit(attempt(1, "double", 1))
        with pytest.raises(ExecutorError, match="one attempt"):
            executor.submit(attempt(2, "double", 1))
