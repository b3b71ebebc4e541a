"""Checks of a command's output paths."""

from __future__ import annotations

import os
from pathlib import Path

from simmim.errors import UserError
from simmim.storage.manifest import manifests


def check_link(out: Path) -> None:
    """Raise ``UserError`` where the folder ``out``, or one above it, is a link that leads nowhere, of which
    the system only says that it exists."""
    for place in (out, *out.parents):
        if place.is_symlink() and not place.exists():
            raise UserError(
                f"--out {place} is a link to nothing, {os.readlink(place)}: make the folder that it leads "
                "to, or choose another --out"
            )


def check_replaceable(path: Path, overwrite: bool, *sources: Path | None) -> None:
    """Raise ``UserError`` where something stands at ``path`` that must stay, a folder, a device, one of
    the files ``sources`` that are read, a file of a run, or any file without ``overwrite``, or where
    nothing can be written."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    if os.path.lexists(path):
        # what is written takes the place of what stood there, and root may replace /dev/null
        if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
            raise UserError(
                f"{path} is a device or a pipe, to which nothing is written: name a file"
            )
        for source in filter(None, sources):
            # FILE.npz/NAME names an array in a file
            read = [place for place in (source, *source.parents) if place.is_file()]
            if path.exists() and any(map(path.samefile, read)):
                raise UserError(f"{path} is the file that is read: choose another --out")
        for out in (path.parent, path.parent.parent):
            for manifest in manifests(out):
                if manifest.wrote(out / path.relative_to(out)):
                    raise UserError(f"{path} belongs to the run in {out}: choose another --out")
        if not overwrite:
            raise UserError(f"{path} exists: replace it with --overwrite, or choose another --out")
    # now, for what is to be written may take hours
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        what = "may not be written to" if folder.is_dir() else "is no folder"
        raise UserError(f"cannot write {path}: {folder} {what}")
