"""Listing of a folder's image files, and of what else it holds."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from simmim.data.item import Item, Labels
from simmim.errors import UserError

#: kinds that are read, by suffix
_KINDS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    ".gif": "GIF",
    ".avif": "AVIF",
    **dict.fromkeys((".jp2", ".j2k"), "JPEG 2000"),
    **dict.fromkeys((".npy", ".npz"), "NumPy"),
}
SUFFIXES = frozenset(_KINDS)
#: beside pictures these are something else, such as labels
ARRAYS = frozenset({".npy", ".npz"})

#: endings of images and arrays that are not read, so that a folder of them does not look empty
_OTHER = frozenset({
    ".jpe", ".jfif", ".jif", ".apng", ".mng", ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm",
    ".avifs", ".j2c", ".jpc", ".jpf", ".jpx", ".heic", ".heif", ".hif", ".jxl", ".mpo", ".tga",
    ".icb", ".vda", ".psd", ".psb", ".ico", ".icns", ".svg", ".svgz", ".exr", ".hdr", ".dng",
    ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".btf", ".tf8",
    ".tf2", ".gtiff", ".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vsi", ".czi", ".lif", ".nd2",
    ".lsm", ".oib", ".oif", ".stk", ".dcm", ".dicom", ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd",
    ".fits", ".fit", ".h5", ".hdf5", ".he5", ".nc", ".nc4", ".zarr", ".n5", ".parquet", ".arrow",
    ".tfrecord", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".beton",
    ".mds", ".mdb", ".lmdb", ".vrt", ".safe",
})  # fmt: skip
#: of these a folder is one file
_FOLDER_KINDS = {".zarr", ".n5", ".safe"}
#: of these images are read where a folder holds no image files
_SHARDS = {".tar", ".parquet"}
#: what describes the images of a pack, see `packed`
PACK = "pack.json"
#: what config.json of a run holds whatever the command
_RUN_SETTINGS = {"data", "out", "seed", "on_bad_image"}


@dataclass
class Listing:
    """Images under ``folder``, and what was left.

    Attributes:
        paths: images, in the order of a run.
        left: how many files of a kind were left.
        shards: those of them that may hold images themselves.
        runs: folders of runs, in which no images were looked for.
        without: folders that were to be left out.
        by_column: whether ``--column`` says which of several columns or arrays they are.
        dangling: links that lead nowhere.
        tables: those that name the images, one after the other; empty where images are no paths of a list.
        labels: the column that the images' labels are in; empty where none was looked for.
        rows: places in the tables of the images, where these are some of them.
        part: which rows of a table these are, where a column says what each is for.
        note: what else is to be known of the images.
    """

    folder: Path
    paths: list[Path | Item] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    shards: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    without: list[Path] = field(default_factory=list)
    by_column: bool = False
    dangling: list[Path] = field(default_factory=list)
    tables: list[Labels] = field(default_factory=list)
    labels: str = ""
    rows: list[int] | None = None
    part: str = ""
    note: str = ""

    def left_out(self) -> str:
        """For example ``3 .heic (not read), 1 link to nothing (a/b.png)``; empty if nothing was."""
        parts = [f"{count:,} {kind} (not read)" for kind, count in self.left.most_common()]
        if self.dangling:
            links = f"{len(self.dangling):,} link{'s' if len(self.dangling) > 1 else ''}"
            parts.append(f"{links} to nothing ({self.dangling[0]})")
        parts += [f"the run in {folder}" for folder in self.runs]
        parts += [f"the folder {folder}" for folder in self.without]
        return ", ".join(parts)

    def summary(self) -> str:
        """For example ``1,234 images: 1,200 JPEG, 34 PNG; left: 3 .heic (not read)``."""
        kinds = Counter(_kind(path) for path in self.paths)
        found = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        images = f"{len(self.paths):,} image{'' if len(self.paths) == 1 else 's'}"
        left = self.left_out()
        more = f"; labels from {self.labels}" if self.labels else ""
        more += "".join(f"; {text}" for text in (self.part, self.note) if text)
        return f"{images}: {found}{more}" + (f"; left: {left}" if left else "")

    def add(self, other: Listing) -> None:
        """Count what ``other`` found along with this one's."""
        self.paths += other.paths
        self.left += other.left
        self.runs += other.runs
        self.without += other.without
        self.by_column |= other.by_column
        self.dangling += other.dangling
        self.tables += other.tables


def _kind(path: Path | Item) -> str:
    return path.source.kind if isinstance(path, Item) else _KINDS[path.suffix.lower()]


def other_kind(path: Path) -> str:
    """The ending of an image or array that is not read; empty for any other file."""
    endings = path.suffix.lower(), "".join(path.suffixes[-2:]).lower()
    return next((ending for ending in endings if ending in _OTHER), "")


def summarize_bad(bad: dict[str, str]) -> str:
    """Files that could not be used, and why, of reasons by path: ``2 TIFF (16 bits a channel), 1
    PNG (...)``."""
    groups = Counter(
        # what follows the colon is of one file
        (_KINDS.get(Path(path).suffix.lower(), "file"), reason.partition(":")[0])
        for path, reason in bad.items()
    ).most_common()
    named = [f"{count:,} {kind} ({reason})" for (kind, reason), count in groups[:8]]
    rest = sum(count for _, count in groups[8:])
    return ", ".join([*named, f"{rest:,} more"] if rest else named)


def list_images(
    folder: Path, without: Iterable[Path] = (), above: tuple[Path, ...] = ()
) -> Listing:
    """All image files under ``folder``, sorted by path so that the order is that of any machine.

    Links to folders are followed, but into no folder that holds the link, and each link by itself:
    two links to one folder give its images twice. No file is opened: kinds are told by suffix.
    Folders in which a run of simmim wrote its results are left out, for their pictures are not data.

    Args:
        without: folders to leave out.
        above: folders that hold this one, into which no link leads either.
    """
    listing = Listing(folder)
    _walk(folder, (*above, folder.resolve()), {real_path(path) for path in without}, listing)
    leave_arrays(listing)
    return listing


def leave_arrays(listing: Listing) -> None:
    """Leave out the arrays beside pictures, which are labels, masks or features of them."""
    pictures = [path for path in listing.paths if suffix_of(path) not in ARRAYS]
    if pictures and len(pictures) < len(listing.paths):
        listing.left["NumPy beside pictures"] += len(listing.paths) - len(pictures)
        listing.paths = pictures


def suffix_of(image: Path | Item) -> str:
    return os.path.splitext(str(image))[1].lower()


def real_path(path: Path) -> Path:
    """``path`` without links. ``Path.resolve`` fails for a link that leads to itself, where an output may
    still be named."""
    return Path(os.path.realpath(path))


def check_any(listing: Listing) -> None:
    """Raise ``UserError`` where a folder holds no image that can be read."""
    folder = listing.folder
    if listing.paths:
        return
    if listing.left:
        kinds = ", ".join(dict.fromkeys(_KINDS.values()))
        raise UserError(
            f"no images in {folder} of the kinds that are read ({kinds}): it holds "
            f"{listing.left_out()}; convert them, for example to PNG, TIFF or npy"
        )
    raise UserError(
        f"no images in {folder}: it holds no file that ends in {', '.join(sorted(SUFFIXES))}"
    )


def _walk(folder: Path, above: tuple[Path, ...], without: set[Path], listing: Listing) -> None:
    """Add the files under ``folder``, which, without links, is the last of ``above``, in the order of
    the parts of their paths."""
    entries = entries_of(folder)
    if len(above) > 1 and holds_run(folder, {entry.name for entry in entries}):
        listing.runs.append(folder)
        return
    if len(above) > 1 and any(entry.name == PACK for entry in entries):
        listing.left["pack"] += 1
        return
    for entry in entries:
        path, linked = Path(folder, entry.name), entry.is_symlink()
        suffix = path.suffix.lower()
        if entry.is_dir(follow_symlinks=False) or (linked and path.is_dir()):
            inner = path.resolve() if linked else above[-1] / entry.name
            if suffix in _FOLDER_KINDS:
                listing.left[suffix] += 1
            elif inner in without:
                listing.without.append(path)
            elif inner not in above:
                _walk(path, (*above, inner), without, listing)
        elif suffix not in _KINDS:
            kind = other_kind(path)
            if kind:
                listing.left[kind] += 1
            if suffix in _SHARDS and path.is_file():
                listing.shards.append(path)
        # a pipe would be waited for
        elif entry.is_file(follow_symlinks=False) or path.is_file():
            listing.paths.append(path)
        elif linked and not path.exists():
            listing.dangling.append(path)


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in ``folder``, sorted by name; raises ``UserError`` where it may not be read."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        raise UserError(
            f"the folder {folder} may not be read: change its permissions, or name another folder"
        ) from None


def holds_run(folder: Path, names: set[str]) -> bool:
    """Whether a command of simmim wrote its results into ``folder``, which holds ``names``."""
    if {"probe.csv", "tensorboard"} <= names:
        return True
    if "config.json" not in names or not names & {"checkpoints", "metrics.csv"}:
        return False
    try:
        settings = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.keys() >= _RUN_SETTINGS


def check_outside(picture: Path, folder: Path) -> None:
    """Raise ``UserError`` where a ``picture`` to be written would become an image of ``folder``.

    In the folder of a run it does not.
    """
    resolved, root = real_path(picture), real_path(folder)
    if root not in resolved.parents or picture.suffix.lower() not in SUFFIXES:
        return
    between = [parent for parent in resolved.parents if root in parent.parents and parent.is_dir()]
    if not any(holds_run(parent, set(os.listdir(parent))) for parent in between):
        raise UserError(
            f"--out {picture} lies among the images in {folder} and would be one of them in the "
            "next run: choose another place"
        )
