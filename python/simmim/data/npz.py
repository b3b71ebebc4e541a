"""Arrays of many images in an npz file, perhaps with their labels and split, as in MedMNIST's files."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simmim.data.arrays import ArraySource
from simmim.data.roles import split_role
from simmim.errors import UserError, first_line

#: names of arrays of images, the word for a part of the data set left out
_IMAGES = ("", "images", "image", "x", "data")


class Header(NamedTuple):
    """What is known of an array before it is read; ``offset`` is where the file's bytes are those of the
    array, ``None`` if it is compressed."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int | None


class NpzSource(ArraySource):
    """Array ``array`` of an npz file, memory-mapped unless it is compressed."""

    def __init__(self, path: Path, array: str) -> None:
        # once, for processes that are forked later share it
        self._name, self._images = array, _load(path, array)
        super().__init__(path, inside=f"/{array}")
        self.in_group = True

    @property
    def columns(self) -> list[str]:
        return sorted(_labels_beside(read_headers(self.path), self._name))

    def labels(self, column: str) -> tuple[list[object], tuple[()]]:
        found = _load(self.path, _labels_beside(read_headers(self.path), self._name)[column])
        return (np.char.decode(found) if found.dtype.kind == "S" else found).ravel().tolist(), ()

    def _open(self) -> np.ndarray:
        return self._images


def split_npz(path: Path) -> tuple[Path, str] | None:
    """The npz file and the name of its array where ``path`` is ``FILE.npz`` (the name is empty then) or
    ``FILE.npz/NAME``."""
    for file in (path, *path.parents):
        if file.suffix.lower() == ".npz" and file.is_file():
            return file, "" if file == path else path.relative_to(file).as_posix()
    return None


def find_npz(path: Path, column: str) -> NpzSource | None:
    """The images of an npz file or of an array in it; ``None`` where the file holds a single image.

    Without ``column``, the name of an array, the only one of three or four axes is meant.

    Raises:
        UserError: damaged, no such array, or no telling which one is meant.
    """
    file, name = split_npz(path)
    if name:
        return NpzSource(file, name)
    headers = read_headers(file)
    able = [array for array, header in headers.items() if len(header.shape) in (3, 4)]
    if not column and len(able) > 1:
        raise UserError(
            f"{file} holds the arrays {', '.join(headers)}: name that of the images with --column, or "
            f"as {file}/{able[0]}"
        )
    meant = column or "".join(able)
    header = headers.get(meant)
    if header is None or len(header.shape) < 3:
        return None
    many = len(header.shape) == 4 or split_role(meant)[0] or _labels_beside(headers, meant)
    return NpzSource(file, meant) if many else None


def find_parts(file: Path) -> dict[str, Path]:
    """The arrays of images in an npz file that are parts of a data set, by role; empty if their names do
    not say which."""
    found: dict[str, list[str]] = {}
    for array, header in read_headers(file).items():
        role, rest = split_role(array)
        if role and len(header.shape) in (3, 4) and rest.lower() in _IMAGES:
            found.setdefault(role, []).append(array)
    return {role: file / arrays[0] for role, arrays in found.items() if len(arrays) == 1}


def read_headers(file: Path) -> dict[str, Header]:
    """What an npz file holds; raises ``UserError`` where it cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename[:-4]: _header(archive, info, raw) for info in members}
    except _ERRORS as error:
        raise _unreadable(file, error) from error


#: what zipfile and NumPy meet in damaged, encrypted or foreign files
_ERRORS = (
    *(OSError, ValueError, EOFError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def _unreadable(file: Path, error: BaseException) -> UserError:
    return UserError(f"{file} cannot be opened: {first_line(error)}")


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, raw) -> Header:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = getattr(np.lib.format, f"read_array_header_{min(version[0], 2)}_0")
        shape, fortran, dtype = read(member)
        inside = member.tell()
    if info.compress_type != zipfile.ZIP_STORED:
        return Header(shape, fortran, dtype, None)
    # what stands before the member says itself how long it is
    raw.seek(info.header_offset)
    name, extra = struct.unpack("<26xHH", raw.read(30))
    return Header(shape, fortran, dtype, info.header_offset + 30 + name + extra + inside)


def _labels_beside(headers: dict[str, Header], images: str) -> dict[str, str]:
    """Arrays of the same part as ``images`` that hold one value for each of them, by their names without
    the word for the part."""
    role, count = split_role(images)[0], headers[images].shape[0]
    named = {array: split_role(array) for array, header in headers.items() if array != images}
    return {
        rest: array
        for array, (part, rest) in named.items()
        if part == role and headers[array].shape in ((count,), (count, 1))
    }


def _load(file: Path, array: str) -> np.ndarray:
    headers = read_headers(file)
    if array not in headers:
        raise UserError(f"{file} has no array {array}: it holds {', '.join(headers) or 'none'}")
    shape, fortran, dtype, offset = headers[array]
    try:
        if offset is not None and np.prod(shape) and not dtype.hasobject:
            order = "F" if fortran else "C"
            return np.memmap(file, dtype, mode="r", offset=offset, shape=shape, order=order)
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[array]
    except MemoryError as error:
        raise UserError(
            f"{file}: {array} does not fit into memory; unzip {file} gives npy files, which are read "
            "in parts"
        ) from error
    except _ERRORS as error:
        raise _unreadable(file, error) from error
