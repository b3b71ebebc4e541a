"""From files to batches: crops and order are pure functions of (seed, epoch, sample id).

A sample is one random crop of one image; sample ``s`` of a folder of ``n`` images is a crop of
image ``s % n``. No random state is carried from sample to sample, so a run is the same for any
number of workers, and continuing in the middle of an epoch needs nothing but the update's number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simmim.config import PretrainConfig
from simmim.crop import ORDER, Cropping, random_numbers
from simmim.demo_data import demo_photographs
from simmim.errors import UnreadableImageError, UserError
from simmim.images import BadImageError, find_images, read_image
from simmim.labels_config import FinetuneConfig
from simmim.order import piece
from simmim.signals import leave_signals_to_parent


class Sample(NamedTuple):
    """One crop on its way to a batch, ``None`` where no file at all could be read.

    ``source`` is the file that it was cut from, as its place in the list of files; ``bad`` lists ``(path, reason)`` of files passed over: a worker reports, it does not raise, since
    the loader would bury the reason in a traceback.
    """

    image: Tensor | None
    id: int
    source: int
    bad: list[tuple[str, str]]


class Batch(NamedTuple):
    """``images`` ``uint8 (B, C, H, W)``, ``ids`` and ``sources`` ``int64 (B,)``, files passed over.

    ``images`` is empty where no file could be read.
    """

    images: Tensor
    ids: Tensor
    sources: Tensor
    bad: list[tuple[str, str]]


class Crops(Dataset):
    """Crops of a list of image files, indexed by ``(epoch, sample id)``.

    Where a file cannot be read, the next readable one of the list stands in, under the sample's own
    id, so that batches stay full and every run makes the same choice.

    Args:
        paths: image files.
        cropping: how crops are drawn.
        channels: 1 or 3.
        crops: samples of each image in an epoch.
        cache: keep decoded images in memory.
    """

    def __init__(
        self,
        paths: list[Path],
        cropping: Cropping,
        *,
        channels: int,
        crops: int = 1,
        cache: bool = False,
    ) -> None:
        self.paths = paths
        self.cropping = cropping
        self.channels = channels
        self.crops = crops
        self.cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.paths) * self.crops

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        epoch, sample = index
        crop, first = divmod(sample, len(self.paths))
        bad: list[tuple[str, str]] = []
        for step in range(len(self.paths)):
            which = (first + step) % len(self.paths)
            try:
                image = self._read(which)
            except BadImageError as error:
                bad.append((str(self.paths[which]), str(error)))
                continue
            return Sample(self.cropping(image, epoch, sample, crop), sample, which, bad)
        return Sample(None, sample, first, bad)

    def _read(self, which: int) -> Tensor:
        if self.cache is None:
            return read_image(self.paths[which], self.channels)
        if which not in self.cache:
            self.cache[which] = read_image(self.paths[which], self.channels)
        return self.cache[which]


def collate(samples: list[Sample]) -> Batch:
    """Stack samples to a batch."""
    images = [s.image for s in samples if s.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        torch.tensor([s.id for s in samples]),
        torch.tensor([s.source for s in samples]),
        [bad for s in samples for bad in s.bad],
    )


def check_readable(batch: Batch, on_bad_image: str) -> None:
    """Raise ``UnreadableImageError`` if no image can be read, or if one cannot and that is to stop
    the run."""
    if not batch.bad:
        return
    path, reason = batch.bad[0]
    if on_bad_image == "error":
        raise UnreadableImageError(f"cannot read {path}: {reason}")
    if not len(batch.images):
        raise UnreadableImageError(f"no image can be read; the first is {path}: {reason}")


def loader(
    dataset: Crops, batches: Iterable[list[tuple[int, int]]], workers: int, pin: bool = False
) -> DataLoader:
    """``batches`` of ``(epoch, sample id)``, read ahead by ``workers`` processes."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=leave_signals_to_parent,
        # forkserver, Python 3.14's default, imports everything anew: seconds before the first batch
        multiprocessing_context="fork" if workers else None,
        # a loader without its own generator draws from the default one, which drop-path uses
        generator=torch.Generator(),
    )


def validation_batches(
    dataset: Crops, batch: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Batch, int]]:
    """This process's part of ``dataset`` at epoch 0, in batches of at most ``batch`` samples.

    Yields:
        a batch, and how many of its samples count: all, or none of its single one where the last
        samples are fewer than the processes, which all must take part.
    """
    for start in range(0, len(dataset), batch * world):
        own = piece(min(batch * world, len(dataset) - start), rank, world)
        yield collate([dataset[0, start + s] for s in own or range(1)]), len(own)


#: crops and masks of validation images are the same whatever the run's own seed
VALIDATION_SEED = 0


@dataclass(frozen=True)
class Files:
    """Image files of a run."""

    train: list[Path]
    validation: list[Path]


def split_files(config: PretrainConfig) -> Files:
    """Find the images, and hold some out for validation as ``config`` asks.

    Raises:
        UserError: no folder given, nothing found, or nothing left to train on.
    """
    if config.data is None and config.preset == "demo":
        return Files(*demo_photographs())
    if config.data is None:
        raise UserError("say which images to train on: --data FOLDER")
    train = find_images(config.data)
    if config.val_data is not None:
        return Files(train, find_images(config.val_data))
    if config.val_count >= len(train):
        raise UserError(
            f"--val-count {config.val_count} leaves nothing to train on: "
            f"{config.data} holds {len(train)} images"
        )
    mixed = random_numbers(ORDER, VALIDATION_SEED, 0, 1).permutation(len(train))
    held_out = set(mixed[: config.val_count].tolist())
    return Files(
        [path for i, path in enumerate(train) if i not in held_out],
        [path for i, path in enumerate(train) if i in held_out],
    )


def training_crops(config: PretrainConfig | FinetuneConfig, paths: list[Path]) -> Crops:
    """The training set that ``config`` describes."""
    cropping = Cropping(config.size, config.crop_scale, config.crop_ratio, config.flip, config.seed)
    return Crops(
        paths,
        cropping,
        channels=config.channels,
        crops=config.crops_per_image,
        cache=config.cache,
    )


def validation_crops(config: PretrainConfig, paths: list[Path]) -> Crops:
    """Fixed crops of held-out images: the first of each is central, none is mirrored."""
    cropping = Cropping(
        config.size,
        config.crop_scale,
        config.crop_ratio,
        0.0,
        VALIDATION_SEED,
        central_first=True,
    )
    return Crops(
        paths,
        cropping,
        channels=config.channels,
        crops=config.val_crops,
        cache=config.cache,
    )


def central_crops(
    paths: list[Path], size: tuple[int, int], channels: int, cache: bool = False
) -> Crops:
    """The largest central crop of each image."""
    cropping = Cropping(size, (1.0, 1.0), (1.0, 1.0), 0.0, VALIDATION_SEED, central_first=True)
    return Crops(paths, cropping, channels=channels, cache=cache)
