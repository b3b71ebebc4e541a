"""Checkpoints that survive being killed while they are written.

A checkpoint is written to a temporary file, flushed to the disk, renamed, and the folder flushed
too: at any moment the folder holds only complete ``step-*.pt`` files, besides at most one temporary
file that nothing reads. ``last.pt`` is a link to the newest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from simmim.errors import UserError

VERSION = 1
LAST = "last.pt"


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` as the checkpoint of update ``step`` and delete all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"version": VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _point_last_at(path)
    _flush(folder)
    for old in _complete(folder)[:-keep]:
        old.unlink()
    return path


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step in ``folder``, or ``None``."""
    found = _complete(folder)
    return found[-1] if found else None


def load(path: Path, kind: str = "pretrain") -> dict[str, Any]:
    """Read a checkpoint onto the CPU, without running code that it might contain.

    Args:
        kind: the command whose checkpoint is expected.

    Raises:
        UserError: no such file, not a checkpoint of this version, or of another command.
    """
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a checkpoint of simmim {kind}: {reason}") from error
    if version != VERSION:
        raise UserError(f"{path} has checkpoint version {version}; this simmim reads {VERSION}")
    if state.get("kind", "pretrain") != kind:
        raise UserError(f"{path} was written by simmim {state['kind']}: give one of simmim {kind}")
    return state


def delete_all(folder: Path) -> None:
    """Delete every checkpoint in ``folder``, and what an interrupted write left."""
    for path in [*folder.glob("step-*.pt"), *folder.glob("*.tmp"), folder / LAST]:
        path.unlink(missing_ok=True)


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))


def _point_last_at(path: Path) -> None:
    link = path.with_name("last.tmp")
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(path.with_name(LAST))


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
