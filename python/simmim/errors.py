"""Errors that are shown to users as one line, without a traceback."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType


class UserError(ValueError):
    """A mistake in the settings or data: the command line prints this line and exits with 2."""


class ProcessError(UserError):
    """A failure that this process, of several perhaps alone, has met: it prints it itself."""


class UnreadableImageError(ProcessError):
    """An image that this process was given and cannot read."""


class LostProcessError(RuntimeError):
    """Another process of the run is gone, or has failed and says itself why."""


class MissingPackageError(ImportError):
    """A package that only the application needs is not installed."""


def first_line(error: BaseException) -> str:
    """What ``error`` says, in one line; the name of its class where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """``text`` in one line: control characters, which names of files may hold, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def system_words(error: OSError) -> str:
    """What the system says, and of which file."""
    if error.filename is None and not _is_here():
        return "the folder that the command is given in was deleted: go to one that is there"
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or first_line(error)}{where}"


def _is_here() -> bool:
    """Whether the working folder still has a path, against which relative ones are resolved."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def say(text: str) -> None:
    """Print a line to stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def require(module: str, extra: str = "train") -> ModuleType:
    """Import ``module``, or raise ``MissingPackageError``, which says how to install its package by
    the ``extra`` of ours that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise MissingPackageError(
            f"simmim needs the package {package}, which is not installed: "
            f'pip install "simmim-kernels[{extra}]"'
        ) from None
