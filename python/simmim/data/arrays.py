"""One array of many images: npy, memory-mapped, and zarr."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from simmim.data.item import Source
from simmim.errors import UserError, first_line, require


class ArraySource(Source):
    """``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` in an npy file or a zarr store; raises
    ``UserError`` for one that cannot be opened or holds no such array.

    Args:
        path: the file, or the folder of a store.
        column: the array's name where the store is a group, which ``in_group`` tells.
        inside: what follows ``path`` in the array's name.
    """

    def __init__(self, path: Path, column: str = "", inside: str = "") -> None:
        self.path, self._column, self._inside = path, column, inside
        self.kind = "images of a zarr array" if path.is_dir() else "images of a NumPy array"
        self._process, self._array = -1, None
        array = self._open()
        self.in_group = bool(getattr(array, "path", ""))
        many = "are (N, H, W), (N, C, H, W) or (N, H, W, C)"
        if array.ndim not in (3, 4):
            raise UserError(
                f"{path}{inside} is an array of {array.ndim} dimensions: many images {many}. Write an "
                "array of that shape, or each image as a TIFF or npy file"
            )
        if array.ndim == 3 and array.shape[2] <= 4 < array.shape[1]:
            size = " x ".join(map(str, array.shape))
            raise UserError(
                f"{path}{inside} is an array of {size}: one image (H, W, C), it seems. Many {many}: put it into "
                "an array with array[None]"
            )
        self._count, *image = array.shape
        self._bytes = math.prod(image) * array.dtype.itemsize

    def __len__(self) -> int:
        return self._count

    def name(self, number: int) -> str:
        return f"{self._inside}[{number}]"

    @property
    def columns(self) -> list[str]:
        """The arrays of a group that hold one value for each image."""
        if not self.in_group:
            return []
        group = require("zarr", "data").open(str(self.path), mode="r")
        return sorted(name for name, array in group.arrays() if array.shape == (self._count,))

    def labels(self, column: str) -> tuple[list[object], tuple[()]]:
        return _open(self.path, column)[:].tolist(), ()

    def size(self, number: int) -> int:
        return self._bytes

    def read(self, number: int) -> np.ndarray:
        return self._open()[number]

    def _open(self):
        """The array, opened once in each process: zarr's threads do not outlive a fork."""
        if self._process != os.getpid():
            self._array, self._process = _open(self.path, self._column), os.getpid()
        return self._array


def _open(path: Path, column: str):
    try:
        if not path.is_dir():
            # np.load takes whatever is no npy file for a pickle and advises to run it
            return np.lib.format.open_memmap(path, mode="r")
        found = require("zarr", "data").open(str(path), mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be opened: {first_line(error)}") from error
    if not hasattr(found, "ndim"):
        names = sorted(name for name, _ in found.arrays())
        name = column or (names[0] if len(names) == 1 else "")
        found = found.get(name) if name else None
        if not hasattr(found, "ndim"):
            held = f"holds the arrays {', '.join(names)}" if names else "is a group without arrays"
            raise UserError(f"{path} {held}: name one with --column, as a/b where it is in a group")
    return found
