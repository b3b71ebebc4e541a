"""Checks of a command's output paths."""

from __future__ import annotations

import os
from pathlib import Path

from simmim.errors import UserError
from simmim.storage.manifest import manifests


def check_replaceable(path: Path, overwrite: bool, source: Path | None = None) -> None:
    """Raise ``UserError`` where something stands at ``path`` that must stay: a folder, a device,
    the file ``source`` that is read, a file of a run, or any file without ``overwrite``."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    if not os.path.lexists(path):
        return
    # what is written takes the place of what stood there, and root may replace /dev/null
    if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
        raise UserError(f"{path} is a device or a pipe, to which nothing is written: name a file")
    if source is not None and source.exists() and path.exists() and path.samefile(source):
        raise UserError(f"{path} is the file that is read: choose another --out")
    for out in (path.parent, path.parent.parent):
        for manifest in manifests(out):
            if manifest.wrote(out / path.relative_to(out)):
                raise UserError(f"{path} belongs to the run in {out}: choose another --out")
    if not overwrite:
        raise UserError(f"{path} exists: replace it with --overwrite, or choose another --out")
