"""Labelled images: one folder per class, split into those to train on and those to test on."""

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
from simmim.data.listing import SUFFIXES, Listing, check_any, holds_run, list_images
from simmim.data.packed import pack_classes
from simmim.data.sources import ROLES, check_column_and_layout, is_folder_of_files, is_pack
from simmim.data.splits import VALIDATION_SEED, check_links, check_no_split_inside, resolve_split
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
    """Names of the classes in the order of the labels, their images, the folder that all files to
    train on lie below, and lines that say which files are used, how many were left, and why."""

    names: list[str]
    train: Labelled
    test: Labelled
    root: Path
    summary: tuple[str, ...] = ()


def find_classes(folder: Path, without: Iterable[Path] = ()) -> tuple[dict[str, Images], Listing]:
    """The images of each folder in ``folder`` under the folder's name, in sorted order, or those of
    a pack of such a folder, and what was found and left in all of them. Hidden folders, those of
    runs, and ``without`` are no classes.

    Raises:
        UserError: fewer than two class folders, or one without images.
    """
    if is_pack(folder):
        found, listing = pack_classes(folder)
        part = next(
            (name for name in found if name.lower() in itertools.chain(*ROLES.values())), ""
        )
        if part:
            raise UserError(
                f"{folder} holds images of {part}/, which is a part of a data set and no class: pack "
                "each part by itself, and give --data and --val-data"
            )
        return found, listing
    advice = "put the images of each class into a folder of its own, as in {}/cat/1.png"
    if not is_folder_of_files(folder):
        advice = advice.format("FOLDER")
        raise UserError(f"{folder} is an array or a table, whose labels are not read: {advice}")
    everything, without = Listing(folder), {path.resolve() for path in without}
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
    if len(listings) < 2:
        raise UserError(
            f"{folder} holds {len(listings)} class folders, and a classifier needs two: "
            + advice.format(folder)
            + "; labels in lists, tables and archives are not read" * (not listings)
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
        raise UserError("say where the labelled images are: --data FOLDER, one folder per class")
    split = resolve_split(config.data, config.val_data, config.out, classes=True)
    held_out = [] if split.held_out is None else [split.held_out]
    found, listing = find_classes(split.train, [config.out, *held_out])
    check_column_and_layout(config, listing)
    check_links(listing, config.on_bad_image)
    summary = [*split.notes, f"{len(found)} classes, {listing.summary()}"]
    if split.held_out is None:
        train, test = _hold_out(found, config)
    else:
        train = found
        test, listing = find_classes(split.held_out, [config.out])
        check_links(listing, config.on_bad_image)
        summary.append(f"to test on: {listing.summary()}")
        for name in sorted(train.keys() ^ test.keys()):
            here, there = (split.train, split.held_out)[:: 1 if name in train else -1]
            raise UserError(
                f"class {name!r} is in {here} but not in {there}: add or remove its folder"
            )
    if config.per_class:
        train = {
            name: _some(paths, name, number, config)
            for number, (name, paths) in enumerate(train.items())
        }
    # a label is the class's place in both
    test = {name: test[name] for name in train}
    return Classes(list(train), _labelled(train), _labelled(test), split.train, tuple(summary))


def _hold_out(
    found: dict[str, Images], config: FinetuneConfig | ProbeConfig
) -> tuple[dict[str, Images], dict[str, Images]]:
    train, test = {}, {}
    for number, (name, paths) in enumerate(found.items()):
        if len(paths) == 1:
            raise UserError(
                f"class {name!r} has one image, {paths[0]}, and needs one to train on and one to "
                "test on: add images, remove the folder, or test on others with --val-data FOLDER"
            )
        count = min(max(1, round(config.val_share * len(paths))), len(paths) - 1)
        mixed = random_numbers(ORDER, VALIDATION_SEED, number, 1).permutation(len(paths))
        test[name], train[name] = _picked(paths, mixed[:count]), _picked(paths, mixed[count:])
    return train, test


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
    return Labelled([path for paths in classes.values() for path in paths], labels)
