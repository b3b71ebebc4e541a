"""Images that are not files: members of archives, rows of tables, parts of arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor


class Source(Protocol):
    """An adapter over a library that holds many images in the file or folder ``path``; ``kind``
    says in words what they are.

    Its methods are called from several threads, and in processes forked from the one that made it.
    """

    path: Path
    kind: str

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """What follows ``path`` in the name of an image, the same in every run."""
        return f"[{number}]"

    def size(self, number: int) -> int:
        """A number of bytes that tells other contents from these, for the fingerprint."""

    def read(self, number: int) -> bytes | np.ndarray | Tensor:
        """An image file's contents, or one image: an array ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``, or,
        of a pack, a tensor ``(C, H, W)``."""


class Labels(Protocol):
    """What may say the labels of images: a table, or an archive.

    Attributes:
        columns: names of what it holds for each image, its labels perhaps among them.
    """

    @property
    def columns(self) -> Sequence[str]: ...

    def labels(self, column: str) -> tuple[Sequence[object], Sequence[str]]:
        """The label of each image in order, ``None`` where it has none, and the names of all classes in the
        order that was given to them; no names where none was given.

        Raises:
            UserError: what the column holds is no label.
        """


@dataclass(frozen=True, slots=True)
class Item:
    """Image ``number`` of ``source``; stands where a path of an image file can stand."""

    source: Source
    number: int

    def __str__(self) -> str:
        return f"{self.source.path}{self.source.name(self.number)}"

    def read(self) -> bytes | np.ndarray | Tensor:
        return self.source.read(self.number)

    def stat(self) -> os.stat_result:
        """That of the file that holds it."""
        return self.source.path.stat()


class Paths(Sequence[Path]):
    """Paths of files in two arrays, whose memory processes that read go on sharing; of a list's objects
    each would come to hold a copy, since reading an object changes its reference count."""

    def __init__(self, paths: Iterable[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, names)])
        self._names = np.frombuffer(b"".join(names), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int | slice) -> Path | Paths:
        if isinstance(index, slice):
            return Paths(self[number] for number in range(*index.indices(len(self))))
        number = range(len(self))[index]
        name = self._names[self._ends[number] : self._ends[number + 1]]
        return Path(os.fsdecode(name.tobytes()))


def items(source: Source) -> list[Item]:
    """All images of ``source``."""
    return [Item(source, number) for number in range(len(source))]


def name_below(image: Path | Item, root: Path) -> str:
    """The name of an image as it is seen from ``root``, which may be moved."""
    path = image if isinstance(image, Path) else image.source.path
    # the quick way for a million files
    if path is image and str(path).startswith(f"{root}{os.sep}"):
        return str(path)[len(str(root)) + 1 :]
    try:
        below = path.relative_to(root)
    except ValueError:
        below = Path(os.path.relpath(path, root))
    name = below.as_posix() + ("" if path is image else image.source.name(image.number))
    return name.removeprefix("./")


def size_of(image: Path | Item) -> int:
    """Bytes of an image; -1 where they cannot be told."""
    try:
        if isinstance(image, Item):
            return image.source.size(image.number)
        return os.stat(image).st_size
    except OSError:
        return -1
