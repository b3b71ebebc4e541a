"""Image files in tar archives, in WebDataset's layout or any other."""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import BinaryIO

from simmim.errors import UserError, first_line
from simmim.storage.files import write_text


class ShardSource:
    """The files with ``suffixes``, in lower case, in an uncompressed tar archive, with ``ending`` only those
    whose name ends so from its first dot on; raises ``UserError`` for another archive or a damaged one.

    Where they lie is found once and kept beside the archive, in ``NAME.tar.index.json``, or, where
    nothing can be written there, found anew by every run.
    """

    kind = "members of tar archives"

    def __init__(self, path: Path, suffixes: Collection[str], ending: str = "") -> None:
        self.path = path
        self._suffixes = suffixes
        images = [member for member in _index(path) if self._is_image(member[0])]
        #: endings of images, from the first dot of their names on
        self.endings = {_parted(member[0])[1] for member in images}
        self._members = [m for m in images if not ending or _parted(m[0])[1] == ending]

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

    def samples(self) -> int:
        """How many samples the images are of: those of one sample share their name up to its first dot."""
        return len({_parted(member[0])[0] for member in self._members})

    @property
    def columns(self) -> list[str]:
        """Endings of the members beside the images, and ``json:KEY`` for what the first JSON object holds."""
        first: dict[str, tuple[str, int, int]] = {}
        for member in _index(self.path):
            ending = _parted(member[0])[1]
            if ending and not self._is_image(member[0]):
                first.setdefault(ending, member)
        keys = None
        if "json" in first:
            with self.path.open("rb") as file:
                keys = self._object(file, first["json"])
        found = [name for name in first if name != "json" or keys is None]
        return [*found, *(f"json:{key}" for key in keys or ())]

    def labels(self, column: str) -> tuple[list[object], tuple[()]]:
        """The text of the member beside each image whose name ends in ``column``, or the value of ``KEY`` in
        its JSON object for ``json:KEY``."""
        wanted, _, key = column.partition(":")
        read = partial(self._value, key=key) if key else self._text
        found: dict[str, object] = {}
        with self.path.open("rb") as file:
            for member in _index(self.path):
                sample, ending = _parted(member[0])
                if ending == wanted:
                    found[sample] = read(file, member)
        return [found.get(_parted(member[0])[0]) for member in self._members], ()

    def _text(self, file: BinaryIO, member: tuple[str, int, int]) -> str:
        name, offset, size = member
        file.seek(offset)
        try:
            return file.read(size).decode()
        except UnicodeDecodeError:
            raise UserError(f"{self.path}/{name} is no text, and so no label") from None

    def _object(self, file: BinaryIO, member: tuple[str, int, int]) -> dict[str, object] | None:
        """The JSON object in a member; ``None`` where it holds something else."""
        try:
            found = json.loads(self._text(file, member))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _value(self, file: BinaryIO, member: tuple[str, int, int], key: str) -> object:
        found = self._object(file, member)
        value = None if found is None else found.get(key)
        if found is None or isinstance(value, list | dict):
            what = "no JSON object" if found is None else f"{type(value).__name__} in {key}"
            raise UserError(f"{self.path}/{member[0]} holds {what}, and so no label")
        return value

    def _is_image(self, name: str) -> bool:
        return Path(name).suffix.lower() in self._suffixes


def _parted(name: str) -> tuple[str, str]:
    """What names of one sample share, and their ending, from the first dot as in WebDataset."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _index(path: Path) -> list[tuple[str, int, int]]:
    """Name, offset and size of each file in an archive, as kept beside it or found."""
    stat, index = path.stat(), path.with_name(path.name + ".index.json")
    state = [stat.st_size, stat.st_mtime_ns, "all files"]
    kept = {}
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(index.read_text())
    if kept.get("archive") != state:
        kept = {"archive": state, "members": _members(path)}
        with contextlib.suppress(OSError, UserError):
            write_text(index, json.dumps(kept))
    return kept["members"]


def _members(path: Path) -> list[tuple[str, int, int]]:
    """Name, offset and size of each file, in the order of the archive."""
    try:
        with tarfile.open(path, "r:") as archive:
            found = [
                (member.name, member.offset_data, member.size)
                for member in archive
                if member.isfile()
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
