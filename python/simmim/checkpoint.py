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

from simmim.errors import UserError, require

VERSION = 1
LAST = "last.pt"
SAFETENSORS = ".safetensors"


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
        if path.suffix == SAFETENSORS:
            state = _read_safetensors(path)
        else:
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


def save_model(path: Path, config: str, model: dict[str, torch.Tensor]) -> None:
    """Write a model without the state of its training, as safetensors; ``load`` reads it.

    Args:
        config: the run's configuration as JSON.
    """
    safetensors = require("safetensors.torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    metadata = {"format": "pt", "version": str(VERSION), "config": config}
    safetensors.save_file({k: v.contiguous() for k, v in model.items()}, temporary, metadata)
    temporary.replace(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    with require("safetensors").safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {
        "version": int(metadata["version"]),
        "config": metadata["config"],
        "model": model,
    }


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
