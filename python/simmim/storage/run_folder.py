"""The folder of a run: locked while it is written to; only the run's own files are replaced."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simmim.errors import UserError, say
from simmim.storage import checkpoint
from simmim.storage.files import files_like, replacing
from simmim.storage.folder_lock import FolderLock
from simmim.storage.manifest import FOLDER, Manifest, events, manifests
from simmim.storage.outputs import check_link

TRAINING = ("pretrain", "finetune")
_RECORDS = ("config.json", "metrics.csv", "metrics.tmp")
#: what each command writes besides checkpoints and TensorBoard's files
_FILES = {
    "pretrain": (*_RECORDS, "loss_curve.png", "reconstruction.png"),
    "finetune": (*_RECORDS, "loss_curve.png", "confusion.png"),
    "probe": ("probe.csv", "confusion.png"),
}
_LEFTOVER = re.compile(r"(step-\d{8,}|last)\.pt\.([0-9a-f]{8}\.)?tmp|last\.tmp")


class RunFolder(contextlib.AbstractContextManager):
    """``out`` of one command, pretrain, finetune or probe; ``lock`` makes it. Used as a context
    manager, it gives the lock back at the end."""

    def __init__(self, out: Path, kind: str) -> None:
        self.out, self.kind = out, kind
        self.checkpoints = out / "checkpoints"
        self.newest: Path | None = None
        self.manifest = Manifest(out, kind)
        self._adopted: set[Path] = set()
        self._other_events: set[Path] = set()
        self._lock: FolderLock | None = None
        self._created = False

    def lock(self) -> None:
        """Take the folder's lock, and look up what the command has written there.

        Raises:
            UserError: another process holds it, or it is a link to nothing.
            OSError: the folder cannot be created or written.
        """
        check_link(self.out)
        self._created = not self.out.exists()
        inner = self.out / FOLDER
        inner.mkdir(parents=True, exist_ok=True)
        name = "run" if self.kind in TRAINING else self.kind
        self._lock = FolderLock(inner, name, self.out)
        try:
            self._lock.acquire()
            self.manifest = Manifest.load(self.out, self.kind) or self.manifest
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release the lock, and delete the folder if it is empty."""
        if self._lock is None:
            return
        self._lock.release()
        self._lock = None
        with contextlib.suppress(OSError):
            (self.out / FOLDER).rmdir()
            if self._created:
                self.out.rmdir()

    def __exit__(self, *_error: object) -> None:
        self.release()

    def resume_from(self, check: Callable[[Path], object]) -> Path | None:
        """The newest checkpoint that is not damaged, ``None`` where there is no checkpoint at all;
        every damaged one is named on stderr.

        Args:
            check: reads a checkpoint and raises ``DamagedError`` if it is damaged; another
                ``UserError`` ends the search.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        self._adopt_checkpoints()
        damaged = []
        for path in reversed(self._own_checkpoints()):
            try:
                check(path)
            except checkpoint.DamagedError as error:
                damaged.append(error)
                continue
            for error in damaged:
                say(f"{error}; going on from {path}")
            self._check_in_the_way(resumed=True)
            return path
        if damaged:
            raise UserError("; ".join(map(str, damaged)))
        return None

    def go_on(self, path: Path) -> None:
        """Continue the run in this folder from its checkpoint ``path``."""
        self._begin()
        self.newest = path
        point_last_at(path)

    def check_start(self, overwrite: bool, restart: bool = False) -> None:
        """Raise ``UserError`` where a new run may not begin here: there are files in the way that
        the command did not write, or results of an earlier run, which only ``overwrite`` lets go,
        or ``restart`` where that run has no checkpoint."""
        self._adopt_checkpoints()
        held = self._results()
        if held and not (overwrite or (restart and not self._own_checkpoints())):
            training = self.kind in TRAINING
            what = "a run" if training else f"the results of a {self.kind}"
            advice = "continue it with --resume, " if training else ""
            raise UserError(
                f"{self.out} already holds {what} ({held[-1].name}): {advice}replace it with "
                "--overwrite, or choose another --out"
            )
        self._check_in_the_way(resumed=False)

    def start_anew(self, overwrite: bool, restart: bool = False) -> None:
        """Delete what an earlier run of the same command left, and begin another one; raises as
        ``check_start``, before anything is deleted."""
        self.check_start(overwrite, restart)
        for path in [*self.manifest.existing(), *self._adopted, *self._leftovers()]:
            path.unlink(missing_ok=True)
        self.manifest = Manifest(self.out, self.kind)
        self._begin()

    def _results(self) -> list[Path]:
        """The results that deleting the earlier run would lose."""
        kinds = (".csv", ".png", ".pt")
        found = [path for path in self.manifest.existing() if path.suffix in kinds]
        found += self._adopted
        rows = self.out / "metrics.csv"
        if rows in found and rows.read_bytes().count(b"\n") < 2:
            found.remove(rows)
        return sorted(found, key=lambda path: (path.parent == self.checkpoints, path.name))

    def _begin(self) -> None:
        for path in self._leftovers():
            path.unlink(missing_ok=True)
        self._other_events = set(events(self.out))
        self.manifest.files |= {n for n in _FILES[self.kind] if not n.endswith(".png")}
        if self.kind in TRAINING:
            self.manifest.begin_session()
            self.checkpoints.mkdir(exist_ok=True)
            self.manifest.files.add(self.manifest.name(self.checkpoints / checkpoint.LAST))
        self.manifest.save()

    def _check_in_the_way(self, resumed: bool) -> None:
        """Refuse where files that this command did not write have names that it needs."""
        # a picture in the way of a run that goes on is found when that one is drawn
        names = [n for n in _FILES[self.kind] if not (resumed and n.endswith(".png"))]
        needed = [self.out / name for name in names]
        if self.kind in TRAINING:
            needed += [self.checkpoints / checkpoint.LAST, *checkpoint.numbered(self.checkpoints)]
        # nothing in these is replaced, but a new run's curves would be drawn among theirs
        if not resumed:
            needed += events(self.out)
        others = [manifest for manifest in manifests(self.out) if manifest.kind != self.kind]
        wrong = []
        for path in filter(os.path.lexists, needed):
            writer = next((m.kind for m in others if m.wrote(path)), None)
            if self._is_own(path) or (path in events(self.out) and writer):
                continue
            wrong.append(self.manifest.name(path) + (f" of simmim {writer}" if writer else ""))
        if wrong:
            raise UserError(
                f"{self.out} holds files that simmim {self.kind} did not write: "
                f"{checkpoint.some(wrong)}; move them away, or choose another --out"
            )

    def _adopt_checkpoints(self) -> None:
        """Find checkpoints that the record does not name, for instance brought from another
        machine. A run may go on from them, but does not delete them."""
        found = checkpoint.numbered(self.checkpoints)
        unknown = {path for path in found if not self.manifest.wrote(path)}
        self._adopted = {path for path in unknown if self._holds_what_it_says(path)}

    def _holds_what_it_says(self, path: Path) -> bool:
        """Whether ``path`` is a checkpoint of the update in its name, and no copy under another."""
        try:
            return checkpoint.read(path, self.kind)["update"] == checkpoint.step_of(path)
        except UserError:
            return False

    def _is_own(self, path: Path) -> bool:
        return self.manifest.wrote(path) or path in self._adopted

    def _own_checkpoints(self) -> list[Path]:
        return [path for path in checkpoint.numbered(self.checkpoints) if self._is_own(path)]

    def _leftovers(self) -> list[Path]:
        """Temporary files of checkpoints, left by processes that were killed."""
        return [p for p in files_like(self.checkpoints, "*.tmp") if _LEFTOVER.fullmatch(p.name)]

    def claim(self, path: Path) -> None:
        """Note that ``path`` is going to be written by this command; raises ``UserError`` where
        something stands there that it did not write."""
        if self.manifest.wrote(path):
            return
        if os.path.lexists(path):
            raise UserError(f"cannot write {path}: something else stands there, move it away")
        self.manifest.files.add(self.manifest.name(path))
        self.manifest.save()

    def claim_events(self) -> None:
        """Note the files of TensorBoard that this process has created since the folder was
        begun."""
        mine = f".{socket.gethostname()}.{os.getpid()}."
        new = {path for path in events(self.out) if mine in path.name} - self._other_events
        self.manifest.files |= {self.manifest.name(path) for path in new}
        self.manifest.save()

    def save(self, step: int, state: dict[str, Any], keep: int) -> Path:
        """Write ``state`` as the checkpoint of update ``step``, and once it has been read back
        delete all but the newest ``keep`` of those that the run has written.

        Raises:
            UserError: it cannot be written, or the folder has vanished or was taken over; the
                checkpoints before it stay.
        """
        if self._lock is not None:
            self._lock.check_held()
        path = checkpoint.path_of(self.checkpoints, step)
        self.claim(path)
        checkpoint.write(path, state)
        self.newest = path
        point_last_at(path)
        # later ones are there if they were damaged when the run was resumed
        written = filter(self.manifest.wrote, checkpoint.numbered(self.checkpoints))
        own = [p for p in written if checkpoint.step_of(p) <= step]
        for old in own[:-keep]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
            self.manifest.files.discard(self.manifest.name(old))
        return path


def point_last_at(path: Path) -> None:
    """Let ``last.pt`` beside ``path`` be the same checkpoint: a symbolic link; where the file system
    has none, a second name of the file; and where it has neither, a copy.

    Raises:
        UserError: it could not be written; what was there stays.
    """
    last = path.with_name(checkpoint.LAST)
    with contextlib.suppress(OSError):
        # renaming one name of a file to another of its names does nothing
        if last.samefile(path):
            return
    with replacing(last) as temporary:
        try:
            temporary.symlink_to(path.name)
        except (OSError, NotImplementedError):
            try:
                os.link(path, temporary)
            except (OSError, NotImplementedError, AttributeError):
                shutil.copyfile(path, temporary)
