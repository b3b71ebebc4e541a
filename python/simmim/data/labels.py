"""Labels of images in a column of a table, in an array of an npz file or a zarr group, in members of tar archives beside
them, or in a pack."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

from simmim.config.labels import FinetuneConfig, ProbeConfig
from simmim.config.scan import PackConfig
from simmim.data.item import Item
from simmim.data.listing import PACK, Listing
from simmim.data.shards import ShardSource
from simmim.errors import UserError

#: names of columns that hold labels, where none is named
_LABEL_COLUMNS = ("label", "labels", "class", "cls", "category", "target")
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
ADVICE = "put the images of each class into a folder of its own, as in {}/cat/1.png"


def label_classes(
    listing: Listing, path: Path, config: FinetuneConfig | ProbeConfig
) -> dict[str, list[Path | Item]]:
    """The images of ``listing`` by class. Those without a label are left out and counted, or stop the run as
    images do that cannot be read.

    Args:
        path: what the user named.

    Raises:
        UserError: see ``read_labels``; fewer than two classes.
    """
    labels, names = read_labels(listing, path, config)
    classes: dict[str, list[Path | Item]] = {name: [] for name in ["", *names]}
    for image, label in zip(listing.paths, labels, strict=True):
        classes[label].append(image)
    lacking = classes.pop("")
    if lacking and config.on_bad_image == "error":
        raise UserError(f"{lacking[0]} has no label in {listing.labels}")
    if lacking:
        listing.left["without a label"] += len(lacking)
    if len(classes) < 2:
        packed = ": pack a folder per class, or labels with simmim pack --label-column"
        raise UserError(
            f"{path} holds images of {len(classes)} classes in {listing.labels}, and a classifier "
            f"needs two{packed * (path / PACK).is_file()}"
        )
    listing.labels += f": {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    listing.paths = list(chain.from_iterable(classes.values()))
    return classes


def read_labels(
    listing: Listing, path: Path, config: FinetuneConfig | ProbeConfig | PackConfig
) -> tuple[list[str], list[str]]:
    """The label of each image of ``listing``, empty where it has none, and the classes in their order: that of
    ``datasets`` or a pack, else whole numbers by size and other names sorted as text.

    Raises:
        UserError: nothing that holds labels, no such column, one that holds something else, or two
            labels of one image.
    """
    images = listing.paths
    tables = listing.tables or list(dict.fromkeys(getattr(i, "source", None) for i in images))
    if not all(isinstance(t, ShardSource) or getattr(t, "columns", ()) for t in tables):
        raise UserError(
            f"{path} holds no column of labels: name a table of them and their images (csv, parquet, "
            f"datasets, npz, zarr group), or {ADVICE.format('FOLDER')} or 1.npy"
            f"{', without --label-column' if config.label_column else ''}"
        )
    archives = isinstance(tables[0], ShardSource)
    held = [table.columns for table in tables]
    columns = [
        name
        for name in dict.fromkeys(chain.from_iterable(held))
        # an archive may have no labels, and then its images have none
        if archives or all(name in names for names in held)
    ]
    likely = [n for n in columns if n.lower() in (("cls",) if archives else _LABEL_COLUMNS)]
    column = config.label_column or (likely[0] if len(likely) == 1 else "")
    if column not in columns:
        what = "beside its images files that end in" if archives else "the columns"
        raise UserError(
            f"{path} has {what} {', '.join(columns) or '(none)'}: say with --label-column which holds "
            "the labels"
        )
    listing.labels = f"{'members that end in' if archives else 'the column'} {column}"
    found: dict[object, list[str]] = {}
    order: list[str] = []
    for table in tables:
        values, names = table.labels(column)
        found[table] = [value or "" for value in values] if names else list(map(_text, values))
        order += names
    if listing.tables:
        labels = list(chain.from_iterable(found.values()))
        labels = labels if listing.rows is None else [labels[row] for row in listing.rows]
    else:
        labels = [found[image.source][image.number] for image in images]
    stated: dict[Path | Item, str] = {}
    for image, label in zip(images, labels, strict=True):
        if stated.setdefault(image, label) != label:
            both = f"{stated[image]!r} and {label!r}"
            raise UserError(f"{path} gives {image} two labels in {listing.labels}: {both}")
    others = set(labels) - {"", *order}
    whole = all(map(_WHOLE.fullmatch, others))
    if not whole and all(map(_NUMBER.fullmatch, others)):
        raise UserError(
            f"{path} has fractions, such as {min(others)}, in {listing.labels}, and classes are names "
            "or whole numbers: convert it, in pandas with astype('Int64')"
        )
    order += sorted(others, key=lambda text: (int(text) if whole else 0, text))
    used = set(labels)
    return labels, [name for name in dict.fromkeys(order) if name in used]


def _text(value: object) -> str:
    """A label as text; empty where it is missing."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() == "nan" else text
