"""Checkpoint files: written atomically, read back, and checked before they are used.

A checkpoint is a dictionary in a file of ``torch.save``, or a model alone in a safetensors file. It
holds a checksum of each of its parts, so that what is read is what a run wrote.
"""

from __future__ import annotations

import contextlib
import errno
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simmim.config.run import Config
from simmim.errors import UserError, first_line, require
from simmim.storage.checksums import check_archive, checksums, damaged_parts
from simmim.storage.files import files_like, replacing

VERSION = 1
LAST = "last.pt"
SAFETENSORS = ".safetensors"
_CHECKSUMS = "checksums"
#: errors of the system that a damaged file can cause; others, as of too many open files, cannot be its
_OF_DAMAGE = {None, errno.EIO, errno.EINVAL, errno.EOVERFLOW}


class DamagedError(UserError):
    """A checkpoint that is not, or no longer, what a run wrote."""


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of update ``step`` in ``folder``."""
    return folder / f"step-{step:08d}.pt"


def step_of(path: Path) -> int | None:
    """The update in the name of a checkpoint; ``None`` for every other name, those of copies too."""
    found = re.fullmatch(r"step-(\d{8,})\.pt", path.name, re.ASCII)
    if found is None or path != path_of(path.parent, int(found[1])):
        return None
    return int(found[1])


def numbered(folder: Path) -> list[Path]:
    """The files in ``folder`` with a checkpoint's name, the newest last; raises ``OSError`` where the
    folder cannot be listed, which is no folder without checkpoints."""
    found = [path for path in files_like(folder, "step-*.pt") if step_of(path) is not None]
    return sorted((path for path in found if path.is_file()), key=step_of)


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path`` with its checksums, and read it back before it takes its place.

    Raises:
        UserError: it could not be written, or was not read back as it was written; what stood at
            ``path`` stays.
    """
    contents = {"version": VERSION, **state}
    contents[_CHECKSUMS] = checksums(contents)

    def check(written: Path) -> None:
        try:
            check_archive(written)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise OSError(
                None, f"the disk gives back something else ({first_line(error)})"
            ) from None

    with replacing(path, check) as temporary, temporary.open("wb") as file:
        torch.save(contents, file)


def load(path: Path, kind: str | None = "pretrain") -> dict[str, Any]:
    """Read a checkpoint of the command ``kind``, ``None`` for any, onto the CPU, without running
    code that it might contain.

    Raises:
        UserError: no such file, damaged, not a checkpoint of this version, or of another command. If
            it is damaged and an older one beside it is not, the message names that.
    """
    try:
        return read(path, kind)
    except DamagedError as error:
        for other in reversed(numbered(path.parent)):
            if not other.samefile(path) and _is_good(other, kind):
                raise DamagedError(f"{error}; {other} is not damaged") from error
        raise


def read(path: Path, kind: str | None) -> dict[str, Any]:
    """As ``load``, without looking for another checkpoint.

    Raises:
        DamagedError: it is damaged.
        UserError: all else.
    """
    if path.is_dir():
        found = [p for p in (path / LAST, path / "checkpoints" / LAST) if p.exists()]
        raise UserError(f"{path} is a folder: give {found[0] if found else 'a checkpoint in it'}")
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    whole = False
    try:
        if path.suffix == SAFETENSORS:
            state = _read_safetensors(path)
        else:
            check_archive(path)
            whole = True
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # taken for damaged, a file that may be whole would be passed over for an older one
        if isinstance(error, OSError) and error.errno not in _OF_DAMAGE:
            raise UserError(f"{path} may not be read: {error.strerror}") from error
        if whole and (isinstance(error, MemoryError) or "allocate memory" in str(error)):
            raise UserError(f"{path} does not fit into the memory that is free") from error
        raise DamagedError(f"{path} is not a checkpoint of simmim: {unreadable(error)}") from error
    if not isinstance(state, dict) or "version" not in state:
        raise DamagedError(
            f"{path} is not a checkpoint of simmim: simmim import makes one of those of others"
        )
    version = state["version"]
    if version != VERSION:
        raise UserError(f"{path} has checkpoint version {version}; this simmim reads {VERSION}")
    wrong = damaged_parts(state, state.pop(_CHECKSUMS, None))
    if wrong:
        raise DamagedError(
            f"{path} is damaged: it does not hold what was written, in {some(wrong)}"
        )
    if kind not in (None, state["kind"]):
        raise UserError(_explain_wrong_command(path, state, kind))
    return state


def _explain_wrong_command(path: Path, state: Mapping[str, Any], wanted: str) -> str:
    """Why the checkpoint at ``path``, which holds ``state``, can't be used where one of the command
    ``wanted`` is expected, and what can, in one line."""
    if state["kind"] != "finetune":
        return (
            f"{path} was written by simmim {state['kind']}, whose models have no classes: train one "
            f"with simmim {wanted} --checkpoint {path} and another --out"
        )
    started = json.loads(state["config"])["checkpoint"]
    pretrained = f", for example the one it started from, {started}" if started else ""
    return (
        f"{path} holds a fine-tuned classifier, and what is asked for takes a checkpoint of simmim "
        f"{wanted}{pretrained}; to train the classifier further use simmim finetune --resume"
    )


def _is_good(path: Path, kind: str | None) -> bool:
    try:
        read(path, kind)
    except UserError:
        return False
    return True


def settings(path: Path, state: Mapping[str, Any], kind: type[Config]) -> Config:
    """The configuration of the run that wrote ``state``, read from ``path``; raises ``UserError``
    for settings of another version."""
    try:
        return kind.from_json(state["config"])
    except UserError as error:
        raise UserError(f"the settings in {path} cannot be used: {error}") from error


def unreadable(error: Exception) -> str:
    """Why a file of tensors could not be read, in one line, without PyTorch's advice to run what it
    holds."""
    if isinstance(error, pickle.UnpicklingError):
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            return f"it cannot be read without running code, {forbidden[1]}"
        return "it is no file of tensors"
    if isinstance(error, LookupError):  # an opcode that pickles have not
        return "it is no file of tensors"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RuntimeError | EOFError | OSError) or "deserializing" in str(error):
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
    path: Path,
    config: str,
    model: dict[str, Tensor],
    kind: str = "pretrain",
    classes: Sequence[str] = (),
) -> None:
    """Write a model without the state of its training, as safetensors; ``load`` reads it.

    Args:
        config: the run's configuration as JSON.
        kind: the command that trains such models.
        classes: names of a classifier's classes, where they are known.

    Raises:
        UserError: it could not be written; what stood at ``path`` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    model = {name: value.contiguous() for name, value in model.items()}
    state = {"version": VERSION, "config": config, "kind": kind, "model": model}
    state |= {"classes": list(classes)} if classes else {}
    sums = checksums(state)
    metadata = {"format": "pt", "version": str(VERSION), "config": config, "kind": kind}
    metadata |= {"classes": json.dumps(list(classes))} if classes else {}
    metadata[_CHECKSUMS] = json.dumps(sums)

    def check(written: Path) -> None:
        state = _read_safetensors(written)
        if state.pop(_CHECKSUMS) != sums or checksums(state) != sums:
            raise OSError(None, "the disk gives back something else")

    with replacing(path, check) as temporary:
        write_tensors(temporary, model, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a new safetensors file, with the permissions of any other new file."""
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    require("safetensors.torch").save_file(dict(tensors), path, metadata)
    # safetensors gives a file to its owner alone
    with contextlib.suppress(OSError):
        path.chmod(mode)


def _read_safetensors(path: Path) -> dict[str, Any]:
    with require("safetensors").safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "version" not in metadata:
            return {}
        state = {
            "version": int(metadata["version"]),
            "config": metadata["config"],
            "kind": metadata["kind"],
            "model": {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
            _CHECKSUMS: json.loads(metadata[_CHECKSUMS]),
        }
    if "classes" in metadata:
        state["classes"] = json.loads(metadata["classes"])
    return state
