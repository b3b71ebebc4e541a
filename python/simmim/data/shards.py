"""Image files in tar archives, in WebDataset's layout or any other."""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Collection
from pathlib import Path

from simmim.errors import UserError, first_line
from simmim.storage.files import write_text


class ShardSource:
    """The files with ``suffixes``, in lower case, in an uncompressed tar archive; raises
    ``UserError`` for another or a damaged one.

    Where they lie is found once and kept beside the archive, in ``NAME.tar.index.json``, or, where
    nothing can be written there, found anew by every run.
    """

    kind = "members of tar archives"

    def __init__(self, path: Path, suffixes: Collection[str]) -> None:
        self.path = path
        stat, index = path.stat(), path.with_name(path.name + ".index.json")
        state = [stat.st_size, stat.st_mtime_ns, sorted(suffixes)]
        kept = {}
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(index.read_text())
        if kept.get("archive") != state:
            kept = {"archive": state, "members": _members(path, suffixes)}
            with contextlib.suppress(OSError, UserError):
                write_text(index, json.dumps(kept))
        self._members = kept["members"]

    def __len__(self) -> int:
        return len(self._members)

    def name(self, number: int) -> str:
        return f"/{self._members[number][0]}"

    def size(self, number: int) -> int:
        return self._members[number][2]

    def read(self, number: int) -> bytes:
        _, offset, size = self._members[number]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _members(path: Path, suffixes: Collection[str]) -> list[tuple[str, int, int]]:
    """Name, offset and size of each image, in the order of the archive."""
    try:
        with tarfile.open(path, "r:") as archive:
            found = [
                (member.name, member.offset_data, member.size)
                for member in archive
                if member.isfile() and Path(member.name).suffix.lower() in suffixes
            ]
            _check_end(path, archive.offset)
            return found
    except tarfile.TarError as error:
        raise UserError(
            f"{path} is no tar archive, or a compressed one: unpack it ({first_line(error)})"
        ) from error


def _check_end(path: Path, offset: int) -> None:
    """Raise ``UserError`` where tarfile stopped reading at ``offset`` and no archive ends: it says nothing
    of a missing end mark, a damaged header or another archive behind."""
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE:
        raise UserError(f"{path} is cut off: it has no end mark, and members may be missing")
    if any(rest[: tarfile.BLOCKSIZE]):
        raise UserError(f"{path} is damaged: what should be a member at byte {offset:,} is none")
    if any(rest):
        raise UserError(
            f"{path} goes on after its end mark, at byte {offset:,}: give archives that were put one "
            "after the other as files of their own"
        )
