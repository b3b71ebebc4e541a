"""Labelled images, in one folder per class or with labels beside them, split into those to train on and
those to test on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simmim.config.labels import FinetuneConfig, ProbeConfig
from simmim.data.cropping import ORDER, random_numbers
from simmim.data.item import Item
from simmim.data.labels import ADVICE, label_classes
from simmim.data.listing import SUFFIXES, Listing, check_any, holds_run, list_images, real_path
from simmim.data.roles import ROLES
from simmim.data.sources import (
    check_column_and_layout,
    find_shards,
    find_source,
    is_folder_of_files,
    is_pack,
)
from simmim.data.splits import (
    check_links,
    check_no_split_inside,
    hold_out,
    note_overlap,
    note_repeated,
    resolve_split,
)
from simmim.data.table_parts import Part, take_part
from simmim.errors import UserError

Images = list[Path | Item]


@dataclass(frozen=True)
class Labelled:
    """Image files, class after class, and their classes, ``int64 (len(paths),)`` places in the list
    of names."""

    paths: Images
    labels: Tensor


@dataclass(frozen=True)
class Classes:
    """Names of the classes in the order of the labels, their images, the folder from which those to
    train on are named, and lines that say which files are used, how many were left, and why."""

    names: list[str]
    train: Labelled
    test: Labelled
    root: Path
    summary: tuple[str, ...] = ()


def find_classes(
    folder: Path,
    config: FinetuneConfig | ProbeConfig,
    without: Iterable[Path] = (),
    part: Part = "one",
) -> tuple[dict[str, Images], Listing]:
    """The images of each folder in ``folder`` under the folder's name, in sorted order, or those of
    another source, of a table those of its ``part``, by their labels, and what was found and left in all
    of them. Hidden folders, those of runs, and ``without`` are no classes.

    Raises:
        UserError: no such source, fewer than two classes, or a class folder without images.
    """
    if not is_folder_of_files(folder):
        listing = take_part(find_source(folder, config), folder, part, config.label_column)
        found = label_classes(listing, folder, config)
        parts = [n for n in found if n.lower() in itertools.chain(*ROLES.values())]
        if parts and is_pack(folder):
            raise UserError(
                f"{folder} holds images of {parts[0]}/, which is a part of a data set and no class: "
                "pack each part by itself, and give --data and --val-data"
            )
        return found, listing
    everything, without = Listing(folder), {real_path(path) for path in without}
    listings, root = {}, folder.resolve()
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            everything.left["image outside the class folders"] += 1
        if path.name.startswith(".") or not path.is_dir() or path.resolve() == root:
            continue
        if path.resolve() in without:
            everything.without.append(path)
        elif holds_run(path, set(os.listdir(path))):
            everything.runs.append(path)
        else:
            listing = list_images(path, without, (root,))
            everything.add(listing)
            # a folder that holds nothing but runs, or is a pack, is no class
            if listing.paths or not (listing.runs or listing.without or listing.left["pack"]):
                listings[path.name] = listing
    if not any(listing.paths for listing in listings.values()):
        inside = list_images(folder, without)
        shards = None if inside.paths else find_shards(inside, config)
        if shards is not None:
            shards = take_part(shards, folder, part, config.label_column)
            return label_classes(shards, folder, config), shards
    if len(listings) < 2:
        raise UserError(
            f"{folder} holds {len(listings)} class folders, and a classifier needs two: "
            + ADVICE.format(folder)
            + ", or name a table or archives with labels" * (not listings)
        )
    for name, listing in listings.items():
        check_no_split_inside(folder / name)
        try:
            check_any(listing)
        except UserError as error:
            raise UserError(f"{error}; add images of this class or remove its folder") from None
    return {name: listing.paths for name, listing in listings.items()}, everything


def split_classes(config: FinetuneConfig | ProbeConfig) -> Classes:
    """Find the images of each class, and hold some of them out as ``config`` asks.

    Raises:
        UserError: no folder given, folders that do not fit together, or classes that are too small.
    """
    if config.data is None:
        raise UserError(
            "say where the labelled images are: --data FOLDER, one folder per class, or --data TABLE"
        )
    split = resolve_split(
        config.data, config.val_data, config.out, column=config.column, classes=True
    )
    held_out = [] if split.held_out is None else [split.held_out]
    found, listing = find_classes(split.train, config, [config.out, *held_out], "train")
    check_column_and_layout(config, listing)
    if config.label_column and not listing.labels:
        raise UserError(
            f"--label-column {config.label_column} is for tables and archives, and {config.data} holds "
            "a folder per class: leave it out"
        )
    check_links(listing, config.on_bad_image)
    root, summary = listing.folder, [*split.notes, f"{len(found)} classes, {listing.summary()}"]
    if split.held_out is None and not listing.part:
        train, test = _hold_out(found, config)
        summary += note_repeated(_all_of(found))
    else:
        train, where = found, split.held_out or split.train
        part: Part = "one" if split.held_out else "held out"
        test, listing = find_classes(where, config, [config.out], part)
        check_links(listing, config.on_bad_image)
        summary.append(f"to test on: {listing.summary()}")
        for name in sorted(train.keys() ^ test.keys()):
            here, there = (split.train, where)[:: 1 if name in train else -1]
            parts = ("the rows of train", "those held out")[:: 1 if name in train else -1]
            if split.held_out is None:
                here, there = f"{parts[0]} in {where}", parts[1]
            raise UserError(
                f"class {name!r} is in {here} but not in {there}: add images of it, or remove it"
            )
        test = {name: test[name] for name in train}
        if config.data != config.val_data:
            summary += note_overlap(_all_of(train), _all_of(test))
    if config.per_class:
        train = {
            name: _some(paths, name, number, config)
            for number, (name, paths) in enumerate(train.items())
        }
    # a label is the class's place in both
    test = {name: test[name] for name in train}
    return Classes(list(train), _labelled(train), _labelled(test), root, tuple(summary))


def _hold_out(
    found: dict[str, Images], config: FinetuneConfig | ProbeConfig
) -> tuple[dict[str, Images], dict[str, Images]]:
    def share(images: int) -> int:
        return min(max(1, round(config.val_share * images)), images - 1)

    train, test = {}, {}
    for number, (name, paths) in enumerate(found.items()):
        if len(set(map(str, paths))) == 1:
            raise UserError(
                f"class {name!r} has one image, {paths[0]}, and needs one to train on and one to "
                "test on: add images, remove it, or test on others with --val-data FOLDER"
            )
        train[name], test[name] = hold_out(paths, share, number)
    return train, test


def _all_of(classes: dict[str, Images]) -> Images:
    return list(itertools.chain.from_iterable(classes.values()))


def _some(paths: Images, name: str, number: int, config: FinetuneConfig | ProbeConfig) -> Images:
    if len(paths) < config.per_class:
        raise UserError(
            f"class {name!r} has {len(paths)} images to train on, fewer than --per-class "
            f"{config.per_class}: lower it, or add images"
        )
    mixed = random_numbers(ORDER, config.seed, number, 2).permutation(len(paths))
    return _picked(paths, mixed[: config.per_class])


def _picked(paths: Images, places: np.ndarray) -> Images:
    return [paths[i] for i in sorted(places.tolist())]


def _labelled(classes: dict[str, Images]) -> Labelled:
    counts = [len(paths) for paths in classes.values()]
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Labelled(_all_of(classes), labels)
