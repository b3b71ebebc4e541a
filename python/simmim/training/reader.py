"""Batches for a run, and what happens when one cannot be read."""

from __future__ import annotations

import torch

from simmim.config.run import RunConfig
from simmim.data.crops import Batch, Crops, check_readable, loader
from simmim.data.order import Order, Remaining


class Reader:
    """Reads the batches of this process from ``update`` on.

    Args:
        train_set: the samples of an epoch.
        config: settings of the run, completed.
        order: which samples make a batch.
        update: updates done.
        pin: put the images where a GPU copies them from without waiting.

    Attributes:
        failure: why this process of several could not read a batch, ``None`` as long as it can.
    """

    def __init__(
        self, train_set: Crops, config: RunConfig, order: Order, update: int, pin: bool
    ) -> None:
        self.config, self.order = config, order
        self.failure: Exception | None = None
        self._batches = iter(loader(train_set, Remaining(order, update), config.workers, pin))

    def read(self) -> Batch:
        """The next batch.

        Where other processes wait for this one, its failure is kept in ``failure`` until all learn
        of it, and a batch of zeros stands in that long.

        Raises:
            UnreadableImageError: images that cannot be read.
            RuntimeError: a worker that was killed.
        """
        if self.failure is None:
            try:
                return self._next()
            except Exception as error:
                if self.order.world == 1:
                    raise
                self.failure = error
        shape = (self.order.batch, self.config.channels, *self.config.size)
        none = torch.zeros(self.order.batch, dtype=torch.int64)
        return Batch(
            images=torch.zeros(shape, dtype=torch.uint8),
            ids=none,
            sources=none,
            bad=[],
            read=none.bool(),
            notes=[],
            lost=False,
        )

    def close(self) -> None:
        """End the workers. They ignore SIGTERM, by which the interpreter's exit would end them, and
        an exception's traceback keeps the iterator alive until then."""
        # there is no public way; without workers there is no such method
        end = getattr(self._batches, "_shutdown_workers", None)
        if end is not None:
            end()

    def _next(self) -> Batch:
        batch = next(self._batches)
        check_readable(batch, self.config.on_bad_image)
        return batch
