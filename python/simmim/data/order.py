"""The order of a run's samples: a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simmim.data.cropping import ORDER, random_numbers


def piece(size: int, part: int, parts: int) -> range:
    """Positions of one of ``parts`` nearly equal, consecutive parts of ``size`` things."""
    return range(size * part // parts, size * (part + 1) // parts)


@dataclass(frozen=True)
class Order:
    """The sequence of all batches of a run, epoch after epoch, for one process of ``world``.

    The order within an epoch is a permutation that (seed, epoch) alone decide; consecutive global
    batches are cut from it, of which each process takes its part. Which samples make an update does
    not depend on the number of processes.

    Args:
        samples: samples in an epoch.
        batch: images of one pass of one process.
        accumulate: passes to one update.
        keep_rest: make a smaller update of what is left over at the end of an epoch; otherwise it
            is dropped, as published.
    """

    samples: int
    batch: int
    accumulate: int
    seed: int
    epochs: int
    rank: int = 0
    world: int = 1
    keep_rest: bool = False

    @property
    def global_batch(self) -> int:
        """Images in one update, over all processes."""
        return self.batch * self.accumulate * self.world

    @property
    def updates_per_epoch(self) -> int:
        whole, rest = divmod(self.samples, self.global_batch)
        return whole + (1 if rest and self.keep_rest else 0)

    @property
    def updates(self) -> int:
        """Updates in the whole run."""
        return self.updates_per_epoch * self.epochs

    def images(self, update: int) -> int:
        """Images of the first ``update`` updates, of which the last one of an epoch may have fewer."""
        epochs, rest = divmod(update, self.updates_per_epoch)
        in_epoch = min(self.samples, self.updates_per_epoch * self.global_batch)
        return epochs * in_epoch + rest * self.global_batch

    def epoch(self, update: int) -> int:
        """Epoch to which an update belongs."""
        return update // self.updates_per_epoch

    def weight(self, update: int, turn: int) -> float:
        """What the mean loss of this process's pass ``turn`` is multiplied with.

        Gradients are added over the passes and averaged over the processes; with these weights the
        result is the gradient of the mean over all images of the update, also where the passes
        differ in size. (A masked loss divides by hidden pixels; every image hides as many, if all hold
        data: see ``Loop.scored_share``.)
        """
        size = self._size(update)
        return len(self._piece(size, turn)) * self.world / size

    def batches(self, update: int) -> Iterator[list[tuple[int, int]]]:
        """Lists of ``(epoch, sample id)``, one a pass, from ``update`` to the end of the run.

        A pass for which nothing is left, which has weight 0, sees the first sample of the update,
        since every process must take part in every pass.
        """
        for epoch in range(self.epoch(update), self.epochs):
            order = random_numbers(ORDER, self.seed, epoch, 0).permutation(self.samples)
            first = max(0, update - epoch * self.updates_per_epoch)
            for step in range(first, self.updates_per_epoch):
                start = step * self.global_batch
                for turn in range(self.accumulate):
                    own = self._piece(self._size(step), turn) or range(1)
                    yield [(epoch, int(order[start + i])) for i in own]

    def _size(self, update: int) -> int:
        done = update % self.updates_per_epoch * self.global_batch
        return min(self.global_batch, self.samples - done)

    def _piece(self, size: int, turn: int) -> range:
        return piece(size, turn * self.world + self.rank, self.accumulate * self.world)
