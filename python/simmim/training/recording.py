"""What a training run logs: rows, validations, unreadable files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from simmim.config.conflicts import remarks
from simmim.cores import usable_cores
from simmim.data.batches import Batch
from simmim.data.crops import Crops, check_readable
from simmim.data.read_ahead import validation_batches, way_to_validate
from simmim.storage import checkpoint
from simmim.training.clock import run_clock
from simmim.training.compiling import uncompiled
from simmim.training.failures import NotFiniteError
from simmim.training.mixed_precision import LEAST_SCALE
from simmim.training.progress import named_if_slow


class Recording:
    """The part of ``Loop``, whose attributes it uses, that records a run and checks that the numbers
    are finite."""

    @property
    def precision(self) -> Any:
        """Fabric's plugin for the precision."""
        return self.fabric.strategy.precision

    def _introduce(self) -> None:
        """Say what is going to be done."""
        config, order = self.config, self.order
        processes = f", {order.world} processes" if order.world > 1 else ""
        crops = f" ({order.samples} crops an epoch)" if order.samples != self.images else ""
        self.records.say(
            f"{self.kind} {config.encoder}: {self.parameters / 1e6:.3g} M parameters, {self.images} "
            f"images{crops}, {order.updates - self.update} of {order.updates} updates of "
            f"{order.global_batch} images ({config.epochs} epochs), {self.fabric.device.type}"
            f"{processes}, {config.precision}, into {config.out}"
        )
        for line in filter(None, (*self.data_summary, self.precision_line, self.attention)):
            self.records.say(line)
        for remark in remarks(config, self.val_set is not None):
            self.records.say(remark)
        for line in self.counters.changes:
            self.records.note(self.update, line)

    def _record(self) -> None:
        """Write the row of the log and make the validation that are due, each once.

        Where they could not be completed, the resumed run comes here again at the same update.
        """
        at_end = self.update == self.order.updates
        if self.sums.count and (at_end or self.update % self.log_every == 0):
            self._log()
        epoch, rest = divmod(self.update, self.order.updates_per_epoch)
        due = at_end or (rest == 0 and epoch % self.config.val_every == 0)
        if due and self.counters.validated != self.update:
            self._validate()

    def _recorded(self) -> bool:
        """Whether the first process could write all rows, the same in all processes."""
        return not self.peers.largest(int(not self.records.complete))

    def validation_batches(self, dataset: Crops) -> Iterator[tuple[Batch, int]]:
        """As ``read_ahead.validation_batches``; files that were passed over are noted."""
        way = way_to_validate(self.config.workers, self.fabric.device.type, usable_cores())
        for batch, count in validation_batches(dataset, self.order, way):
            check_readable(batch, self.config.on_bad_image)
            self._name_files(dict(batch.bad), dict(batch.notes))
            yield batch, count

    def _name_files(self, bad: dict[str, str], partly: dict[str, str]) -> None:
        """Remember and name files that were passed over, with why, and of those that are used in part
        two of each kind, for it may be all of them."""
        for path, why in bad.items():
            if path not in self.counters.bad:
                self.counters.bad[path] = why
                self.records.say(f"skipped {path}: {why}")
        known = self.counters.partly
        new = {path: why for path, why in partly.items() if path not in known}
        alike = Counter(known.values()) if new else Counter()
        for path, why in new.items():
            known[path] = why
            alike[why] += 1
            if alike[why] < 3:
                end = "; more files like these are counted at the end" if alike[why] == 2 else ""
                self.records.say(f"{path}: {why}{end}")

    def _log(self) -> None:
        loss_sum, norm_sum, weight = self._read_sums()
        if not weight:  # all were skipped
            return
        images, seconds = self.records.since_last(self.update)
        waited = self.reader.take_waited() if self.reader else 0.0
        self.records.training(
            self.update,
            self.order.epoch(self.update - 1) + 1,  # as the validation after this epoch says
            loss=loss_sum / weight,
            lr=max(group["lr"] for group in self.optimizer.param_groups),
            grad_norm=norm_sum / self.sums.count,
            images_per_second=images / seconds,
            waiting=min(1.0, waited / seconds),
            **({"skipped": self.counters.skipped} if self.precision.state_dict() else {}),
        )
        if self._recorded():
            self.sums.restore(0.0, 0.0, 0.0, 0)
        if self.reader and self.update < self.order.updates:
            text = self.reader.judge(images, seconds, waited, self.update)
            if text:
                self.records.say(text)

    def _read_sums(self) -> list[float]:
        """Losses times weights, gradient norms and weights, summed since the last log row over the
        updates that were not skipped, the mean of all processes; the host waits for the GPU here.

        Raises:
            NotFiniteError: one of them is infinite or not a number: the weights are lost. Or updates
                are skipped however little the loss is scaled, or none was ever made.
        """
        *sums, skipped = self.fabric.all_reduce(self.sums.totals.clone()).tolist()
        self._count_skipped(round(skipped))
        if not all(map(math.isfinite, sums)):
            raise self._not_finite("the loss or its gradient")
        return sums

    def _count_skipped(self, count: int) -> None:
        """Say and count updates that were skipped since this was called before."""
        if not count:
            return
        self.sums.take_out(count)
        self.counters.skipped += count
        scale = self.precision.state_dict()["scale"]
        self.records.say(
            f"skipped {count} update{'s' if count > 1 else ''} by update {self.update}, where the "
            f"gradient overflowed float16: the loss is now scaled by {scale:g}"
        )
        all_skipped = self.counters.skipped == self.order.updates
        if scale < LEAST_SCALE or all_skipped:
            raise self._not_finite("the loss or its gradient")

    def _not_finite(self, what: str) -> NotFiniteError:
        """The error that says how to go on."""
        if not self.update:
            return NotFiniteError(
                f"{what} is not finite before the first update: look for numbers that are too large in "
                "the weights that the run begins with, and in the images, whose largest simmim stats "
                "names; --nodata leaves them out"
            )
        advice = f"lower --lr (now {self.config.lr:g})"
        if self.config.precision != "32-true":
            advice += ", or use --precision 32-true"
        if len(checkpoint.numbered(self.folder)) > 1:
            advice += "; if that is not enough, delete this checkpoint to go on from the one before"
        return NotFiniteError(
            f"{what} is no longer finite by update {self.update}; {self._what_remains()}; {advice}"
        )

    @torch.no_grad()
    def _validate(self) -> None:
        began = run_clock()
        bad = dict(self.counters.bad)
        self.model.eval()
        try:
            # for the sizes and the few passes of a validation, compiling would take longer
            with named_if_slow("validating", self.records.say), uncompiled():
                self.validate()
        except BaseException:
            # files that vanished are not unreadable ones of the run that goes on
            self.counters.bad = bad
            raise
        self.model.train()
        if not self.counters.are_finite():
            raise self._not_finite("the validation loss")
        if self._recorded():
            self.counters.validated = self.update
        self.records.pause(run_clock() - began)
