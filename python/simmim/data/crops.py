"""From files to batches: crops and order are pure functions of (seed, epoch, sample id).

A sample is one random crop of one image; sample ``s`` of a folder of ``n`` images is a crop of
image ``s % n``. No random state is carried from sample to sample, so a run is the same for any
number of workers, and continuing in the middle of an epoch needs nothing but the update's number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.data.batches import Batch, Sample, collate
from simmim.data.cropping import ORDER, Cropping, random_numbers
from simmim.data.demo import demo_photographs
from simmim.data.image_contents import collected_notes
from simmim.data.images import BadImageError, LostImageError, find_listing, read_image
from simmim.data.listing import Listing, summarize_bad
from simmim.data.order import piece
from simmim.data.splits import resolve_split
from simmim.errors import UnreadableImageError, UserError

#: files that the system does not give us, one after the other, until we take the disk for lost
LOST_IN_A_ROW = 8


class Crops(Dataset):
    """Crops of a list of image files, indexed by ``(epoch, sample id)``.

    Where a file cannot be read, the next readable one of the list stands in, under the sample's own
    id, so that batches stay full and every run makes the same choice; or, with ``replace=False``, a
    blank image that is marked as not read, for results that count each file once.

    Args:
        paths: image files.
        cropping: how crops are drawn.
        channels: 1 or 3.
        crops: samples of each image in an epoch.
        cache: keep decoded images in memory.
        replace: let the next readable image stand in for one that cannot be read.
    """

    def __init__(
        self,
        paths: list[Path],
        cropping: Cropping,
        *,
        channels: int,
        crops: int = 1,
        cache: bool = False,
        replace: bool = True,
    ) -> None:
        self.paths = paths
        self.cropping = cropping
        self.channels = channels
        self.crops = crops
        self.cache: dict[int, Tensor] | None = {} if cache else None
        self.replace = replace
        # a file that was refused for its contents is not opened again, each sample anew
        self._refused: dict[int, str] = {}
        self._notes: dict[int, str] = {}
        self._lost = 0
        self._last_lost = ("", "")
        # what is odd in a file is told by the errors and notes; threads cannot catch its warnings
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __len__(self) -> int:
        return len(self.paths) * self.crops

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        epoch, sample = index
        crop, first = divmod(sample, len(self.paths))
        bad: list[tuple[str, str]] = []
        if self._lost >= LOST_IN_A_ROW:
            # a network drive that is away can let every question wait for minutes
            return Sample(None, sample, first, [self._last_lost], read=False, lost=True)
        for step in range(len(self.paths) if self.replace else 1):
            which = (first + step) % len(self.paths)
            path, known = str(self.paths[which]), which in self._refused
            try:
                image = self._read(which)
            except BadImageError as error:
                # what stands in between is named when its own turn comes
                if not known or step == 0:
                    bad.append((path, str(error)))
                if self._lost >= LOST_IN_A_ROW:
                    return Sample(None, sample, which, bad, read=False, lost=True)
                continue
            notes = ((path, self._notes[which]),) if which in self._notes else ()
            crop_image = self.cropping(image, epoch, sample, crop)
            return Sample(crop_image, sample, which, bad, notes=notes)
        if self.replace:
            return Sample(None, sample, first, bad, read=False)
        blank = torch.zeros((self.channels, *self.cropping.size), dtype=torch.uint8)
        return Sample(blank, sample, first, bad, read=False)

    def _read(self, which: int) -> Tensor:
        if self.cache is not None and which in self.cache:
            return self.cache[which]
        if which in self._refused:
            raise BadImageError(self._refused[which])
        try:
            with collected_notes() as notes:
                image = read_image(self.paths[which], self.channels)
        except LostImageError as error:
            self._lost += 1
            self._last_lost = (str(self.paths[which]), str(error))
            raise
        except BadImageError as error:
            self._lost = 0
            self._refused[which] = str(error)
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
        raise UnreadableImageError(
            f"{LOST_IN_A_ROW} images in a row cannot be opened, the last is {path}: {reason}; is "
            "the disk or the network drive still connected?"
        )
    if on_bad_image == "error":
        raise UnreadableImageError(f"cannot read {path}: {reason}")
    if not len(batch.images):
        kinds = summarize_bad(dict(batch.bad))
        raise UnreadableImageError(f"no image can be read: {kinds}; the first is {path}: {reason}")


def validation_batches(
    dataset: Crops, batch: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Batch, int]]:
    """This process's part of ``dataset`` at epoch 0, in batches of at most ``batch`` samples.

    Yields:
        a batch, and how many of its samples count, if they are marked as read: all, or none of its
        single one where the last samples are fewer than the processes, which all must take part.
    """
    for start in range(0, len(dataset), batch * world):
        own = piece(min(batch * world, len(dataset) - start), rank, world)
        yield collate([dataset[0, start + s] for s in own or range(1)]), len(own)


#: crops and masks of validation images are the same whatever the run's own seed
VALIDATION_SEED = 0


@dataclass(frozen=True)
class Files:
    """Image files of a run.

    Attributes:
        train, validation: the files.
        root: the folder that all files to train on lie below.
        summary: lines that say which files are used, how many were left, and why.
    """

    train: list[Path]
    validation: list[Path]
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
    split = resolve_split(config.data, config.val_data, config.out)
    held_out = [] if split.held_out is None else [split.held_out]
    listing = find_listing(split.train, [config.out, *held_out])
    check_links(listing, config.on_bad_image)
    train, summary = listing.paths, [*split.notes, listing.summary()]
    if split.held_out is not None:
        if config.val_count and config.val_data is None:
            raise UserError(
                f"--val-count would hold out images of {split.train}, but {split.held_out} is "
                f"there to validate on: leave out --val-count, or give --data {split.train}"
            )
        validation = find_listing(split.held_out, [config.out])
        check_links(validation, config.on_bad_image)
        summary.append(f"validation: {validation.summary()}")
        return Files(train, validation.paths, split.train, tuple(summary))
    if config.val_count >= len(train):
        raise UserError(
            f"--val-count {config.val_count} leaves nothing to train on: "
            f"{config.data} holds {len(train)} images"
        )
    mixed = random_numbers(ORDER, VALIDATION_SEED, 0, 1).permutation(len(train))
    chosen = set(mixed[: config.val_count].tolist())
    return Files(
        [path for i, path in enumerate(train) if i not in chosen],
        [path for i, path in enumerate(train) if i in chosen],
        split.train,
        tuple(summary),
    )


def check_links(listing: Listing, on_bad_image: str) -> None:
    """Raise ``UnreadableImageError`` for a link to nothing if that is to stop the run."""
    if listing.dangling and on_bad_image == "error":
        raise UnreadableImageError(f"cannot read {listing.dangling[0]}: a link to nothing")


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
    """Fixed crops of held-out images: the first of each is central, none is mirrored; blank where an
    image cannot be read."""
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
        replace=False,
    )


def central_crops(
    paths: list[Path], size: tuple[int, int], channels: int, cache: bool = False
) -> Crops:
    """The largest central crop of each image, blank where it cannot be read."""
    cropping = Cropping(size, (1.0, 1.0), (1.0, 1.0), 0.0, VALIDATION_SEED, central_first=True)
    return Crops(paths, cropping, channels=channels, cache=cache, replace=False)
