"""Sources of images: folders, lists of files, arrays, archives, tables."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simmim.config.apply import ApplyConfig
from simmim.config.images import SourceConfig
from simmim.data.arrays import ArraySource
from simmim.data.item import Labels, items
from simmim.data.listing import (
    ARRAYS,
    PACK,
    SUFFIXES,
    Listing,
    check_any,
    leave_arrays,
    list_images,
    other_kind,
    suffix_of,
)
from simmim.data.npz import find_npz, split_npz
from simmim.data.packed import list_pack
from simmim.data.roles import ROLE_OF, split_role
from simmim.data.shards import ShardSource
from simmim.data.tables import PATH_COLUMNS, TableSource
from simmim.errors import UserError, printable

#: endings of members in archives that are taken for kinds of images, such as jpg beside seg.png
_MOST_ENDINGS = 8


def is_folder_of_files(path: Path) -> bool:
    """Whether a source is a folder that is searched for files, and no array or table."""
    others = is_pack, _is_zarr, _is_saved_dataset
    return path.is_dir() and not any(is_one(path) for is_one in others)


def is_pack(path: Path) -> bool:
    """Whether ``simmim pack`` wrote a folder."""
    return (path / PACK).is_file()


def find_source(path: Path, config: SourceConfig, without: Iterable[Path] = ()) -> Listing:
    """The images of any source, in the order of a run.

    Args:
        path: a folder of images, shards or parquet files; a list (txt, csv, parquet); an array (npy,
            npz, zarr); an archive; a table; a pack; a single image.
        config: which column or array is meant.
        without: folders to leave out.

    Raises:
        UserError: nothing there, nothing that is read, or no image in it.
    """
    if is_folder_of_files(path):
        listing = list_images(path, without)
        if not listing.paths:
            listing = find_shards(listing, config) or listing
        check_any(listing)
        return listing
    check_exists(path)
    if is_pack(path):
        return list_pack(path)
    suffix, zipped = path.suffix.lower(), split_npz(path)
    npz = find_npz(path, config.column) if zipped else None
    if suffix in (".txt", ".csv"):
        tables = [CsvTable(path)] if suffix == ".csv" else []
        return _listed(path, read_paths(path, config.column), tables)
    if suffix == ".tar":
        return _archives(path, [path], config.column)
    if npz is not None:
        by_column = not zipped[1]
        listing = Listing(npz.path.parent, items(npz), by_column=by_column)
    elif suffix == ".npy" or _is_zarr(path):
        array = ArraySource(path, config.column)
        listing = Listing(path.parent, items(array), by_column=array.in_group)
    elif suffix == ".parquet" or _is_saved_dataset(path):
        listing = _table(path, [path] if suffix == ".parquet" else [], config)
    elif suffix in SUFFIXES:
        return Listing(path.parent, [path])
    else:
        raise UserError(
            f"{path} is no source of images: name a folder, a list (txt, csv, parquet), an array "
            "(npy, npz, zarr), a tar archive or an image"
        )
    if not listing.paths:
        raise UserError(f"no images in {path}: it is empty")
    return listing


def check_exists(path: Path) -> None:
    """Raise ``UserError`` for a path that leads nowhere; ``FILE.npz/NAME`` leads to an array."""
    if path.exists() or split_npz(path):
        return
    text = str(path)
    advice = _foreign(text)
    if path.is_symlink():
        advice = f": it is a link to {os.readlink(path)}"
    elif text.startswith("~"):
        advice = ": the shell left ~ as it is, write the path out"
    elif any(letter in text for letter in "*?["):
        advice = ": patterns are not expanded, name a folder or a list of files (txt)"
    if not advice and not path.is_absolute():
        # as where a run is resumed from another folder
        advice = f", seen from {Path.cwd()}"
    raise UserError(f"no such file or folder: {text}{advice}")


def _foreign(path: str) -> str:
    """Why what looks like no path of this machine leads nowhere, empty where it does."""
    if "\\" in path or re.match(r"[a-zA-Z]:/", path):
        return ": it is a path of Windows, write it as on this machine and with /"
    if re.match(r"\w+:/", path):
        return ": it is an address, and only files of this machine are read"
    return ""


def check_column_and_layout(config: SourceConfig | ApplyConfig, listing: Listing) -> None:
    """Raise ``UserError`` where ``--column`` or ``--layout`` is given and says nothing of the images.

    A layout that ``--stats`` or a checkpoint brings may be that of other images.
    """
    layout = getattr(config, "layout", "auto")
    suffixes = set(map(suffix_of, listing.paths)) if config.column or layout != "auto" else ()
    if config.column and not listing.by_column and ".npz" not in suffixes:
        raise UserError(
            f"--column {config.column} is for tables, tar archives, zarr groups and npz files, and "
            f"{config.data} holds none: leave it out"
        )
    files = all(isinstance(i, Path) or isinstance(i.source, ShardSource) for i in listing.paths)
    brought = getattr(config, "stats", None) or getattr(config, "checkpoint", None)
    if layout != "auto" and not brought and files and not ARRAYS & set(suffixes):
        raise UserError(
            f"--layout {layout} is for arrays, and {config.data} holds none: leave it out"
        )


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def find_shards(found: Listing, config: SourceConfig) -> Listing | None:
    """The images of a folder that was searched for files and holds tar archives, parquet files or
    saved datasets."""
    folder, shards = found.folder, sorted(found.shards)
    archives = [path for path in shards if path.suffix.lower() == ".tar"]
    tables = [path for path in shards if path not in archives]
    _check_one_part(folder, archives or tables)
    if archives:
        used, listing = archives, _archives(folder, archives, config.column)
    elif tables:
        used, listing = tables, _table(folder, tables, config)
    else:
        parts = sorted(p.parent for p in folder.rglob("state.json") if _is_saved_dataset(p.parent))
        listing = Listing(folder)
        for part in parts:
            listing.add(_table(part, [], config))
        return listing if parts else None
    listing.left += found.left - Counter(map(other_kind, used))
    return listing


def _check_one_part(folder: Path, shards: Sequence[Path]) -> None:
    """Raise ``UserError`` where shards say by their names that they are several parts of a data set, and lie
    in no folders, train/ and so on, that hold one each."""
    parts: dict[str, dict[str, Path]] = {}
    for path in reversed(shards):
        role = ROLE_OF.get(path.relative_to(folder).parts[0].lower(), "")
        parts.setdefault(role, {})[split_role(path.name)[0]] = path
    for found in parts.values():
        found.pop("", None)
        if len(found) > 1:
            first, second, *_ = sorted(found.values())
            raise UserError(
                f"{folder} holds shards of several parts, such as {first.name} and {second.name}: put "
                "those of each part, or links to them, into a folder of its own, train/ and val/ or "
                "test/"
            )


def _archives(path: Path, archives: list[Path], column: str) -> Listing:
    ending = column.lower().removeprefix(".")
    sources = [ShardSource(archive, SUFFIXES, ending) for archive in archives]
    found = [item for source in sources for item in items(source)]
    endings = sorted({ending for source in sources for ending in source.endings})
    if not endings:
        raise UserError(f"no images in {path}: none of its members ends as an image file does")
    if not found:
        raise UserError(
            f"--column {column}: no image in {path} ends so, the endings are {', '.join(endings[:8])}"
        )
    listing = Listing(path if path.is_dir() else path.parent, found, by_column=bool(ending))
    leave_arrays(listing)
    # of names that hold dots for another reason there are many endings
    if len(listing.paths) == len(found) and 1 < len(endings) <= _MOST_ENDINGS and not ending:
        samples = sum(source.samples() for source in sources)
        if samples < len(found):
            listing.note = (
                f"of {samples:,} samples, some with several images ({', '.join(endings)}): --column "
                f"{endings[0]} takes one of each"
            )
    return listing


def _table(path: Path, files: list[Path], config: SourceConfig) -> Listing:
    table = TableSource(path, files, config.column)
    if table.texts is None:
        return Listing(path if path.is_dir() else path.parent, items(table), by_column=True)
    return _listed(files[0] if files else path, table.texts, [table])


@dataclass(frozen=True)
class CsvTable:
    """The columns of a list of files with a header."""

    path: Path

    @property
    def columns(self) -> list[str]:
        return list(_read_table(self.path).fieldnames or ())

    def labels(self, column: str) -> tuple[list[str], tuple[()]]:
        return [row[column] for row in _read_table(self.path)], ()


def read_paths(path: Path, column: str = "") -> list[str]:
    """The paths in a text file, one a line, or in a column of a CSV file with a header; raises
    ``UserError`` where there is no header, no such column, or no telling which one is meant."""
    if path.suffix.lower() == ".txt":
        # names of files may hold the other signs at which `str.splitlines` splits, such as U+2028
        lines = io.StringIO(_read_text(path), newline=None)
        return [line.rstrip("\n") for line in lines if line.strip()]
    table = _read_table(path)
    names = list(table.fieldnames or ())
    likely = [name for name in names if name.lower() in PATH_COLUMNS] or names
    name = column or (likely[0] if len(likely) == 1 else "")
    if not name or name not in names:
        raise UserError(
            f"{path} has the columns {', '.join(names)}: say with --column which one holds paths"
        )
    return [row[name] for row in table]


def _read_table(path: Path) -> csv.DictReader:
    """The rows of a CSV file with a header."""
    text = _read_text(path)
    # spreadsheets write what separates lists where they are: semicolons, or tabs beside UTF-16
    header = next(iter(text.splitlines()), "")
    delimiter = max(",;\t", key=header.count)
    table = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=delimiter)
    names = list(table.fieldnames or ())
    # its first image would be taken for the name of a column, and be missing
    first = next((name for name in names if Path(name).suffix.lower() in SUFFIXES), None)
    if first is not None or not names:
        begins = f"begins with {printable(first)}" if first else "is empty"
        raise UserError(f"{path} {begins}: its first line must name the columns, for example path")
    return table


def _read_text(path: Path) -> str:
    """The text of a list in UTF-8, or in the UTF-16 that PowerShell and Excel write."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in content:
        # surrogates are let through: names of files may hold any bytes
        text = content.decode("utf-16", errors="surrogatepass")
    else:
        text = content.decode("utf-8-sig", errors="surrogateescape")
    if "\0" in text:
        raise UserError(f"{path} is no text in UTF-8, nor in UTF-16 that begins with its mark")
    return text


def _listed(path: Path, lines: Sequence[str], tables: list[Labels]) -> Listing:
    """Files that a list names, as seen from the list's own folder, and what holds its columns."""
    paths = [path.parent / line for line in lines]
    if not paths:
        raise UserError(f"{path}: it names no image")
    for number, (image, line) in enumerate(zip(paths, lines, strict=True), 1):
        if image.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: its path number {number}, {line!r}, is no image that is read")
    # before a run takes them for a disk that is gone
    if not any(map(os.path.exists, paths)):
        advice = _foreign(lines[0]) or f": paths are seen from {path.parent}"
        raise UserError(f"{path} names no file that is there, the first is {lines[0]}{advice}")
    return Listing(path.parent, paths, by_column=bool(tables), tables=tables)
