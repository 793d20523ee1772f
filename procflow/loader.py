"""Loader: a pipeline file into a ``Pipeline``, or a ``PipelineError`` that lists everything wrong with it.

    file ─ read ─> text ─ yaml_source / json_source ─> tree with positions ─ model ─> Pipeline

It reads the one file that it was given and nothing else: no module of the user is imported, no reference is looked up.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from pydantic import ValidationError

from procflow.errors import PipelineError, Place, Problem
from procflow.loading.source import Source, Tree
from procflow.loading.validation import Fault, faults
from procflow.model import Pipeline
from procflow.passive import passive

if TYPE_CHECKING:
    from procflow.dialects import Reading

__all__ = ["MAX_FILE_BYTES", "Loaded", "Source", "load_pipeline", "load_text", "read_file", "read_tree"]

MAX_FILE_BYTES = 1 << 20
MAX_PROBLEMS = 100
# What must not occur, part by part: Python takes ten times as long to compile the one set of what may.
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x84\x86-\x9f]|[\ud800-\udfff]|[\ufffe\uffff]")
_NO_PLUGINS = "PYDANTIC_DISABLE_PLUGINS"

P = TypeVar("P", bound=Pipeline)


@passive(frozen=True, slots=True)
class Loaded(Generic[P]):
    """A pipeline and where it came from."""

    pipeline: P
    source: Source


def load_pipeline(
    path: str | os.PathLike[str],
    cls: type[P] = Pipeline,  # type: ignore[assignment]
    reading: Reading | None = None,
) -> Loaded[P]:
    """The pipeline in a file; raises ``PipelineError``.

    JSON by the suffix ``.json``, the head of a text by ``.md``, YAML otherwise. Files of other systems are read by their
    dialect: that of ``reading``, else the one whose shape they have.
    """
    tree, source = read_file(path)
    return _validated(*_in_own_words(tree, source, reading), cls)


def read_file(path: str | os.PathLike[str]) -> tuple[Tree, Source]:
    """The plain tree of a file and its positions, as ``read_tree``; raises ``PipelineError``."""
    name = os.fspath(path)
    file = Path(os.path.abspath(name)) if "\0" not in name else _fail(name, "a path can't hold a NUL character")
    return read_tree(_decode(_read(file, name), name), name, file.parent, file)


def _in_own_words(tree: Tree, source: Source, reading: Reading | None) -> tuple[Tree, Source]:
    """The tree in procflow's language."""
    from procflow.dialects import is_own, translated

    if not reading and (not isinstance(tree.value, dict) or is_own(tree.value)):
        return tree, source
    found = translated(tree, source, reading)
    if found is None:
        return tree, source
    own = Tree(tree.name)
    own.value, own.spot = found.plain, found.source.root
    return own, found.source


def load_text(text: str, name: str, folder: str | os.PathLike[str], cls: type[P] = Pipeline) -> Loaded[P]:  # type: ignore[assignment]
    """The pipeline in ``text``, which messages call ``name``; relative paths and modules start from ``folder``."""
    if len(text) > MAX_FILE_BYTES:
        _fail(name, _too_large(len(text)))
    tree, source = read_tree(text, name, Path(os.path.abspath(folder)))
    return _validated(tree, source, cls)


def read_tree(text: str, name: str, folder: Path, path: Path | None = None) -> tuple[Tree, Source]:
    """The plain tree of a text and its positions, with no idea yet of what the keys mean.

    ``tree.problems`` are mistakes that did not stop the reading; a caller must report them. Raises ``PipelineError``.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    tree = Tree(name)
    bad = _UNPRINTABLE.search(text)
    if bad is not None:
        before = text[: bad.start()]
        what = "a NUL character" if bad[0] == "\0" else f"the character U+{ord(bad[0]):04X}, which can't be printed"
        tree.fail(what, before.count("\n") + 1, bad.start() - before.rfind("\n"), "remove it")
    if name.lower().endswith((".md", ".markdown")):
        text = _head(text, tree)
    if name.lower().endswith(".json"):
        from procflow.loading.json_source import read_json

        read_json(text, tree)
    else:
        from procflow.loading.yaml_source import read_yaml

        read_yaml(text, tree)
    return tree, Source(name, path, folder, tree.spot)


def _validated(tree: Tree, source: Source, cls: type[P]) -> Loaded[P]:
    if not isinstance(tree.value, dict):
        line, column = tree.spot.line, tree.spot.column
        tree.fail("a pipeline is a mapping with name and steps", line, column, "write name: ... and steps: ...")
    try:
        with _unwatched():
            pipeline = cls.model_validate(tree.value)
    except ValidationError as error:
        raise PipelineError(source.told(_explained(faults(error, cls), tree.problems, source))) from None
    if tree.problems:
        raise PipelineError(_explained([], tree.problems, source))
    return Loaded(pipeline, source)


@contextmanager
def _unwatched() -> Iterator[None]:
    """Around the building of our own validators: pydantic does not look for plugins that would watch them.

    It would read the entry points of all that is installed. Models of others find their plugins as ever, so where threads
    might build some just now nothing is done.
    """
    if _NO_PLUGINS in os.environ or threading.active_count() > 1:
        yield
        return
    os.environ[_NO_PLUGINS] = "1"
    try:
        yield
    finally:
        del os.environ[_NO_PLUGINS]


def _head(text: str, tree: Tree) -> str:
    """The YAML between the lines ``---`` at the top of a Markdown file; its positions are those in the file."""
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        tree.fail(
            "this Markdown file begins without a line ---",
            1,
            1,
            "the pipeline stands between two such lines at its top",
        )
    end = next((i for i, line in enumerate(lines) if i and line.rstrip() in ("---", "...")), None)
    if end is None:
        tree.fail("the line --- that ends the head of this Markdown file is missing", 1, 1, "write it above the text")
    return "\n".join(lines[:end])


def _explained(found: Iterable[Fault], others: list[Problem], source: Source) -> list[Problem]:
    """The first problems in file order; where reading and validation complain about one place, reading was first."""
    known = {p.place for p in others}
    placed: list[tuple[Place, Fault | Problem]] = [(p.place, p) for p in others if p.place is not None]
    for fault in found:
        place = source.key_place(fault.loc) if fault.on_key else source.place(fault.loc)
        if place is not None and place not in known:
            placed.append((place, fault))
    placed.sort(key=lambda pair: (pair[0].line, pair[0].column))
    listed = [p if isinstance(p, Problem) else p.problem().at(place) for place, p in placed[:MAX_PROBLEMS]]
    if len(placed) > MAX_PROBLEMS:
        place = placed[MAX_PROBLEMS][0]
        listed.append(Problem(f"and {len(placed) - MAX_PROBLEMS:,} more problems from here on", place=place))
    return listed


# -- reading ---------------------------------------------------------------------------------------------------


def _read(file: Path, name: str) -> bytes:
    try:
        # Without O_NONBLOCK the open of a pipe would wait for a writer that may never come.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        _fail(name, *_unreadable(file, error))
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            kind = "a folder" if stat.S_ISDIR(about.st_mode) else "not a plain file"
            _fail(name, f"this is {kind}", "name a pipeline file")
        if about.st_size > MAX_FILE_BYTES:
            _fail(name, _too_large(about.st_size))
        with open(descriptor, "rb", closefd=False) as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        _fail(name, *_unreadable(file, error))
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        _fail(name, _too_large(len(data)))
    return data


def _too_large(count: int) -> str:
    return f"{count:,} characters are too many for a pipeline file: at most {MAX_FILE_BYTES:,}"


def _unreadable(file: Path, error: OSError) -> tuple[str, str]:
    if isinstance(error, FileNotFoundError):
        try:
            beside = [entry.name for entry in file.parent.iterdir()]
        except OSError:
            return "no such file", f"the folder {file.parent} can't be read either"
        close = difflib.get_close_matches(file.name[:255], beside[:1000], 1)
        return "no such file", f"did you mean {close[0]!r}?" if close else ""
    return f"can't be read: {error.strerror or error}", ""


def _decode(data: bytes, name: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        _fail(name, "this file is UTF-16", "save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        problem = Problem(
            f"byte 0x{data[error.start]:02x} is not UTF-8", (), "save the file as UTF-8", Place(name, line, column)
        )
        raise PipelineError([problem]) from None


def _fail(name: str, message: str, hint: str = "") -> NoReturn:
    raise PipelineError([Problem(message, (), hint, Place(name, 1, 1))])
