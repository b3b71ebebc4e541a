"""Writing files atomically: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from simmim.errors import UserError, first_line

#: what a file system answers that has no such operation
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF}
#: how a table of files is opened: their names may hold any bytes
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


@contextmanager
def replacing(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place once it is complete and on the disk.

    Args:
        check: called with the temporary file before it takes its place; what it raises stops that.

    Raises:
        UserError: it could not be written, for instance because the disk is full; what stood at
            ``path`` stays, and no temporary file is left, nor is one after a signal that ends the process.
    """
    name = path.name if len(os.fsencode(path.name)) < 200 else "simmim"
    temporary = path.with_name(f"{name}.{secrets.token_hex(4)}.tmp")
    with _signals_as_exceptions():
        try:
            yield temporary
            flush_file(temporary)
            if check is not None:
                check(temporary)
            temporary.replace(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, UserError) or not isinstance(error, Exception):
                raise
            raise UserError(f"cannot write {path}: {cause_of(error)}") from error
    flush_folder(path.parent)


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Signals that would kill the process raise ``SystemExit`` within the block, so that it can clear
    up."""
    killing: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        all_of_them = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        killing = [number for number in all_of_them if signal.getsignal(number) is signal.SIG_DFL]
    for number in killing:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in killing:
            signal.signal(number, signal.SIG_DFL)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, in place of what stood there, as ``replacing`` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_file(path: Path) -> None:
    """Return when ``path`` is on the disk, and let the next reader read it from there."""
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        with contextlib.suppress(OSError, AttributeError):  # macOS has none
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush_folder(folder: Path) -> None:
    """Return when the names in ``folder`` are on the disk, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def files_like(folder: Path, pattern: str) -> list[Path]:
    """What lies in ``folder`` under names like ``pattern``, sorted; nothing where there is no such folder.

    ``Path.glob`` takes a folder that may not be read for an empty one.

    Raises:
        OSError: the folder is there, and the system does not list it.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(folder / name for name in names if fnmatch.fnmatchcase(name, pattern))


def is_utf8(path: Path) -> bool:
    """Whether ``path`` is valid UTF-8, as libraries need it that take no bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def cause_of(error: BaseException) -> str:
    """What the system said; PyTorch says only what came of a failed write."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return first_line(error)
