"""Running a trained model on all readable images of a source."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from simmim.config.apply import InferenceConfig
from simmim.data.crops import Crops, check_readable
from simmim.data.listing import summarize_bad
from simmim.data.order import Order
from simmim.data.read_ahead import usable_cores, validation_batches, ways
from simmim.errors import UnreadableImageError, say


def readable_batches(
    config: InferenceConfig, images: Crops, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels ``(B, C, H, W)`` on ``device`` and their places in ``images.paths``; images that cannot be
    read are left out and named on stderr.

    Raises:
        UnreadableImageError: one that is to stop the command, or all of them.
    """
    bad, read = {}, 0
    order = Order(len(images), config.batch_size, accumulate=1, seed=0, epochs=1)
    way = ways(config.workers, device.type, False, usable_cores())[0]
    for batch, _ in validation_batches(images, order, way):
        check_readable(batch, config.on_bad_image)
        bad |= dict(batch.bad)
        for path, note in batch.notes:
            say(f"{path}: {note}")
        if batch.read.any():
            read += int(batch.read.sum())
            yield batch.images[batch.read].to(device), batch.sources[batch.read]
    for path, reason in bad.items():
        say(f"left out {path}: {reason}")
    if not read:
        raise UnreadableImageError(
            f"none of the {len(images.paths)} images can be read: {summarize_bad(bad)}"
        )
