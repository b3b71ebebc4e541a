"""Which images to train and to validate on; folders that are split already: train/ beside val/,
validation/ or test/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simmim.config.pretrain import PretrainConfig
from simmim.data.cropping import ORDER, random_numbers
from simmim.data.demo import demo_photographs
from simmim.data.item import Item
from simmim.data.listing import Listing, entries_of, real_path
from simmim.data.npz import find_parts, split_npz
from simmim.data.roles import ROLES
from simmim.data.sources import (
    check_column_and_layout,
    check_exists,
    find_source,
    is_folder_of_files,
)
from simmim.data.table_parts import take_part
from simmim.errors import UnreadableImageError, UserError

#: crops and masks of validation images are the same whatever the run's own seed
VALIDATION_SEED = 0


@dataclass(frozen=True)
class Split:
    """Sources of the images to train on, and to validate or test on, ``None`` where none are set
    apart; and what the log should say about the choice."""

    train: Path
    held_out: Path | None
    notes: tuple[str, ...] = ()


def find_roles(folder: Path) -> dict[str, Path]:
    """The parts of a split data set that lie in ``folder``, by role: train, validation, test;
    raises ``UserError`` for two folders of one role."""
    found: dict[str, Path] = {}
    inside = [Path(entry) for entry in entries_of(folder)]
    for role, names in ROLES.items():
        folders = [path for path in inside if path.name.lower() in names and path.is_dir()]
        if len(folders) > 1:
            raise UserError(
                f"{folder} holds {folders[0].name}/ and {folders[1].name}/, which mean the same: "
                "name the folders with --data FOLDER and --val-data FOLDER"
            )
        if folders:
            found[role] = folders[0]
    return found


def resolve_split(
    data: Path, val_data: Path | None, out: Path, *, column: str = "", classes: bool = False
) -> Split:
    """Decide which folders to train and to validate on.

    Where ``data`` holds train/ and one of val/, validation/ and test/, these are the two parts, and
    ``val_data``, if given, takes the place of the second. Arrays of an npz file are parts likewise.

    Args:
        out: where results are written.
        column: the array of an npz file that is to be taken alone.
        classes: whether the folders in each part are classes, among which train/ is none.

    Raises:
        UserError: no such folder, parts without train/, a ``val_data`` that is split itself, or
            results that would lie among the images.
    """
    sources = [source for source in (data, val_data) if source is not None]
    for source in sources:
        check_exists(source)
    if split_npz(data) == (data, "") and not column:
        return _split_arrays(data, val_data)
    if not all(map(is_folder_of_files, sources)):
        return Split(data, val_data)
    for folder in sources:
        if real_path(folder) == real_path(out):
            raise UserError(
                f"--out {out} is a folder of images: its pictures would become images of the next "
                "run; choose another --out"
            )
    roles = find_roles(data)
    held_out = {role: path for role, path in roles.items() if role != "train"}
    if val_data is not None:
        _check_val_data(val_data)
        other = val_data.resolve()
        held_out = {role: path for role, path in held_out.items() if path.resolve() != other}
    if "train" not in roles:
        for part in held_out.values():
            raise UserError(
                f"{data} holds {part.name}/ but no train/: move the images to train on into {data}/train, "
                f"or name both parts with --data FOLDER --val-data {part}; rename {part.name}/ if its "
                "images are to be trained on"
            )
        return Split(data, val_data)
    train = roles["train"]
    if not held_out and val_data is None:
        return Split(train, None, _unused(data, train, out)) if classes else Split(data, None)
    chosen = val_data or held_out.get("validation") or held_out["test"]
    if len(roles) == 1 and not classes:
        return Split(data, chosen)
    note = f"{data} is split: training on {train.name}/, validating on {chosen}"
    return Split(train, chosen, (note, *_unused(data, train, chosen, out)))


def _split_arrays(data: Path, val_data: Path | None) -> Split:
    parts = find_parts(data)
    held_out = val_data or parts.get("validation") or parts.get("test")
    train = parts.get("train")
    if train is None or held_out is None:
        return Split(data, val_data)
    note = f"{data} is split: training on {train.name}, validating on {held_out}"
    others = [path.name for path in parts.values() if path not in (train, held_out)]
    unused = (f"arrays that are not used: {', '.join(others)}",) if others else ()
    return Split(train, held_out, (note, *unused))


def _check_val_data(val_data: Path) -> None:
    parts = find_roles(val_data)
    if len(parts) > 1 or (parts and "train" not in parts):
        part = parts.get("validation") or parts.get("test") or parts["train"]
        raise UserError(
            f"--val-data {val_data} holds {' and '.join(f'{p.name}/' for p in parts.values())}: "
            f"name the folder to validate on, for example --val-data {part}"
        )


def _unused(data: Path, *used: Path) -> tuple[str, ...]:
    """A line that names the folders of ``data`` that belong to no part, if there are any."""
    resolved = {real_path(path) for path in used}
    others = sorted(
        str(path)
        for path in data.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.resolve() not in resolved
    )
    return (f"folders that are not used: {', '.join(others)}",) if others else ()


def check_no_split_inside(folder: Path) -> None:
    """Raise ``UserError`` where the class folder ``folder`` is split into train/ and val/ itself."""
    parts = find_roles(folder)
    if "train" in parts and len(parts) > 1:
        names = [path.name for path in parts.values()]
        raise UserError(
            f"the class folder {folder} holds {'/ and '.join(names)}/: put the parts above the "
            f"classes, as in {folder.parent}/{names[0]}/{folder.name}"
        )


def hold_out(
    images: Sequence[Path | Item], wanted: Callable[[int], int], number: int
) -> tuple[list[Path | Item], list[Path | Item]]:
    """``images`` to train on, and those held out, the same ones in every run, each in the order of
    ``images``. Tables may name one several times, such as once for each finding in it; it is held out
    once, and then not trained on.

    Args:
        wanted: returns how many to hold out, given the number of different images.
        number: the number of the class, by which classes are drawn differently.
    """
    names = list(map(str, images))  # by which a pack, too, knows what is the same
    different = list(dict.fromkeys(names))
    mixed = random_numbers(ORDER, VALIDATION_SEED, number, 1).permutation(len(different))
    chosen = {different[place] for place in mixed[: wanted(len(different))].tolist()}
    train = [image for image, name in zip(images, names, strict=True) if name not in chosen]
    first = dict(zip(reversed(names), reversed(images), strict=True))
    return train, [first[name] for name in different if name in chosen]


def note_repeated(images: Sequence[Path | Item]) -> list[str]:
    """A line on images that several rows name, where there are any."""
    again = len(images) - len(set(map(str, images)))
    counts = "each counts in training, one that is held out counts once and is not trained on"
    return [f"{again:,} rows name an image again: {counts}"] if again else []


def note_overlap(train: Sequence[Path | Item], held_out: Sequence[Path | Item]) -> list[str]:
    """A line on images that are both trained on and held out, where there are any."""
    both = len(set(map(str, train)) & set(map(str, held_out)))
    note = "images to train on are held out, too: the results are too good for other images"
    return [f"{both:,} {note}"] if both else []


@dataclass(frozen=True)
class Files:
    """Images of a run, the folder from which those to train on are named, and lines that say which
    files are used, how many were left, and why."""

    train: list[Path | Item]
    validation: list[Path | Item]
    root: Path
    summary: tuple[str, ...] = ()


def split_files(config: PretrainConfig) -> Files:
    """Find the images, and hold some out for validation as ``config`` asks.

    Raises:
        UserError: no folder given, nothing found, or nothing left to train on.
    """
    if config.data is None and config.preset == "demo":
        train, held_out = demo_photographs()
        return Files(train, held_out, train[0].parent)
    if config.data is None:
        raise UserError("say which images to train on: --data FOLDER")
    split = resolve_split(config.data, config.val_data, config.out, column=config.column)
    held_out = [] if split.held_out is None else [split.held_out]
    listing = find_source(split.train, config, [config.out, *held_out])
    whole, listing = listing, take_part(listing, split.train, "train")
    check_column_and_layout(config, listing)
    check_links(listing, config.on_bad_image)
    train, summary = listing.paths, [*split.notes, listing.summary()]
    if split.held_out is not None or listing.part:
        if config.val_count and config.val_data is None:
            why = "a column of it says which to validate on: leave out --val-count"
            if split.held_out is not None:
                why = (
                    f"{split.held_out} is there to validate on: leave out --val-count, or give "
                    f"--data {split.train}"
                )
            raise UserError(f"--val-count would hold out images of {split.train}, but {why}")
        if split.held_out is None:
            validation = take_part(whole, split.train, "held out")
        else:
            validation = find_source(split.held_out, config, [config.out])
            validation = take_part(validation, split.held_out, "one")
        check_links(validation, config.on_bad_image)
        summary.append(f"validation: {validation.summary()}")
        if split.train != split.held_out:
            summary += note_overlap(train, validation.paths)
        return Files(train, validation.paths, listing.folder, tuple(summary))
    if config.val_count and config.val_count >= (different := len(set(map(str, train)))):
        raise UserError(
            f"--val-count {config.val_count} leaves nothing to train on: "
            f"{config.data} holds {different} images"
        )
    summary += note_repeated(train) if config.val_count else []
    kept, held = hold_out(train, lambda _: config.val_count, 0)
    return Files(kept, held, listing.folder, tuple(summary))


def check_links(listing: Listing, on_bad_image: str) -> None:
    """Raise ``UnreadableImageError`` for a link to nothing if that is to stop the run."""
    if listing.dangling and on_bad_image == "error":
        raise UnreadableImageError(f"cannot read {listing.dangling[0]}: a link to nothing")
