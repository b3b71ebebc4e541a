"""``metrics.csv``: one row a record, kept in step with the checkpoints, readable by a spreadsheet
and again after one has saved it."""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path
from typing import TextIO

COLUMNS = (
    *("update", "epoch", "split", "loss", "accuracy", "lr", "grad_norm", "images_per_second"),
    *("waiting", "skipped"),
)
_COUNTS = ("update", "epoch")
_WORDS = ("split",)
#: what makes a row a record
_NEEDED = ("update", "split", "loss")
_GROUPED = re.compile(r"\d{1,3}([.,'\u2019\u00a0\u202f ]\d{3})+")


class MetricsFile:
    """The file, open for writing.

    A row is written whole as soon as it is known. On resuming, the rows after the checkpoint's
    update are cut off, since the run will write them again; ``sync`` before a checkpoint makes sure
    that the rows before it are on the disk. Columns that somebody added stay.

    Args:
        path: the file; created with its header if it is not there.
        update: updates done; later rows, and a row cut short by a crash, are deleted.

    Attributes:
        set_aside: where the file was moved to because none of it, or not all, could be understood;
            else ``None``.
    """

    def __init__(self, path: Path, update: int) -> None:
        content = path.read_bytes() if path.exists() else b""
        rows, unclear = _parse(content)
        self.set_aside = _copy_aside(path, content) if unclear else None
        added = [name for name in (rows[0] if rows else ()) if name not in COLUMNS]
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            self._writer = csv.DictWriter(file, [*COLUMNS, *added])
            self._writer.writeheader()
            self._writer.writerows(row for row in rows if int(row["update"]) <= update)
            _flush(file)
        temporary.replace(path)
        self._file = path.open("a", newline="", buffering=1, encoding="utf-8")
        self._writer = csv.DictWriter(self._file, [*COLUMNS, *added])

    def write(self, **values: object) -> None:
        """Append one row; columns not named stay empty."""
        self._writer.writerow(values)

    def sync(self) -> None:
        """Return when all rows are on the disk."""
        _flush(self._file)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Complete rows of a metrics file.

    Numbers come back as Python writes them, whatever a spreadsheet made of them; a cell that holds
    no number comes back empty, a row without update, split or loss not at all.
    """
    return _parse(path.read_bytes())[0]


def _parse(content: bytes) -> tuple[list[dict[str, str]], bool]:
    """The records in ``content``, and whether there was something that is no record."""
    text = _decode(content)
    lines = io.StringIO(text, newline="")
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    try:
        table = [row for row in csv.reader(lines, delimiter=delimiter) if any(row)]
    except csv.Error:
        return [], True
    if not table:
        return [], False
    header = [name.strip() for name in table[0]]
    while header and not header[-1]:
        header.pop()
    if not set(_NEEDED) <= set(header):
        return [], True
    rows, unclear = [], False
    if not text.endswith(("\n", "\r")) and len(table[-1]) < len(header):
        del table[-1]  # cut short by a crash
    names = [*COLUMNS, *(name for name in header if name not in COLUMNS)]
    for cells in table[1:]:
        # a spreadsheet may leave out empty cells at the end of a row
        row = dict(zip(header, cells, strict=False))
        record = {name: _clean(name, row.get(name, "")) for name in names}
        complete = all(record[name] for name in _NEEDED)
        if complete:
            rows.append(record)
        unclear = unclear or not complete or any(cells[len(header) :])
    return rows, unclear


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _clean(name: str, cell: str) -> str:
    if name not in COLUMNS:
        return cell
    cell = cell.strip()
    if name in _WORDS:
        return cell
    # 1,000 and 1.000 are a thousand updates, 0,25 is a quarter
    if name in _COUNTS and _GROUPED.fullmatch(cell):
        cell = re.sub(r"\D", "", cell)
    if cell.rfind(",") > cell.rfind("."):
        cell = cell.replace(".", "")
        cell = cell.replace(",", ".")
    cell = cell.replace(",", "")
    try:
        value = float(cell)
        return str(int(value)) if name in _COUNTS else cell
    except (ValueError, OverflowError):
        return ""


def _copy_aside(path: Path, content: bytes) -> Path:
    number = 1
    while (copy := path.with_name(f"{path.stem}.{number}.old.csv")).exists():
        number += 1
    copy.write_bytes(content)
    return copy


def _flush(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())
