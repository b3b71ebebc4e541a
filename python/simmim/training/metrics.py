"""``metrics.csv``: one row a record, kept in step with the checkpoints."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import TextIO

COLUMNS = (
    *("update", "epoch", "split", "loss", "accuracy", "lr", "grad_norm", "images_per_second"),
    *("waiting", "skipped"),
)
#: what makes a row a record
_NEEDED = ("update", "split", "loss")


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
    """Complete rows of a metrics file, with text for every column; the update is a whole number."""
    return _parse(path.read_bytes())[0]


def _parse(content: bytes) -> tuple[list[dict[str, str]], bool]:
    """The records in ``content``, and whether there was something that is no record."""
    try:
        text = content.decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        table = list(reader)
    except (UnicodeDecodeError, csv.Error):
        return [], True
    if table and not text.endswith(("\n", "\r")) and None in table[-1].values():
        table.pop()  # cut short by a crash
    unclear = bool(text.strip()) and not set(_NEEDED) <= {*reader.fieldnames}
    rows = []
    for cells in table:
        surplus = cells.pop(None, ())
        row = dict.fromkeys(COLUMNS, "") | {name: cell or "" for name, cell in cells.items()}
        try:
            # a spreadsheet may have written 1000 as 1.00E+03
            row["update"] = str(int(float(row["update"])))
            complete = bool(row["split"]) and math.isfinite(float(row["loss"]))
        except (ValueError, OverflowError):
            complete = False
        if complete:
            rows.append(row)
        unclear = unclear or any(surplus) or (not complete and any(row.values()))
    return rows, unclear


def _copy_aside(path: Path, content: bytes) -> Path:
    number = 1
    while (copy := path.with_name(f"{path.stem}.{number}.old.csv")).exists():
        number += 1
    copy.write_bytes(content)
    return copy


def _flush(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())
