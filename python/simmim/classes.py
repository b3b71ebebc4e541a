"""Labelled images: one folder per class, split into those to train on and those to test on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simmim.crop import ORDER, random_numbers
from simmim.data import VALIDATION_SEED
from simmim.errors import UserError
from simmim.images import find_images
from simmim.labels_config import FinetuneConfig, ProbeConfig


@dataclass(frozen=True)
class Labelled:
    """Image files and their classes.

    Attributes:
        paths: files, class after class.
        labels: ``int64 (len(paths),)``, places in the list of class names.
    """

    paths: list[Path]
    labels: Tensor


@dataclass(frozen=True)
class Classes:
    """Names of the classes, and their images."""

    names: list[str]
    train: Labelled
    test: Labelled


def find_classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each folder in ``folder``, under the folder's name, in sorted order.

    Raises:
        UserError: no such folder, fewer than two class folders, or one without images.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise UserError(
            f"{folder} holds {len(folders)} class folders, and a classifier needs two: put the "
            f"images of each class into a folder of its own, as in {folder}/cat/1.png"
        )
    found = {}
    for path in folders:
        try:
            found[path.name] = find_images(path)
        except UserError as error:
            raise UserError(f"{error}; add images of this class or remove its folder") from None
    return found


def split_classes(config: FinetuneConfig | ProbeConfig) -> Classes:
    """Find the images of each class, and hold some of them out as ``config`` asks.

    Raises:
        UserError: no folder given, folders that do not fit together, or classes that are too small.
    """
    if config.data is None:
        raise UserError("say where the labelled images are: --data FOLDER, one folder per class")
    found = find_classes(config.data)
    if config.val_data is None:
        train, test = _hold_out(found, config)
    else:
        train, test = found, find_classes(config.val_data)
        for name in sorted(train.keys() ^ test.keys()):
            here, there = (config.data, config.val_data)[:: 1 if name in train else -1]
            raise UserError(
                f"class {name!r} is in {here} but not in {there}: add or remove its folder"
            )
    if config.per_class:
        train = {
            name: _some(paths, name, number, config)
            for number, (name, paths) in enumerate(train.items())
        }
    return Classes(list(train), _labelled(train), _labelled(test))


def _hold_out(
    found: dict[str, list[Path]], config: FinetuneConfig | ProbeConfig
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
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


def _some(
    paths: list[Path], name: str, number: int, config: FinetuneConfig | ProbeConfig
) -> list[Path]:
    if len(paths) < config.per_class:
        raise UserError(
            f"class {name!r} has {len(paths)} images to train on, fewer than --per-class "
            f"{config.per_class}: lower it, or add images"
        )
    mixed = random_numbers(ORDER, config.seed, number, 2).permutation(len(paths))
    return _picked(paths, mixed[: config.per_class])


def _picked(paths: list[Path], places: np.ndarray) -> list[Path]:
    return [paths[i] for i in sorted(places.tolist())]


def _labelled(classes: dict[str, list[Path]]) -> Labelled:
    counts = [len(paths) for paths in classes.values()]
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Labelled([path for paths in classes.values() for path in paths], labels)
