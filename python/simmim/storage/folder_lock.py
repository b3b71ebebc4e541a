"""A lock on a folder that also works on network drives and between machines: filelock's lease.

No ``flock``: network file systems grant it to several machines at once, or not at all. The lock is a
file that is created exclusively, says who created it, and is touched as long as that process runs.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import weakref
from pathlib import Path

from filelock import SoftFileLease, Timeout

from simmim.errors import UserError

#: seconds between two signs of life, and after how many without one the lock of a process that cannot
#: be seen from here is taken over; network drives may show a time a minute late
RENEWAL, LEASE = 30.0, 120.0
_taken: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


class FolderLock:
    """The right to write to a folder, for one process at a time.

    Args:
        folder: where the lock file lies; exists.
        name: of the lock; locks of other names in the same folder are independent.
        what: what is locked, for messages.
    """

    def __init__(self, folder: Path, name: str, what: Path) -> None:
        self.what, self.path = what, folder / f"{name}.lock"
        self._lease = SoftFileLease(
            self.path, lease_duration=LEASE, heartbeat_interval=RENEWAL, thread_local=False
        )
        # also at the end of the process
        weakref.finalize(self, self._lease.release)

    def acquire(self) -> None:
        """Take the lock, and say on stderr if it is taken over from a process that has ended.

        Raises:
            UserError: another process holds it.
            OSError: no file can be created in the folder.
        """
        # one that this process took before, as in a notebook, is not another process's
        if self.path in _taken:
            _taken[self.path].release()
        holder, silent = self._holder(), self._is_silent()
        if silent:
            if _runs_here(holder):  # but is stopped
                raise self._in_use()
            if not holder:  # created by a process that ended before it wrote
                self.path.unlink(missing_ok=True)
        try:
            # a lock is watched for as long again; one of a process that ended here is taken over at once
            self._lease.acquire(timeout=2 * LEASE if silent else 1)
        except Timeout:
            raise self._in_use() from None
        _taken[self.path] = self
        if holder:
            why = "has been silent" if silent else "no longer runs"
            words = f"took over {self.what} from {_words(holder)}, which {why}"
            print(words, file=sys.stderr, flush=True)

    def check_held(self) -> None:
        """Check that no other process has taken the lock over, as they may after a long standstill.

        Raises:
            UserError: one has, or the lock's folder has vanished.
        """
        holder = {}
        for attempt in range(5):
            # a process that takes a stale lock over may put its file in the place of ours for a moment
            time.sleep(0.2 * attempt)
            holder = self._holder()
            if holder and holder.get("token") == self._lease.token:
                return
        if not self.what.is_dir():
            raise UserError(f"the folder {self.what} has vanished: nothing more can be saved there")
        if holder:
            raise UserError(
                f"{_words(holder)} has taken over {self.what}: this run ends without writing to it"
            )
        # only the lock was deleted
        self.release()
        self.path.parent.mkdir(exist_ok=True)
        self.acquire()

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        self._lease.release()

    def _in_use(self) -> UserError:
        return UserError(
            f"{self.what} is in use by {_words(self._holder())}: wait for its end or choose another "
            f"--out; if it no longer runs, delete {self.path}"
        )

    def _holder(self) -> dict[str, str]:
        """What the lock file says of its process; empty where there is none, or one that says nothing."""
        try:
            lines = self.path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def _is_silent(self) -> bool:
        try:
            return time.time() - self.path.stat().st_mtime > LEASE
        except FileNotFoundError:
            return False


def _words(holder: dict[str, str]) -> str:
    if "pid" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host', 'another machine').partition('?')[0]}"


def _runs_here(holder: dict[str, str]) -> bool:
    """Whether the process of a lock, or another of its number, runs on this machine."""
    pid = int(holder.get("pid", 0))
    if pid in (0, os.getpid()) or holder.get("host", "").partition("?")[0] != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
