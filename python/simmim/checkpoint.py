"""Checkpoints that survive being killed while they are written.

A checkpoint is written to a temporary file, flushed to the disk, renamed, and the folder flushed
too: at any moment the folder holds only complete ``step-*.pt`` files, besides at most one temporary
file that nothing reads. ``last.pt`` is a link to the newest.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from simmim.errors import UserError, first_line, require
from simmim.run_config import RunConfig

VERSION = 1
LAST = "last.pt"
SAFETENSORS = ".safetensors"
#: what every checkpoint holds, and what those from which a run goes on hold too
_MODEL = {"config", "model"}
_TRAINING = {"optimizer", "update", "global_batch", "loss_sum", "norm_sum", "counters", "data"}

Config = TypeVar("Config", bound=RunConfig)


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` as the checkpoint of update ``step`` and delete all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({"version": VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    _point_last_at(path)
    _flush(folder)
    for old in _complete(folder)[:-keep]:
        old.unlink()
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place once it is written whole.

    Raises:
        UserError: it could not be written, for instance for want of room; what stood at ``path``
            stays, and nothing else is left behind.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        # PyTorch tells what came of a failed write, and behind it what the system said
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(f"cannot write {path}: {first_line(cause)}") from error


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step in ``folder``, or ``None``."""
    found = _complete(folder)
    return found[-1] if found else None


def load(path: Path, kind: str | None = "pretrain") -> dict[str, Any]:
    """Read a checkpoint onto the CPU, without running code that it might contain.

    Args:
        kind: the command whose checkpoint is expected; None for any.

    Raises:
        UserError: no such file, damaged, not a checkpoint of this version, or of another command.
    """
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    try:
        if path.suffix == SAFETENSORS:
            state = _read_safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint of simmim: {unreadable(error)}") from error
    if not isinstance(state, dict) or "version" not in state:
        raise UserError(
            f"{path} is not a checkpoint of simmim: simmim import makes one of those of others"
        )
    version = state["version"]
    if version != VERSION:
        raise UserError(f"{path} has checkpoint version {version}; this simmim reads {VERSION}")
    if kind is not None and state.get("kind", "pretrain") != kind:
        raise UserError(f"{path} was written by simmim {state['kind']}: give one of simmim {kind}")
    lacking = (_MODEL if path.suffix == SAFETENSORS else _MODEL | _TRAINING) - state.keys()
    if lacking:
        raise UserError(f"{path} is damaged: it lacks {', '.join(sorted(lacking))}")
    return state


def settings(path: Path, state: Mapping[str, Any], kind: type[Config]) -> Config:
    """The configuration of the run that wrote ``state``, read from ``path``.

    Raises:
        UserError: damaged, or of another version.
    """
    try:
        return kind.from_json(state["config"])
    except (ValueError, TypeError) as error:
        raise UserError(f"the settings in {path} cannot be used: {first_line(error)}") from error


def unreadable(error: Exception) -> str:
    """Why a file of tensors could not be read, in one line, without PyTorch's advice to run what it
    holds."""
    if isinstance(error, pickle.UnpicklingError):
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            return f"it cannot be read without running code, {forbidden[1]}"
        return "it is no file of tensors"
    if isinstance(error, RuntimeError | EOFError | OSError):
        return f"it is damaged or cut short ({first_line(error).partition('. ')[0]})"
    return first_line(error)


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What keeps ``found`` from being the tensors of a model, in one line; empty if nothing does."""
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    parts = {
        "missing": some(sorted(expected.keys() - found.keys())),
        "surplus": some(sorted(found.keys() - expected.keys())),
        "other shapes:": some(shapes),
    }
    return "; ".join(f"{what} {names}" for what, names in parts.items() if names)


def check_weights(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ``UserError`` where the checkpoint ``path`` holds other tensors than a model has."""
    wrong = differences(found, expected)
    if wrong:
        raise UserError(
            f"{path} does not hold the weights of its own settings: {wrong}; it was changed, or "
            "another version wrote it"
        )


def some(names: Sequence[str], count: int = 3) -> str:
    """The first ``count`` of ``names``, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def save_model(
    path: Path, config: str, model: dict[str, torch.Tensor], kind: str = "pretrain"
) -> None:
    """Write a model without the state of its training, as safetensors; ``load`` reads it.

    Args:
        config: the run's configuration as JSON.
        kind: the command that trains such models.
    """
    safetensors = require("safetensors.torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "version": str(VERSION), "config": config, "kind": kind}
    with replacing(path) as temporary:
        safetensors.save_file({k: v.contiguous() for k, v in model.items()}, temporary, metadata)


def _read_safetensors(path: Path) -> dict[str, Any]:
    with require("safetensors").safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "version" not in metadata:
            return {}
        model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {
        "version": int(metadata["version"]),
        "config": metadata["config"],
        "kind": metadata.get("kind", "pretrain"),
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
