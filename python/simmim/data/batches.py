"""Samples and batches, from the processes that read them to the model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """One crop, before batches are made.

    A worker reports what it could not read, it does not raise, since the loader would bury the
    reason in a traceback.

    Attributes:
        image: ``(C, H, W)``; ``None`` where no file at all could be read.
        id: the sample's number.
        source: the file that it was cut from, as its place in the list of files.
        bad: ``(path, reason)`` of files passed over.
        read: false for a blank image in the place of one that could not be read.
        notes: ``(path, what of the file is not used)``.
        lost: whether files cannot be opened any more, one after the other.
        with_data: ``bool (H, W)``, the pixels that hold data; ``None`` where all do.
    """

    image: Tensor | None
    id: int
    source: int
    bad: list[tuple[str, str]]
    read: bool = True
    notes: tuple[tuple[str, str], ...] = ()
    lost: bool = False
    with_data: Tensor | None = None


class Batch(NamedTuple):
    """Samples together.

    Attributes:
        images: ``(B, C, H, W)`` of the images' type; empty where a sample has no image, which
            ``check_readable`` turns into an error.
        ids, sources: ``int64 (B,)``.
        read: ``bool (B,)``, false for blank images.
        with_data: ``bool (B, H, W)``, the pixels that hold data, or ``None`` where all do.
        bad, notes, lost: of all samples.
    """

    images: Tensor
    ids: Tensor
    sources: Tensor
    bad: list[tuple[str, str]]
    read: Tensor
    notes: list[tuple[str, str]]
    lost: bool
    with_data: Tensor | None = None


def collate(samples: list[Sample]) -> Batch:
    """Stack samples to a batch."""
    images = [s.image for s in samples if s.image is not None]
    whole = len(images) == len(samples)
    with_data = None
    if whole and any(s.with_data is not None for s in samples):
        full = torch.ones(images[0].shape[1:], dtype=torch.bool)
        with_data = torch.stack([full if s.with_data is None else s.with_data for s in samples])
    return Batch(
        torch.stack(images) if whole else torch.empty(0, dtype=torch.uint8),
        torch.tensor([s.id for s in samples]),
        torch.tensor([s.source for s in samples]),
        [bad for s in samples for bad in s.bad],
        torch.tensor([s.read for s in samples]),
        [note for s in samples for note in s.notes],
        any(s.lost for s in samples),
        with_data,
    )
