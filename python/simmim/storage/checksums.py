"""Checksums of a checkpoint's contents, and of the archive that holds them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from simmim.errors import first_line


def checksums(contents: Any) -> dict[str, int]:
    """The CRC-32 of every tensor, number and string in nested dictionaries, lists and tuples.

    A tensor's covers type, shape and values; that of a dictionary, list or tuple its length.

    Returns:
        one number for each place, named as in Python: ``['model']['head.weight']``.
    """
    found: dict[str, int] = {}

    def visit(where: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[where] = _of_tensor(value)
        elif isinstance(value, Mapping):
            found[where] = _of_text(f"dict of {len(value)}")
            for key, entry in value.items():
                visit(f"{where}[{key!r}]", entry)
        elif isinstance(value, list | tuple):
            found[where] = _of_text(f"{type(value).__name__} of {len(value)}")
            for number, entry in enumerate(value):
                visit(f"{where}[{number}]", entry)
        else:
            found[where] = _of_text(f"{type(value).__name__} {value!r}")

    visit("", contents)
    return found


def damaged_parts(contents: Any, stored: Any) -> list[str]:
    """The places of ``contents`` whose checksums are not the ``stored`` ones."""
    if not isinstance(stored, dict):
        return ["the checksums"]
    found = checksums(contents)
    wrong = [where for where, value in found.items() if stored.get(where) != value]
    wrong += [str(where) for where in stored.keys() - found.keys()]
    return [where or "the number of its parts" for where in wrong]


def check_archive(path: Path) -> None:
    """Check every part of a file of ``torch.save`` against the CRC-32 in the archive's directory.

    PyTorch reads without that, and takes sizes from a damaged file as they come. The parts are read
    by PyTorch's own reader, since a damaged directory can mean different things to two readers.

    Raises:
        EOFError: the file is empty.
        pickle.UnpicklingError: it is no archive.
        RuntimeError: it is damaged or cut short.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(2)
        if start != b"PK":
            raise pickle.UnpicklingError("no archive") if start else EOFError("it is empty")
        try:
            with zipfile.ZipFile(file) as archive:
                parts = {part.filename.partition("/")[2]: part for part in archive.infolist()}
            # the reader that torch.load uses; it takes no path whose bytes are not UTF-8
            file.seek(0)
            reader = torch._C.PyTorchFileReader(file)
            if parts.keys() != set(reader.get_all_records()):
                raise RuntimeError("its directory is damaged")
            for name, part in parts.items():
                content = reader.get_record(name)
                if len(content) != part.file_size or crc32(content) != part.CRC:
                    raise RuntimeError(f"part {name} does not match its checksum")
        except Exception as error:
            # zipfile raises whatever a damaged number leads to
            raise RuntimeError(first_line(error)) from error


def _of_text(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass"))


def _of_tensor(tensor: Tensor) -> int:
    start = _of_text(f"{tensor.dtype} {tuple(tensor.shape)}")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return crc32(flat.view(torch.uint8).numpy(), start)
