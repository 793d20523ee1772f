"""Shell: run a command.

Options (trees): ``command``, a list of arguments that is run as it is, or a line for ``/bin/sh -c`` in which every
reference stands as one quoted word (a list as several), so that no value can add to the command; a command that is
one reference as a whole is taken as the value is: a list, or a line. ``env``: variables on top of the worker's, None
removes one. ``cwd``: from the pipeline's folder, which is the default. ``stdin``: text or bytes; without it standard
input is empty. ``parse``: ``text`` (without the last line end), ``lines`` or ``json`` makes stdout the value; without
it stdout goes to the log and the exit code is the value. ``ok_codes``: exit codes that count as success, default 0.

The command runs in the worker's own session and process group, so that whatever ends the worker's tree ends it too.
This file never starts a session of its own and never waits for what a command left running in the background.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from signal import Signals
from threading import current_thread, main_thread
from typing import IO, Any

from procflow.call import StepCall
from procflow.compiling.template import fill, shell_word
from procflow.errors import ProcflowError
from procflow.failure import CommandFailed
from procflow.guarding import here
from procflow.secrets import masked, masker

__all__ = ["CommandError", "run"]

TAIL_BYTES = 4000
"""How much of the end of stderr a failure tells."""
CHUNK_BYTES = 1 << 16
POLL_S = 0.05


class CommandError(ProcflowError):
    """A command can't be started as declared, or its output can't be read as ``parse`` says."""


def run(call: StepCall, values: Callable[[str], Any]) -> Any:
    """Run the command; its parsed stdout, or its exit code. Raises ``CommandFailed`` and ``CommandError``."""
    options = call.options
    argv = _argv(options.get("command"), values)
    parse = fill(options.get("parse"), values)
    codes = fill(options.get("ok_codes"), values) or (0,)
    stdin = _stdin(fill(options.get("stdin"), values))
    cwd = _folder(fill(options.get("cwd"), values), call.folder)
    log = getattr(sys.stderr, "own_log", None)
    env = _environment(fill(options.get("env"), values))
    # In this very process descriptor 1 is not the attempt's, so what comes there is passed on as well.
    process = _start(argv, env, cwd, stdin is not None, parse is not None or log is not None)
    try:
        with _outlive_term():
            stdout, tail = _exchange(process, stdin, log.write if log is not None else _to_stderr, parse is not None)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
    code = process.returncode
    if code not in codes:
        raise _failed(argv, code, tail)
    return _parsed(stdout, parse) if parse is not None else code


@contextmanager
def _outlive_term() -> Iterator[None]:
    """SIGTERM reaches the command too, which may use its grace; only when it has ended does this worker go."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)


def _argv(tree: Any, values: Callable[[str], Any]) -> list[str]:
    command = fill(tree, values, shell_word)
    if isinstance(command, str):
        if not command.strip():
            raise CommandError("the command is empty")
        argv = ["/bin/sh", "-c", command]
    elif isinstance(command, (list, tuple)) and command:
        # In a list nothing is read by a shell, so nothing is quoted.
        argv = [_argument(member, i) for i, member in enumerate(fill(tree, values))]
    else:
        raise CommandError(f"a command is a list of arguments or a line for the shell, not {command!r}")
    for text in argv:
        if "\0" in text:
            raise CommandError(f"a command can't hold a NUL character: {text!r}")
    return argv


def _argument(member: Any, i: int) -> str:
    if isinstance(member, (dict, list, tuple, set)) or member is None:
        raise CommandError(f"argument {i} of the command is {type(member).__name__}; an argument is a text or a number")
    return member.decode(errors="surrogateescape") if isinstance(member, bytes) else str(member)


def _stdin(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, (int, float)):
        return str(value).encode()
    raise CommandError(f"stdin takes text or bytes, not {type(value).__name__}; turn it into text in a step before")


def _folder(cwd: Any, folder: str | None) -> str | None:
    if cwd is None:
        return folder
    path = os.path.join(folder or "", os.path.expanduser(str(cwd)))
    if not os.path.isdir(path):
        raise CommandError(f"cwd: there is no folder {path}")
    return path


def _environment(extra: Mapping[str, Any] | None) -> dict[str, str] | None:
    if not extra:
        return None
    env = dict(os.environ)
    for name, value in extra.items():
        if not name or "=" in name or "\0" in name or "\0" in str(value):
            raise CommandError(f"env: {name!r} can't be set to {value!r}")
        if value is None:
            env.pop(name, None)
        else:
            env[name] = str(value)
    return env


def _start(
    argv: list[str], env: dict[str, str] | None, cwd: str | None, has_stdin: bool, captured: bool
) -> subprocess.Popen[bytes]:
    with suppress(OSError, ValueError, AttributeError):
        # What Python has buffered belongs before what the command writes.
        sys.stdout.flush()
        sys.stderr.flush()
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            argv,
            env=here.environment(env),
            cwd=cwd,
            stdin=pipe if has_stdin else subprocess.DEVNULL,
            stdout=pipe if captured else None,
            stderr=pipe,
            bufsize=0,
        )
    except FileNotFoundError:
        raise CommandError(f"there is no command {argv[0]!r} on the PATH") from None
    except OSError as exc:
        raise CommandError(f"{argv[0]!r} can't be started: {exc.strerror}") from None


def _to_stderr(data: bytes) -> None:
    view = memoryview(data)
    with suppress(OSError):
        while view:
            view = view[os.write(2, view) :]


def _exchange(
    process: subprocess.Popen[bytes], stdin: bytes | None, write: Callable[[bytes], None], collects: bool
) -> tuple[bytes, bytes]:
    """Feed stdin, collect stdout, pass stderr on, until the command is over; stdout and the tail of stderr.

    What does not collect passes stdout on, too, where that comes by a pipe. ``write`` takes what is passed on.

    A process that the command leaves in the background may hold the pipes open for ever, so the end of the command
    counts, not the end of its output.
    """
    collected = bytearray()
    tail = bytearray()
    with selectors.DefaultSelector() as selector:
        for pipe, events in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, selectors.EVENT_READ),
                             (process.stderr, selectors.EVENT_READ)):  # fmt: skip
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, events)
        ended = _watch_end(process, selector)
        try:
            rest = memoryview(stdin or b"")
            if process.stdin is not None and not rest:
                _finish(selector, process.stdin)
            while selector.get_map() and process.poll() is None:
                for key, _ in selector.select(None if ended is not None else POLL_S):
                    ready = key.fileobj
                    if process.stdin is not None and ready is process.stdin:
                        rest = _feed(selector, process.stdin, rest)
                    elif process.stdout is not None and ready is process.stdout and collects:
                        _read(selector, process.stdout, collected)
                    elif process.stdout is not None and ready is process.stdout:
                        write(_read(selector, process.stdout, bytearray()))
                    elif process.stderr is not None and ready is process.stderr:
                        write(_read(selector, process.stderr, tail))
                        del tail[:-TAIL_BYTES]
                if ended is not None and set(selector.get_map()) == {ended}:
                    break
            process.wait()
        finally:
            if ended is not None:
                with suppress(KeyError, ValueError):
                    selector.unregister(ended)
                os.close(ended)
        _drain(process, selector, collected, tail, write)
    if not collects:
        write(bytes(collected))
    return bytes(collected), bytes(tail)


def _watch_end(process: subprocess.Popen[bytes], selector: selectors.BaseSelector) -> int | None:
    """A descriptor that is readable once the process is over, where the system has such."""
    opener = getattr(os, "pidfd_open", None)
    if opener is None:
        return None
    try:
        descriptor: int = opener(process.pid)
    except OSError:
        return None
    selector.register(descriptor, selectors.EVENT_READ)
    return descriptor


def _drain(
    process: subprocess.Popen[bytes],
    selector: selectors.BaseSelector,
    collected: bytearray,
    tail: bytearray,
    write: Callable[[bytes], None],
) -> None:
    """Read what is in the pipes now, without waiting for more; bounded, since a process left behind may go on writing."""
    for _ in range(10_000):
        ready = [key.fileobj for key, _ in selector.select(0) if key.fileobj is not process.stdin]
        if not ready:
            return
        if process.stdout is not None and process.stdout in ready:
            _read(selector, process.stdout, collected)
        if process.stderr is not None and process.stderr in ready:
            write(_read(selector, process.stderr, tail))
            del tail[:-TAIL_BYTES]


def _finish(selector: selectors.BaseSelector, pipe: IO[bytes]) -> None:
    selector.unregister(pipe)
    with suppress(OSError):
        pipe.close()


def _feed(selector: selectors.BaseSelector, pipe: IO[bytes], rest: memoryview) -> memoryview:
    try:
        rest = rest[os.write(pipe.fileno(), rest[:CHUNK_BYTES]) :]
    except BlockingIOError:
        return rest
    except OSError:
        # The command does not want more; that is its business.
        rest = rest[:0]
    if not rest:
        _finish(selector, pipe)
    return rest


def _read(selector: selectors.BaseSelector, pipe: IO[bytes], into: bytearray) -> bytes:
    try:
        data = os.read(pipe.fileno(), CHUNK_BYTES)
    except BlockingIOError:
        return b""
    if not data:
        _finish(selector, pipe)
    into += data
    return data


def _failed(argv: list[str], code: int, tail: bytes) -> CommandFailed:
    name = argv[2] if argv[:2] == ["/bin/sh", "-c"] else argv[0]
    shown = name.strip().splitlines()[0] if name.strip() else name
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if code < 0:
        try:
            ending = f"died by {Signals(-code).name} ({-code})"
        except ValueError:
            ending = f"died by signal {-code}"
    else:
        ending = f"ended with exit code {code}"
    mask = masker()
    if mask is not None:
        tail = mask.cut(tail)
    text = tail.decode(errors="backslashreplace").strip()
    lines = "\n".join(text.splitlines()[-20:])
    message = f"{shown} {ending}" + (f"; the end of its stderr:\n{lines}" if lines else "; it wrote nothing to stderr")
    return CommandFailed(message, code if code >= 0 else None, -code if code < 0 else None)


def _parsed(stdout: bytes, parse: str) -> Any:
    try:
        text = stdout.decode()
    except UnicodeDecodeError as exc:
        raise CommandError(f"stdout is not UTF-8 text: byte 0x{stdout[exc.start]:02x} at {exc.start}") from None
    if parse == "text":
        return text.removesuffix("\n")
    if parse == "lines":
        return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    if parse == "json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as exc:
            text = masked(text)
            shown = text[:200] + ("..." if len(text) > 200 else "")
            raise CommandError(f"stdout is not JSON ({exc}): {shown!r}") from None
    raise CommandError(f"parse is text, lines or json, not {parse!r}")
