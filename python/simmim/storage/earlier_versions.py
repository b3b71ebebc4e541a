"""Files of runs of earlier versions, which kept no record: found by their names and contents."""

from __future__ import annotations

import json
import os
from pathlib import Path

from simmim.errors import UserError
from simmim.storage import checkpoint
from simmim.storage.manifest import Manifest, events

TRAINING = ("pretrain", "finetune")
_RECORDS = ("config.json", "metrics.csv", "metrics.tmp")
#: what each command writes besides checkpoints and TensorBoard's files
FILES = {
    "pretrain": (*_RECORDS, "loss_curve.png", "reconstruction.png"),
    "finetune": (*_RECORDS, "loss_curve.png", "confusion.png"),
    "probe": ("probe.csv", "confusion.png"),
}


def find_written_files(out: Path, kind: str) -> Manifest:
    """A record of what an earlier version's command ``kind`` has written into ``out``."""
    found = Manifest(out, kind)
    telling = "train/images_per_second" if kind in TRAINING else "probe/neighbours"
    found.files = {found.name(path) for path in events(out) if _contains(path, telling)}
    if kind not in TRAINING:
        if _begins_with(out / "probe.csv", "block,linear,neighbours"):
            found.files |= set(FILES[kind])
        return found
    if _begins_with(out / "metrics.csv", "update,epoch,split,loss"):
        found.files.add("metrics.csv")
    folder = out / "checkpoints"
    if _is_config_of(kind, out / "config.json"):
        found.files.add("config.json")
        # these carry no mark of their own
        pictures = [name for name in FILES[kind] if name.endswith(".png")]
        found.files |= {name for name in pictures if (out / name).is_file()}
        steps = checkpoint.numbered(folder)
        found.files |= {found.name(p) for p in steps if name_by_contents(p, kind) in (None, p)}
    last = folder / checkpoint.LAST
    if last.is_symlink() and checkpoint.step_of(folder / os.readlink(last)) is not None:
        found.files.add(found.name(last))
    return found


def name_by_contents(path: Path, kind: str) -> Path | None:
    """The name that the contents of a checkpoint ask for, by which a copy under another number is
    told from what a run wrote.

    Returns:
        ``None`` if it is damaged, its folder if it is of another command or version.
    """
    try:
        return checkpoint.path_of(path.parent, checkpoint.read(path, kind)["update"])
    except checkpoint.DamagedError:
        return None
    except UserError:
        return path.parent


def _is_config_of(kind: str, path: Path) -> bool:
    telling = {"pretrain": "mask_ratio", "finetune": "layer_decay"}[kind]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and {"out", "resume", "save_every", telling} <= values.keys()


def _begins_with(path: Path, text: str) -> bool:
    """Whether a file is there and begins with ``text``."""
    try:
        with path.open("rb") as file:
            return file.read(len(text)) == text.encode()
    except OSError:
        return False


def _contains(path: Path, text: str) -> bool:
    """Whether a file is there and contains ``text``."""
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False
