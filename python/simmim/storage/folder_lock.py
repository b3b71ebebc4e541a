"""A lock on a folder that also works on network drives and between machines.

No ``flock``: network file systems grant it to several machines at once, or not at all. The lock is a
file that is created exclusively and holds who created it. A thread renews its time; a lock whose
process has ended on this machine, or whose time has not been renewed for long, is stale. Lock files
are numbered: who takes over stale number ``n`` creates ``n + 1`` exclusively, so of several only one
succeeds, and nobody ever deletes the lock of a process that runs.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import threading
import time
import weakref
from pathlib import Path

from simmim.errors import UserError, say
from simmim.storage.files import cause_of, files_like
from simmim.storage.lock_holder import Holder

#: seconds between two renewals, and after how many without one the lock of a process that cannot be
#: seen from here is stale; network drives may show a time a minute late
RENEWAL = 30.0
STALE = 300.0
#: the same for a lock file that does not yet say whose it is
_INCOMPLETE = 10.0
_ATTEMPTS = 50


class FolderLock:
    """A lock on a folder: one process at a time may write to it.

    Args:
        folder: where the lock files lie; exists.
        name: of the lock; locks of other names in the same folder are independent.
        what: what is locked, for messages.
    """

    def __init__(self, folder: Path, name: str, what: Path) -> None:
        self.folder, self.name, self.what = folder, name, what
        self._path: Path | None = None
        self._release = lambda: None

    def acquire(self) -> None:
        """Take the lock, and say on stderr if it is taken over from a process that has ended.

        Raises:
            UserError: another process holds it.
            OSError: no file can be created in the folder.
        """
        for _ in range(_ATTEMPTS):
            existing = self._existing()
            seen = {path: self._holder(path) for path in existing}
            reasons = [self._why_stale(path, holder) for path, holder in seen.items()]
            number = _number(existing[-1]) + 1 if existing else 1
            holder, path = Holder(), self.folder / f"{self.name}.{number}.lock"
            if not _create(path, holder.to_json()):
                continue
            if self._confirm(path, seen):
                self._hold(path, holder)
                if reasons and reasons[-1]:
                    say(f"took over {self.what} from {reasons[-1]}")
                return
            with contextlib.suppress(OSError):
                path.unlink()
            # of two that stopped each other, one is to come first in the next attempt
            time.sleep(random.uniform(0.0, 0.1))
        raise UserError(f"{self.what} is being taken by another process: try again")

    def check_held(self) -> None:
        """Raise ``UserError`` where another process has taken the lock over, as they may after a
        long standstill, or the lock's folder has vanished."""
        for attempt in range(5):
            existing = self._existing()
            if self._path not in existing:
                break
            if existing[-1] == self._path:
                return
            # another process creates its file before it knows whether that counts, see _confirm
            time.sleep(0.2 * attempt)
        if not self.what.is_dir():
            raise UserError(f"the folder {self.what} has vanished: nothing more can be saved there")
        if not existing:
            # only the lock was deleted
            self.release()
            self.folder.mkdir(exist_ok=True)
            self.acquire()
            return
        other = self._holder(existing[-1])
        if self._path in existing and other is not None and other.runs() is False:
            existing[-1].unlink(missing_ok=True)
            return
        raise UserError(
            f"{other or 'another process'} has taken over {self.what}: this run ends without "
            "writing to it"
        )

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        self._release()
        self._release = lambda: None
        self._path = None

    def _hold(self, path: Path, holder: Holder) -> None:
        self._path = path
        stop = threading.Event()
        threading.Thread(target=_renew, args=(path, stop), daemon=True).start()
        # also at the end of the process, but not in processes that were forked from this one
        self._release = weakref.finalize(self, _give_back, path, holder, stop)

    def _existing(self) -> list[Path]:
        found = files_like(self.folder, f"{self.name}.*.lock")
        return sorted((p for p in found if p.name.split(".")[-2].isdecimal()), key=_number)

    def _holder(self, path: Path) -> Holder | None:
        try:
            return Holder.from_json(path.read_text())
        except FileNotFoundError:
            return None

    def _why_stale(self, path: Path, holder: Holder | None) -> str:
        """From whom the lock ``path`` can be taken over, and why; empty if nobody holds it. Raises
        ``UserError`` where somebody does."""
        age = self._age(path)
        if age is None or (holder is not None and holder.is_this_process()):
            return ""
        limit = STALE if holder is not None else _INCOMPLETE
        runs = holder.runs() if holder is not None else None
        who = str(holder or "another process")
        if runs or (runs is None and age < limit):
            raise UserError(
                f"{self.what} is in use by {who}: wait for its end or choose another --out; if it "
                f"no longer runs, delete {path}"
            )
        return f"{who}, which " + (
            "no longer runs" if runs is False else f"has been silent for {age:.0f} seconds"
        )

    def _age(self, path: Path) -> float | None:
        """Seconds since the lock's time was renewed, by the clock of the drive that it lies on."""
        clock = self.folder / f"{self.name}.{secrets.token_hex(8)}.clock"
        try:
            clock.touch()
            return clock.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            with contextlib.suppress(OSError):
                clock.unlink(missing_ok=True)

    def _confirm(self, path: Path, seen: dict[Path, Holder | None]) -> bool:
        """Whether the new lock ``path`` counts: none is later, and no earlier one is new.

        The earlier ones, which were stale, are deleted then.
        """
        existing = self._existing()
        if not existing or existing[-1] != path:
            return False
        earlier = existing[:-1]
        if any(other not in seen or self._holder(other) != seen[other] for other in earlier):
            return False
        for other in earlier:
            with contextlib.suppress(FileNotFoundError):
                other.unlink()
        return True


def _number(path: Path) -> int:
    return int(path.name.split(".")[-2])


def _create(path: Path, text: str) -> bool:
    """Create ``path`` unless it exists; returns whether this call created it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise UserError(f"cannot write {path}: {cause_of(error)}") from error
    return True


def _renew(path: Path, stop: threading.Event) -> None:
    while not stop.wait(RENEWAL):
        # a drive that is away for a moment must not end the thread
        with contextlib.suppress(OSError):
            os.utime(path)


def _give_back(path: Path, holder: Holder, stop: threading.Event) -> None:
    if os.getpid() != holder.pid:
        return
    stop.set()
    with contextlib.suppress(OSError):
        if Holder.from_json(path.read_text()) == holder:
            path.unlink()
