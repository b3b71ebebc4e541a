"""The record of the files that a command has written into a folder."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from simmim.storage.files import files_like, write_text

#: the folder inside ``--out`` that holds records and locks
FOLDER = ".simmim"
_VERSION = 1
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.(.+)\.(\d+)\.\d+")


@dataclass
class Manifest:
    """What the command ``kind`` has written into the folder ``out``.

    Attributes:
        files: names relative to ``out``, noted before the file is written.
        sessions: host, process number and time of the processes that trained, by which
            TensorBoard's files are recognised: those are named when a run has long begun.
    """

    out: Path
    kind: str
    files: set[str] = field(default_factory=set)
    sessions: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.out / FOLDER / f"{self.kind}.json"

    @classmethod
    def load(cls, out: Path, kind: str) -> Manifest | None:
        """The manifest of ``kind`` in ``out``; ``None`` where there is none or a damaged one. Raises
        ``OSError`` where the system does not give it: another one would take its place."""
        manifest = cls(out, kind)
        try:
            values = json.loads(manifest.path.read_text(encoding="utf-8"))
            if values["version"] != _VERSION:
                return None
            manifest.files = {str(name) for name in values["files"]}
            manifest.sessions = [(str(h), int(p), int(t)) for h, p, t in values["sessions"]]
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        return manifest

    def save(self) -> None:
        """Write the manifest; raises ``UserError`` where it cannot be written."""
        values = {"version": _VERSION, "files": sorted(self.files), "sessions": self.sessions}
        write_text(self.path, json.dumps(values, indent=1) + "\n")

    def begin_session(self) -> None:
        """Note that this process writes from now on."""
        self.sessions.append((socket.gethostname(), os.getpid(), int(time.time())))

    def wrote(self, path: Path) -> bool:
        """Whether ``path`` is a file that the command has written."""
        return self.name(path) in self.files or self._is_own_events(path)

    def name(self, path: Path) -> str:
        """``path`` relative to ``out``."""
        return str(path.relative_to(self.out))

    def existing(self) -> list[Path]:
        """The files that the command has written and that are still there."""
        found = [self.out / name for name in sorted(self.files)]
        found += [path for path in events(self.out) if self._is_own_events(path)]
        return [path for path in dict.fromkeys(found) if os.path.lexists(path)]

    def _is_own_events(self, path: Path) -> bool:
        found = _EVENTS.fullmatch(path.name)
        if found is None or path.parent != self.out / "tensorboard":
            return False
        created, host, pid = int(found[1]), found[2], int(found[3])
        if not any((host, pid) == (h, p) and created >= t for h, p, t in self.sessions):
            return False
        others = [other for other in manifests(self.out) if other.kind != self.kind]
        return not any(self.name(path) in other.files for other in others)


def manifests(out: Path) -> list[Manifest]:
    """The manifests of all commands that have written into ``out``."""
    kinds = [path.stem for path in files_like(out / FOLDER, "*.json")]
    return [found for kind in kinds if (found := Manifest.load(out, kind)) is not None]


def events(out: Path) -> list[Path]:
    """TensorBoard's files in ``out``, whoever wrote them."""
    return files_like(out / "tensorboard", "*tfevents*")
