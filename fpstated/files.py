"""Files that commands of the fault lab read and write, and standard input and output in their place (``-``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer


class TextError(ValueError):
    """A file that holds no text."""


def read_input(path: Path) -> str:
    """The text of a file; of standard input for ``-``. Raises ``OSError``, ``TextError``."""
    try:
        return sys.stdin.buffer.read().decode() if str(path) == "-" else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: expected text in UTF-8, got byte {error.object[error.start]:#x}") from None


def expect_writable(*paths: Path | None) -> None:
    """Find out before long work whether what comes of it can be written. Raises ``OSError``."""
    for path in paths:
        if path is None or str(path) == "-":
            continue
        if path.is_dir():
            raise IsADirectoryError(None, "expected a file, got a directory", str(path))
        if not path.parent.is_dir():
            raise FileNotFoundError(None, f"expected {path.parent} to be a directory", str(path))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(None, "may not be written", str(path))


def write_output(path: Path, text: str) -> None:
    """Write a file as a whole, or leave what was there; ``-`` is standard output. Raises ``OSError``."""
    if str(path) == "-":
        sys.stdout.write(text)
        return
    if path.exists() and not path.is_file():  # a device or a pipe, which nothing can be put in place of
        _write(path, text)
        return
    path = path.resolve()  # what a symbolic link leads to, and not the link, is replaced
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(new, text)
        if path.exists():
            new.chmod(path.stat().st_mode)
        new.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:  # a full disk does not say of itself which it is
        raise OSError(error.errno, error.strerror, str(path)) from error


def os_problem(error: OSError) -> str:
    """What the system says, behind the file that it is about."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


@contextmanager
def standard_output() -> Iterator[None]:
    """Whoever reads may have seen enough (``| head``): the rest goes nowhere, and that is no failure."""
    try:
        try:
            yield
        finally:
            _flush()
    except BrokenPipeError:
        _to_nowhere()
        raise typer.Exit(0) from None


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        _to_nowhere()  # or Python tries once more when it ends
        raise OSError(error.errno, error.strerror, "standard output") from error


def _to_nowhere() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
