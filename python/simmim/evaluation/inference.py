"""Running a trained model on all readable images of a source."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from simmim.config.apply import InferenceConfig
from simmim.data.crops import Crops, check_readable
from simmim.data.listing import summarize_bad
from simmim.data.read_ahead import read_batches, usable_cores, ways
from simmim.errors import UnreadableImageError, printable


def readable_batches(
    config: InferenceConfig, images: Crops, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels ``(B, C, H, W)`` on ``device`` and their places in ``images.paths``; images that cannot be
    read are left out and named on stderr.

    Raises:
        UnreadableImageError: one that is to stop the command, or all of them.
    """
    size, bad, read = config.batch_size, {}, 0
    samples = [(0, sample) for sample in range(len(images))]
    batches = [samples[first : first + size] for first in range(0, len(samples), size)]
    way = ways(config.workers, device.type, False, usable_cores())[0]
    for batch in read_batches(images, batches, way):
        check_readable(batch, config.on_bad_image)
        bad |= dict(batch.bad)
        for path, note in batch.notes:
            print(printable(f"{path}: {note}"), file=sys.stderr)
        if batch.read.any():
            read += int(batch.read.sum())
            yield batch.images[batch.read].to(device), batch.sources[batch.read]
    for path, reason in bad.items():
        print(printable(f"left out {path}: {reason}"), file=sys.stderr)
    if not read:
        raise UnreadableImageError(
            f"none of the {len(images.paths)} images can be read: {summarize_bad(bad)}"
        )
