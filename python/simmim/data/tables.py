"""Images in a column of a table: parquet files, and folders that Hugging Face ``datasets`` saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmim.data.item import Source
from simmim.errors import UserError, first_line, require

#: names of columns that hold paths, where several columns hold text
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "img")


class TableSource(Source):
    """A column of image files' contents or of arrays; raises ``UserError`` where it cannot be read,
    or which column is meant cannot be told.

    Args:
        path: what names the table: a file, or a folder.
        files: its parquet files; empty for a folder of ``save_to_disk``.
        column: the column's name; by default the only one that can hold images.

    Attributes:
        texts: what a column of text holds: paths of files.
    """

    kind = "rows of a table"

    def __init__(self, path: Path, files: Sequence[Path] = (), column: str = "") -> None:
        datasets = require("datasets", "data")
        datasets.disable_progress_bars()
        self.path, self.texts = path, None
        try:
            if files:
                table = datasets.Dataset.from_parquet([str(file) for file in files])
            else:
                table = datasets.load_from_disk(str(path))
        except Exception as error:
            # read-only homes, full disks
            cache = isinstance(error, OSError) and files
            raise UserError(
                f"{path} is no table that datasets reads: {first_line(error)}"
                + "; HF_DATASETS_CACHE names the folder that it writes to" * bool(cache)
            ) from error
        ranks = {name: _rank(feature) for name, feature in table.features.items()}
        likely = [name for name in ranks if 0 < ranks[name] == max(ranks.values())]
        if len(likely) > 1 and ranks[likely[0]] == 1:
            likely = [name for name in likely if name.lower() in PATH_COLUMNS]
        name = column or (likely[0] if len(likely) == 1 else "")
        if not ranks.get(name):
            held = ", ".join(map(str, ranks))
            able = [column for column in ranks if ranks[column]]
            advice = (
                f"say with --column which of {', '.join(able)} holds the images"
                if able
                else "none of them holds images, files' contents, arrays or paths"
            )
            raise UserError(f"{path} has the columns {held}: {advice}")
        feature = table.features[name]
        if ranks[name] == 1:
            self.texts = [text or "" for text in table[name]]
        elif isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif ranks[name] == 3:
            table = table.with_format("numpy", dtype=np.dtype(_inner(feature).dtype))
        self._table, self._column = table.select_columns([name]), name
        self._whole, self._files = table, files
        held = files or [entry["filename"] for entry in table.cache_files]
        self._bytes = sum(os.path.getsize(file) for file in held)

    def __len__(self) -> int:
        return len(self._table)

    def size(self, number: int) -> int:
        return self._bytes

    @property
    def columns(self) -> list[str]:
        return self._whole.column_names

    def labels(self, column: str) -> tuple[list, list[str]]:
        feature = self._whole.features[column]
        values = self._whole.with_format(None).select_columns([column])[:][column]
        names = getattr(feature, "names", [])
        for file in self._files:
            # datasets takes the numbers of all files for the names of the first
            schema = require("pyarrow.parquet", "data").read_schema(file)
            other = require("datasets", "data").Features.from_arrow_schema(schema).get(column)
            if getattr(other, "names", []) != names:
                raise UserError(
                    f"{file} has other classes in its column {column}, or in another order, than "
                    f"{self._files[0]}: write them anew with the same ones"
                )
        if names:
            named = dict(enumerate(names))
            return [named.get(value) for value in values], names
        kind = getattr(feature, "dtype", type(feature).__name__)
        if not kind.startswith(("int", "uint", "bool", "string", "large_string", "null")):
            advice = ": convert it, in pandas with astype('Int64')" * kind.startswith("float")
            raise UserError(
                f"{self.path} has {kind} in its column {column}, and classes are names or whole "
                f"numbers{advice}"
            )
        return values, []

    def read(self, number: int) -> bytes | np.ndarray:
        value = self._table[number][self._column]
        if isinstance(value, dict):
            value = value["bytes"] or (Path(value["path"]).read_bytes() if value["path"] else b"")
        return value


def _rank(feature: Any) -> int:
    """4 for pictures and files' contents, 3 for arrays, 1 for text, 0 for what cannot be an image."""
    inner = getattr(_inner(feature), "dtype", "")
    if isinstance(feature, dict):
        return 4 if "bytes" in feature else 0
    if feature is not _inner(feature) or hasattr(feature, "shape"):
        return 3 if inner.startswith(("int", "uint", "float")) else 0
    if type(feature).__name__ == "Image" or inner in ("binary", "large_binary", "binary_view"):
        return 4
    return 1 if inner in ("string", "large_string", "string_view") else 0


def _inner(feature: Any) -> Any:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature
