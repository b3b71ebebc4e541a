"""In which order a run sees its samples: a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simmim.crop import ORDER, random_numbers


@dataclass(frozen=True)
class Order:
    """The sequence of all batches of a run, epoch after epoch, for one process of ``world``.

    The order within an epoch is a permutation that (seed, epoch) alone decide; consecutive global
    batches are cut from it, of which each process takes its slice. What is left over at the end of
    an epoch, less than one update, is dropped, as published.

    Args:
        samples: samples in an epoch.
        batch: images of one pass of one process.
        accumulate: passes to one update.
    """

    samples: int
    batch: int
    accumulate: int
    seed: int
    epochs: int
    rank: int = 0
    world: int = 1

    @property
    def global_batch(self) -> int:
        """Images in one update, over all processes."""
        return self.batch * self.accumulate * self.world

    @property
    def updates_per_epoch(self) -> int:
        return self.samples // self.global_batch

    @property
    def updates(self) -> int:
        """Updates in the whole run."""
        return self.updates_per_epoch * self.epochs

    def epoch(self, update: int) -> int:
        """Epoch to which an update belongs."""
        return update // self.updates_per_epoch

    def batches(self, update: int) -> Iterator[list[tuple[int, int]]]:
        """Lists of ``(epoch, sample id)``, one a pass, from ``update`` to the end of the run."""
        for epoch in range(self.epoch(update), self.epochs):
            order = random_numbers(ORDER, self.seed, epoch, 0).permutation(self.samples)
            first = max(0, update - epoch * self.updates_per_epoch)
            for step in range(first, self.updates_per_epoch):
                for turn in range(self.accumulate):
                    start = step * self.global_batch
                    start += (turn * self.world + self.rank) * self.batch
                    yield [(epoch, int(s)) for s in order[start : start + self.batch]]


class Remaining:
    """``order.batches(update)`` in the form that ``DataLoader`` takes."""

    def __init__(self, order: Order, update: int) -> None:
        self.order, self.update = order, update

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.order.batches(self.update)
