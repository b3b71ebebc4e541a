"""The course of a training run: updates, checkpoints, and an orderly end."""

from __future__ import annotations

import signal
from contextlib import closing, nullcontext

import numpy as np
import torch
from torch import Tensor

from simmim.errors import UserError, first_line
from simmim.storage import checkpoint
from simmim.training.clock import run_clock
from simmim.training.compiling import DECIDED_AT, compile_model, is_worth_compiling, uncompiled
from simmim.training.counters import Summary
from simmim.training.failures import AgreedFailure, saved_on_failure
from simmim.training.optimizer import learning_rate
from simmim.training.reader import Reader
from simmim.training.recording import Recording
from simmim.training.records import NoRecords, Records
from simmim.training.sharding import gathered
from simmim.training.signals import caught_signals, handled

#: what processes tell each other when one of them cannot go on; above all signals
FAILED = 1000


class Fitting(Recording):
    """The part of ``Loop`` that trains: ``fit`` and all that it does.

    The state of a run changes in ``_update`` alone, wholly or not at all, so that it can be saved
    whatever ends the run.
    """

    #: False while weights and counters belong to different updates, and while saving
    _whole = True

    def fit(self) -> Summary:
        """Train from the current update to the end, or until a signal of ``STOPPING``.

        Whatever ends the run early, the state after the last whole update is saved if it can be.

        Raises:
            UserError: numbers that are no longer finite, images that cannot be read, a disk that
                takes no more.
            LostProcessError: another process of the run has died or failed.
            BrokenPipeError: the reader of the output has gone.
        """
        config, order = self.config, self.order
        numbers = order.updates, self.update, order.images
        # signals first: what opens the records loads packages, which can take seconds
        with (
            self.run_folder,
            caught_signals() as self.caught,
            handled(signal.SIGCONT, run_clock.go_on),
        ):
            first = self.fabric.is_global_zero
            self.records = Records(config.out, *numbers) if first else NoRecords(*numbers)
            with (
                self.peers.watched(self._what_remains, self.records.say_from_any),
                closing(self.records),
                saved_on_failure(self._rescue),
            ):
                self._introduce()
                try:
                    stop = self._train()
                finally:
                    if self.reader is not None:
                        self.reader.close()
        self.peers.leave()
        return Summary(
            updates=self.update,
            images_per_second=self.records.overall_rate(self.update),
            counters=self.counters,
            checkpoint=self.folder / checkpoint.LAST,
            signal=stop if self.update < order.updates else 0,
        )

    def _train(self) -> int:
        """Make the updates that remain; returns the signal that ended them early, else 0."""
        config, order = self.config, self.order
        self._record()
        self.model.train()
        stop = self.peers.largest(self._reason_to_stop())
        if self.update < order.updates and not stop:
            self.reader = Reader(self.train_set, config, order, self.update, self.fabric.device)
            self.records.say(f"images: read by {self.reader.way}")
            self._compile_at_start()
            # PyTorch's own handler raises wherever the main thread happens to be, in the middle of the
            # optimiser's step too; without it, asking for a batch finds a dead worker within 5 seconds
            with handled(signal.SIGCHLD, signal.SIG_DFL):
                while self.update < order.updates and not stop:
                    began = run_clock()
                    stop = self._update()
                    self._decide_to_compile(began)
                    self.records.advance(self.update)
                    self._record()
                    if self.update % config.save_every == 0:
                        self._keep()
                    if order.world == 1:
                        stop = self._reason_to_stop()
        if self.saved_at != self.update:
            self._keep()
        unwritten = stop in (0, FAILED) and self.records.error is not None
        if self.peers.largest(int(unwritten)):
            raise AgreedFailure(self.records.error)
        return stop

    def _reason_to_stop(self) -> int:
        """``FAILED``, the number of a signal, or 0."""
        if self.reader is not None and self.reader.failure is not None:
            return FAILED
        if self.caught:
            return self.caught[0]
        return FAILED if self.records.error is not None else 0

    def _keep(self) -> None:
        self._whole = False
        self._save()
        self._whole = True

    def _rescue(self, together: bool) -> str:
        """Save the state after the last whole update, where it is not saved yet and that needs no
        process that is gone; says what remains."""
        can = self._whole and (together or self.order.world == 1)
        if can and self.update and self.saved_at != self.update:
            try:
                self._save()
                # nobody leaves, and has the launcher end all, before the first process has written
                self.peers.largest(0)
            except Exception as error:
                return f"no checkpoint could be saved ({first_line(error)}); {self._what_remains()}"
        return self._what_remains()

    def _update(self) -> int:
        """Make one update, wholly or not at all; returns why all processes are to stop, else 0.

        Raises:
            AgreedFailure: a process could not go on, so none has made the update.
        """
        config, order = self.config, self.order
        self._seed_update()
        total = torch.zeros_like(self.sums.totals[0])
        share = 0.0
        bad: dict[str, str] = {}
        notes: dict[str, str] = {}
        for turn in range(config.accumulate):
            batch = self.reader.read()
            bad.update(batch.bad)
            notes.update(batch.notes)
            last = turn == config.accumulate - 1
            # what is left over at the end of an epoch is not worth compiling for its size
            as_compiled = nullcontext() if len(batch.ids) == order.batch else uncompiled()
            with self.fabric.no_backward_sync(self.model, enabled=not last), as_compiled:
                loss = self.pass_loss(batch, order.epoch(self.update))
                weight = order.weight(self.update, turn)
                weight = weight * self.scored_share(batch, order.epoch(self.update))
                loss = loss * weight
                self.fabric.backward(loss)
            total += loss.detach()
            share = share + weight
        share = self._divide_by_share(total, share) if isinstance(share, Tensor) else 1.0
        # once an update: clipping each pass's part would change the gradient's direction
        norm = gathered(self._clip())
        stop = self.peers.largest(self._reason_to_stop()) if order.world > 1 else 0
        if stop == FAILED:
            raise AgreedFailure(self.reader.failure or self.records.error)
        self._whole = False
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(group.get("lr_scale", 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if share:
            images = order.images(self.update + 1) - order.images(self.update)
            weight = share * images / order.global_batch
            self.sums.add(total, norm, weight, getattr(self.precision, "skipped", None))
        self._name_files(bad, notes)
        self.update += 1
        self._whole = True
        return stop

    def _divide_by_share(self, total: Tensor, share: Tensor) -> float:
        """Divide gradients and the loss ``total``, in which each pass is weighed by its share of scored
        pixels, by the ``share`` of the whole update: they are then those of one large batch.

        Returns:
            The share of all processes together; where it is 0, nothing was scored or divided.
        """
        share = self.fabric.all_reduce(share, reduce_op="mean").item()
        if share:
            total /= share
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= share
        return share

    def _compile_at_start(self) -> None:
        """Compile the model where that is asked for or the run did so before."""
        config, before = self.config, self.counters.compiled
        if config.compile != "auto":
            self._settle(config.compile == "on", "as --compile says")
        elif config.shard:
            self._settle(False, "the model is spread over processes")
        elif before is not None or self.update >= DECIDED_AT:
            self._settle(bool(before), "as before")

    def _decide_to_compile(self, began: float) -> None:
        """Decide it for ``--compile auto`` after the update that began at ``began``."""
        if self.counters.compiled is not None:
            return
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        if self.update < DECIDED_AT:
            return
        seconds, left = run_clock() - began, self.order.updates - self.update
        # all processes decide alike, by the time of the slowest
        seconds = self.peers.largest(round(seconds * 1e6)) / 1e6
        where = self.fabric.device.type, self.config.precision
        self._settle(*is_worth_compiling(self.model.module, *where, seconds, left))

    def _settle(self, compiled: bool, why: str) -> None:
        self.counters.compiled = compiled
        if compiled:
            self._compile(why)
        elif self.config.compile == "auto":
            self.records.say(f"not compiled: {why}")

    def _compile(self, why: str) -> None:
        if self.caught and self.order.world == 1:
            # the run ends here; resumed it compiles, as was decided
            return
        self.records.say(f"compiling the model: {why}")
        began = run_clock()
        failure = compile_model(self.model.module, self._trial_pass)
        self.optimizer.zero_grad()
        if self.peers.largest(int(failure is not None)):
            failure = failure or "another process could not compile it"
            if self.config.compile == "on":
                raise UserError(f"--compile on: the model cannot be compiled: {failure}")
            self.counters.compiled = False
            self.model.module.__dict__.pop("forward", None)
            self.records.say(f"not compiled: {failure}")
        else:
            self.records.say(f"compiled in {run_clock() - began:.0f} s")
        self.records.pause(run_clock() - began)

    def _trial_pass(self) -> None:
        with self.fabric.no_backward_sync(self.model):
            loss = self.pass_loss(self.reader.blank(), self.order.epoch(self.update))
            self.fabric.backward(loss)

    def _seed_update(self) -> None:
        key = [self.config.seed % 2**64, self.update, self.order.rank]
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        # torch.manual_seed notes the whole stack for each kind of device that is not in use
        torch.default_generator.manual_seed(seed)
        if self.fabric.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def learning_rate(self, share: float = 1.0) -> float:
        """The learning rate of the next update for parameters whose peak is that ``share``."""
        config, order = self.config, self.order
        scale = order.global_batch / 512
        late = 1 / config.accumulate if config.late_rate else 0
        ends = scale * (1.0 if config.fixed_ends else share)
        return learning_rate(
            max(0, self.update - late),
            updates=order.updates,
            warmup=round(config.warmup_epochs * order.updates_per_epoch),
            peak=config.lr * scale * share,
            start=config.warmup_lr * ends,
            end=config.min_lr * ends,
            schedule=config.schedule,
            milestones=[round(epoch * order.updates_per_epoch) for epoch in config.milestones],
            gamma=config.gamma,
        )

    def _clip(self) -> Tensor:
        if self.config.clip:
            return self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False
            )
        self.precision.unscale_gradients(self.optimizer.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)
