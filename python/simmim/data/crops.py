"""From files to batches: crops and order are pure functions of (seed, epoch, sample id).

A sample is one random crop of one image; sample ``s`` of a folder of ``n`` images is a crop of
image ``s % n``. No random state is carried from sample to sample, so a run is the same for any
number of workers, and continuing in the middle of an epoch needs nothing but the update's number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from simmim.config.images import ImageConfig, Reading, how_to_measure
from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.data.augmenting import augmentation
from simmim.data.bands import Picture
from simmim.data.batches import Batch, Sample
from simmim.data.cropping import Cropping, Draw
from simmim.data.image_contents import collected_notes
from simmim.data.images import (
    LOST_IN_A_ROW,
    BadImageError,
    LostImageError,
    OtherContentsError,
    area_of,
    file_errors,
    lost_images,
    read_image,
)
from simmim.data.item import Item, Paths
from simmim.data.listing import summarize_bad
from simmim.data.splits import VALIDATION_SEED
from simmim.errors import UnreadableImageError, UserError

#: bytes of images in memory at which their crops are made
HELD = 16 << 20


class Uncut(NamedTuple):
    """An image in a sample that is not cropped yet."""

    image: Tensor
    draw: Draw


class Crops(Dataset):
    """Crops of images, indexed by ``(epoch, sample id)``.

    Where a file cannot be read, the next readable one of the list stands in, under the sample's own
    id, so that batches stay full and every run makes the same choice; or, with ``replace=False``, a
    blank image that is marked as not read, for results that count each file once.

    Args:
        paths: the images.
        cropping: how crops are drawn.
        wanted: what is read of each.
        crops: samples of each image in an epoch, the same for all or one number an image.
        cache: keep decoded images in memory.
        replace: let the next readable image stand in for one that cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[Path | Item],
        cropping: Cropping,
        wanted: Reading,
        *,
        crops: int | list[int] = 1,
        cache: bool = False,
        replace: bool = True,
    ) -> None:
        only_files = all(isinstance(path, Path) for path in paths)
        self.paths = Paths(paths) if only_files else paths
        self.cropping = cropping
        self.wanted = wanted
        self.crops = crops
        #: where each image's samples end, for numbers that differ
        self._ends = None if isinstance(crops, int) else np.cumsum(crops)
        self.cache: dict[int, Picture] | None = {} if cache else None
        self.replace = replace
        # a file that was refused for its contents is not opened again, each sample anew
        self._refused: dict[int, BadImageError] = {}
        self._notes: dict[int, str] = {}
        self._lost = 0
        self._last_lost = ("", "")
        # what is odd in a file is told by the errors and notes; threads cannot catch its warnings
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __len__(self) -> int:
        return len(self.paths) * self.crops if self._ends is None else int(self._ends[-1])

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        return self.__getitems__([index])[0]

    # PyTorch's loader asks for its batches so
    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> list[Sample]:
        """Several samples, whose crops are made in one call as far as memory allows."""
        samples: list[Sample] = []
        done = held = 0
        for index in indices:
            samples.append(self._take(*index))
            image = samples[-1].image
            held += image.image.nbytes if isinstance(image, Uncut) else 0
            if held >= HELD:
                self._cut(samples, done)
                done, held = len(samples), 0
        self._cut(samples, done)
        return samples

    def _cut(self, samples: list[Sample], start: int) -> None:
        """Put crops in the place of the images that wait for it from ``start`` on."""
        places = [n for n in range(start, len(samples)) if isinstance(samples[n].image, Uncut)]
        if not places:
            return
        images, draws = zip(*(samples[place].image for place in places), strict=True)
        for place, pixels in zip(places, self.cropping.several(images, draws), strict=True):
            samples[place] = samples[place]._replace(image=pixels)

    def _take(self, epoch: int, sample: int) -> Sample:
        """The sample, its image whole if it can be cropped with others."""
        crop, first = self._place(sample)
        bad: list[tuple[str, str]] = []
        if self._lost >= LOST_IN_A_ROW:
            # a network drive that is away can let every question wait for minutes
            return Sample(None, sample, first, [self._last_lost], read=False, lost=True)
        for step in range(len(self.paths) if self.replace else 1):
            which = (first + step) % len(self.paths)
            path, known = str(self.paths[which]), which in self._refused
            try:
                image = self.read(which)
                with file_errors(self.paths[which]):
                    draw = Draw(epoch, sample, crop, 1 if self._ends is None else self.crops[which])
                    together = self.cropping.takes_several(image)
                    pixels, with_data = (
                        (Uncut(image, draw), None) if together else self.cropping(image, *draw)
                    )
            except BadImageError as error:
                # what stands in between is named when its own turn comes
                if not known or step == 0:
                    bad.append((path, str(error)))
                if self._lost >= LOST_IN_A_ROW:
                    return Sample(None, sample, which, bad, read=False, lost=True)
                continue
            notes = ((path, self._notes[which]),) if which in self._notes else ()
            return Sample(pixels, sample, which, bad, notes=notes, with_data=with_data)
        if self.replace:
            return Sample(None, sample, first, bad, read=False)
        shape = self.wanted.channels, *self.cropping.size
        blank = torch.zeros(shape, dtype=getattr(torch, self.wanted.dtype))
        return Sample(blank, sample, first, bad, read=False)

    def _place(self, sample: int) -> tuple[int, int]:
        """Which crop a sample is, and of which image."""
        if self._ends is None:
            return divmod(sample, len(self.paths))
        image = int(np.searchsorted(self._ends, sample, side="right"))
        return sample - int(self._ends[image]) + self.crops[image], image

    def read(self, which: int) -> Picture:
        """Image ``which``, from the cache where there is one; raises ``BadImageError``."""
        if self.cache is not None and which in self.cache:
            return self.cache[which]
        if which in self._refused:
            # a new one: tracebacks would add up
            raise type(self._refused[which])(*self._refused[which].args)
        try:
            with collected_notes() as notes, file_errors(self.paths[which]):
                image = read_image(self.paths[which], self.wanted)
                if self.cache is not None:
                    image = image[:, :, :]
        except LostImageError as error:
            self._lost += 1
            self._last_lost = (str(self.paths[which]), str(error))
            raise
        except BadImageError as error:
            self._lost = 0
            self._refused[which] = error.with_traceback(None)
            raise
        self._lost = 0
        if notes:
            self._notes[which] = ", ".join(notes)
        if self.cache is not None:
            self.cache[which] = image
        return image


def check_readable(batch: Batch, on_bad_image: str) -> None:
    """Raise ``UnreadableImageError`` if no image can be read, if files cannot be opened any more, or
    if one cannot be read and that is to stop the run."""
    if not batch.bad and len(batch.images):
        return
    path, reason = batch.bad[-1 if batch.lost else 0] if batch.bad else ("", "")
    if batch.lost:
        raise lost_images(path, reason)
    if on_bad_image == "error":
        raise UnreadableImageError(f"cannot read {path}: {reason}")
    if not len(batch.images):
        kinds = summarize_bad(dict(batch.bad))
        raise UnreadableImageError(f"no image can be read: {kinds}; the first is {path}: {reason}")


def training_crops(config: PretrainConfig | FinetuneConfig, images: Sequence[Path | Item]) -> Crops:
    """The training set that ``config`` describes."""
    crops = config.crops_per_image
    if crops == "auto":
        crops = _crops_by_area(images, config.reading, config.size)
    drawn = cropping(config, config.seed, augment=augmentation(config))
    return Crops(images, drawn, config.reading, crops=crops, cache=config.cache)


def central_crops(
    config: ImageConfig, images: Sequence[Path | Item], *, crops: int = 1, cache: bool = False
) -> Crops:
    """Fixed crops of each image: the largest central one, then random ones; none is mirrored, and they
    are blank where the image cannot be read."""
    share = getattr(config, "test_crop", None) or 1.0
    central = cropping(config, VALIDATION_SEED, flip=0.0, central_first=True, central=share)
    return Crops(images, central, config.reading, crops=crops, cache=cache, replace=False)


def cropping(config: ImageConfig, seed: int, **changes: object) -> Cropping:
    """How ``config`` draws crops; those of commands without random crops are central."""
    settings = {
        "scale": getattr(config, "crop_scale", (1.0, 1.0)),
        "ratio": getattr(config, "crop_ratio", (1.0, 1.0)),
        "flip": getattr(config, "flip", 0.0),
        "interpolation": getattr(config, "interpolation", None) or "bilinear",
        "nodata": float(config.nodata) if config.nodata else None,
        "nodata_share": config.nodata_share,
        "fill": config.mean or (0.0,) * config.channels,
        "clip": (config.low, config.high) if config.clip_percentile else None,
    }
    return Cropping(config.size, seed=seed, **{**settings, **changes})


def _crops_by_area(
    images: Sequence[Path | Item], wanted: Reading, size: tuple[int, int]
) -> list[int]:
    """How many areas of ``size`` each image has, at least 1; 1 for those that cannot be read."""

    def count(image: Path | Item) -> int:
        try:
            with collected_notes():
                pixels = area_of(image, wanted)
        except BadImageError:
            return 1
        return max(1, round(pixels / (size[0] * size[1])))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(count, images))


def check_measured(config: ImageConfig, dataset: Crops) -> None:
    """Raise ``UserError`` where there are no statistics, and the first images cannot be read as
    8-bit gray or RGB: as many as ``LOST_IN_A_ROW``, one of them for no other reason."""
    if config.mean:
        return
    other = None
    for number, image in enumerate(dataset.paths[:LOST_IN_A_ROW]):
        try:
            dataset.read(number)
            return
        except OtherContentsError as error:
            other = other or (image, error)
        except BadImageError:
            continue
    if other is not None:
        raise UserError(
            f"{other[0]} is no 8-bit gray or RGB image ({other[1]}): {how_to_measure(config)}"
        )
