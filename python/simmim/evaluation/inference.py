"""Running a trained model on all images of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from simmim.config.apply import InferenceConfig
from simmim.cores import usable_cores
from simmim.data.crops import Crops, check_readable
from simmim.data.listing import summarize_bad
from simmim.data.order import Order
from simmim.data.read_ahead import validation_batches, ways
from simmim.errors import UnreadableImageError, say

_NOT_FINITE = "the model gives no finite numbers for it"


@torch.no_grad()
def results(
    model: Callable[[Tensor], list[Tensor]],
    config: InferenceConfig,
    images: Crops,
    device: torch.device,
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """What ``model`` makes of pixels ``(B, C, H, W)`` on ``device``, batch by batch.

    Images that cannot be read, or for which a result is not finite, are left out and named on stderr.

    Returns:
        its tensors ``(n, ...)`` in float32 on the CPU, and the places ``(n,)`` in ``images.paths``.

    Raises:
        UnreadableImageError: an image that is to stop the command, or all of them.
    """
    bad, count = {}, 0
    order = Order(len(images), config.batch_size, accumulate=1, seed=0, epochs=1)
    way = ways(config.workers, device.type, False, usable_cores())[0]
    for batch, _ in validation_batches(images, order, way):
        check_readable(batch, config.on_bad_image)
        bad |= dict(batch.bad)
        for path, note in batch.notes:
            say(f"{path}: {note}")
        if not batch.read.any():
            continue
        found, sources = model(batch.images[batch.read].to(device)), batch.sources[batch.read]
        found = [result.float().cpu() for result in found]
        finite = torch.stack([result.isfinite().flatten(1).all(1) for result in found]).all(0)
        overflowing = {str(images.paths[n]): _NOT_FINITE for n in sources[~finite].tolist()}
        if overflowing and config.on_bad_image == "error":
            raise UnreadableImageError(f"{min(overflowing)}: {_NOT_FINITE}")
        bad |= overflowing
        count += int(finite.sum())
        if finite.any():
            yield [result[finite] for result in found], sources[finite]
    for path, reason in bad.items():
        say(f"left out {path}: {reason}")
    if not count:
        raise UnreadableImageError(
            f"none of the {len(images.paths)} images can be read: {summarize_bad(bad)}"
        )
