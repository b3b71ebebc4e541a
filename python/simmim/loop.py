"""What every training run does: passes, updates, checkpoints, records, and an orderly end."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from simmim import checkpoint
from simmim.attention import choose_attention
from simmim.data import Batch, Crops, check_readable, collate, loader
from simmim.errors import UserError
from simmim.failures import explained
from simmim.fingerprint import Fingerprint
from simmim.log import NoRecords, Records
from simmim.optim import adamw, learning_rate, parameter_groups
from simmim.order import Order, Remaining
from simmim.processes import Peers, launch
from simmim.run_config import RunConfig
from simmim.sharding import gathered, load_model, load_optimizer
from simmim.signals import caught_signals


@dataclass
class Counters:
    """What a run has found out so far; travels with the checkpoint."""

    first_validation: float | None = None
    last_validation: float | None = None
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    partly: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        updates: updates done in all.
        images_per_second: training speed of all processes together.
        counters: what validations found, unreadable files.
        checkpoint: the newest one.
        signal: number of the signal that ended the run early, else 0.
    """

    updates: int
    images_per_second: float
    counters: Counters
    checkpoint: Path
    signal: int


class Loop(ABC):
    """One training run in ``config.out``, in one process or in several that torchrun started.

    The state of a run is a function of the number of updates done: order, crops and masks depend on
    (seed, epoch, sample id) only, the learning rate on the update, dropout and stochastic depth on
    (seed, update, process), and a checkpoint holds the rest. So a run that is resumed from any
    checkpoint repeats, in float32 on the CPU bit for bit, what the uninterrupted run does; on
    another number of processes, as long as nothing is dropped at random, to rounding.

    Args:
        config: already checked.
        train_set: the samples of an epoch.
        fingerprint: of the images in it, which must be the same on resuming.
        data_summary: lines for the log that say which files are used.

    Raises:
        UserError: settings that cannot work, an ``out`` that already holds a run.
    """

    #: the command, with which its checkpoints are marked
    kind: ClassVar[str]
    counters_type: ClassVar[type[Counters]] = Counters

    def __init__(
        self,
        config: RunConfig,
        train_set: Crops,
        fingerprint: Fingerprint,
        data_summary: Sequence[str] = (),
    ) -> None:
        self.config, self.train_set = config, train_set
        self.images = len(train_set.paths)
        self.fingerprint, self.data_summary = fingerprint, data_summary
        self.fabric = launch(config.device, config.precision, config.shard)
        self.order = Order(
            samples=len(train_set),
            batch=config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
            epochs=config.epochs,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            keep_rest=config.keep_rest,
        )
        if not self.order.updates_per_epoch:
            raise UserError(
                f"{self.images} images x {config.crops_per_image} crops make no full batch of "
                f"{self.order.global_batch}: lower --batch-size or raise --crops-per-image"
            )
        self.log_every = config.log_every or self.order.updates_per_epoch
        self.peers = Peers(self.order.rank, self.order.world)
        random.seed(config.seed)
        np.random.seed(config.seed % 2**32)
        torch.manual_seed(config.seed)
        model = self.build_model()
        self.attention = choose_attention(
            model, config.attention, self.fabric.device.type, config.precision
        )
        # in this order: sharding gives the model other parameters
        self.model = self.fabric.setup_module(model)
        self.optimizer = self.fabric.setup_optimizers(adamw(self.groups(self.model.module)))
        self.update = 0
        self.counters = self.counters_type()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        self.norm_sum = torch.zeros_like(self.loss_sum)
        self.folder = config.out / "checkpoints"
        self.saved_at = -1
        self._open_out()

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model, newly initialised from the default generator; has ``encoder``."""

    @abstractmethod
    def pass_loss(self, batch: Batch, epoch: int) -> Tensor:
        """The mean loss of one pass in ``epoch``."""

    @abstractmethod
    def validate(self) -> None:
        """Update the validation's counters and records; all processes take part."""

    def groups(self, model: nn.Module) -> list[dict]:
        """The optimiser's parameter groups."""
        return parameter_groups(model, self.config.weight_decay)

    def fit(self) -> Summary:
        """Train from the current update to the end, or until SIGTERM or SIGINT.

        Raises:
            UserError: a loss that is no longer finite, images that cannot be read.
            LostProcessError: another process of the run has died.
        """
        config, order = self.config, self.order
        records = Records if self.fabric.is_global_zero else NoRecords
        self.records = records(config.out, self.update, order.updates, order.global_batch)
        for line in (*self.data_summary, self.attention):
            self.records.say(line)
        signal = 0
        with (
            explained(),
            caught_signals() as caught,
            self.peers.watched(self._what_remains, self.records.cry),
        ):
            # not "at update 0": a run stopped before its first update has already done it
            if self.counters.first_validation is None:
                self._validate()
            batches = self._batches()
            self.model.train()
            while self.update < order.updates and not signal:
                self._update(batches)
                if self.update % self.log_every == 0 or self.update == order.updates:
                    self._log()
                if self._validation_due():
                    self._validate()
                if self.update % config.save_every == 0:
                    self._save()
                signal = self.peers.largest(caught[0] if caught else 0)
            if self.saved_at != self.update:
                self._save()
        self.records.close()
        self.peers.leave()
        return Summary(
            updates=self.update,
            images_per_second=self.records.overall_rate(self.update),
            counters=self.counters,
            checkpoint=self.folder / checkpoint.LAST,
            signal=signal if self.update < order.updates else 0,
        )

    def _batches(self) -> Iterator[Batch]:
        pin = self.fabric.device.type == "cuda"
        remaining = Remaining(self.order, self.update)
        return iter(loader(self.train_set, remaining, self.config.workers, pin))

    def _update(self, batches: Iterator[Batch]) -> None:
        config, order = self.config, self.order
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self._seed_update()
        for turn in range(config.accumulate):
            batch = next(batches)
            self.note_bad(batch)
            last = turn == config.accumulate - 1
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                loss = self.pass_loss(batch, order.epoch(self.update))
                loss = loss * order.weight(self.update, turn)
                self.fabric.backward(loss)
            self.loss_sum += loss.detach()
        # once an update: clipping each pass's part would change the gradient's direction
        self.norm_sum += gathered(self._clip())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.update += 1

    def _seed_update(self) -> None:
        key = [self.config.seed % 2**64, self.update, self.order.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        config, order = self.config, self.order
        scale = order.global_batch / 512
        return learning_rate(
            self.update,
            updates=order.updates,
            warmup=round(config.warmup_epochs * order.updates_per_epoch),
            peak=config.lr * scale,
            start=config.warmup_lr * scale,
            end=config.min_lr * scale,
            schedule=config.schedule,
        )

    def _clip(self) -> Tensor:
        if self.config.clip:
            return self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False
            )
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def note_bad(self, batch: Batch) -> None:
        """Remember and name the files of ``batch`` that were passed over."""
        check_readable(batch, self.config.on_bad_image)
        self._add_bad(dict(batch.bad))
        for path, note in batch.notes:
            if path not in self.counters.partly:
                self.counters.partly[path] = note
                self.records.say(f"{path}: {note}")

    def _add_bad(self, found: dict[str, str]) -> None:
        for path, reason in found.items():
            if path not in self.counters.bad:
                self.counters.bad[path] = reason
                self.records.say(f"skipped {path}: {reason}")

    def _log(self) -> None:
        since = self.update % self.log_every or self.log_every
        loss, norm = (total / since for total in self._read_sums())
        self.loss_sum.zero_()
        self.norm_sum.zero_()
        self.records.training(
            self.update,
            self.order.epoch(self.update - 1),
            loss=loss,
            lr=max(group["lr"] for group in self.optimizer.param_groups),
            grad_norm=norm,
        )

    def _read_sums(self) -> list[float]:
        """Loss and gradient norm summed since the last log row, the mean of all processes; the
        host waits for the GPU here.

        Raises:
            UserError: one of them is infinite or not a number: the weights are lost.
        """
        sums = self.fabric.all_reduce(torch.stack([self.loss_sum, self.norm_sum])).tolist()
        if not all(map(math.isfinite, sums)):
            raise UserError(
                f"the loss or its gradient is no longer finite by update {self.update}; "
                f"{self._what_remains()}; lower --lr, or use --precision 32-true"
            )
        return sums

    def _what_remains(self) -> str:
        newest = checkpoint.newest(self.folder)
        return (
            f"the newest checkpoint is {newest}, from which --resume goes on"
            if newest
            else "no checkpoint was written yet"
        )

    def _validation_due(self) -> bool:
        if self.update == self.order.updates:
            return True
        epoch, rest = divmod(self.update, self.order.updates_per_epoch)
        return rest == 0 and epoch % self.config.val_every == 0

    @torch.no_grad()
    def _validate(self) -> None:
        began = time.perf_counter()
        self.model.eval()
        self.validate()
        self.model.train()
        self.records.pause(time.perf_counter() - began)

    def _save(self) -> None:
        began = time.perf_counter()
        loss_sum, norm_sum = self._read_sums()
        self._add_bad(self.peers.union(self.counters.bad))
        self.counters.partly = self.peers.union(self.counters.partly)
        self.records.sync()
        state = {
            "kind": self.kind,
            "model": gathered(self.model.state_dict()),
            "optimizer": gathered(self.optimizer.state_dict()),
            "update": self.update,
            "epoch": self.order.epoch(self.update),
            "update_in_epoch": self.update % self.order.updates_per_epoch,
            "global_batch": self.order.global_batch,
            "loss_sum": loss_sum,
            "norm_sum": norm_sum,
            "counters": dataclasses.asdict(self.counters),
            "config": self.config.to_json(),
            "data": self.fingerprint.state(),
        }
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder, self.update, state, self.config.keep)
        self.saved_at = self.update
        self.records.pause(time.perf_counter() - began)

    def _open_out(self) -> None:
        config = self.config
        # the first process decides, before it changes what the others would see
        found = self.fabric.broadcast(checkpoint.newest(self.folder))
        if config.resume and found:
            self._restore(found)
        elif found and not config.overwrite:
            raise UserError(
                f"{config.out} already holds a run ({found.name}): continue it with --resume, "
                "replace it with --overwrite, or choose another --out"
            )
        else:
            # before anything is deleted
            check_readable(collate([self.train_set[0, 0]]), config.on_bad_image)
        if self.fabric.is_global_zero and not (config.resume and found):
            checkpoint.delete_all(self.folder)
            (config.out / "metrics.csv").unlink(missing_ok=True)
            for events in (config.out / "tensorboard").glob("events.*"):
                events.unlink()
        if self.fabric.is_global_zero:
            config.out.mkdir(parents=True, exist_ok=True)
            (config.out / "config.json").write_text(config.to_json())

    def _restore(self, path: Path) -> None:
        state = checkpoint.load(path, self.kind)
        changed = self.config.differences(checkpoint.settings(path, state, type(self.config)))
        if state["global_batch"] != self.order.global_batch:
            changed.append(
                f"{state['global_batch']} images an update, not {self.order.global_batch} "
                f"(--batch-size {self.order.batch} x --accumulate {self.order.accumulate} x "
                f"{self.order.world} processes)"
            )
        if changed:
            raise UserError(f"to resume {path} give the same settings: {'; '.join(changed)}")
        other = self.fingerprint.difference(state["data"])
        if other:
            raise UserError(
                f"the images are not those of {path} ({other}): resume with the same --data, or "
                "start anew in another --out"
            )
        checkpoint.check_weights(path, state["model"], self.model.state_dict())
        load_model(self.model, state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.update = self.saved_at = state["update"]
        self.loss_sum.fill_(state["loss_sum"])
        self.norm_sum.fill_(state["norm_sum"])
        self.counters = self.counters_type(**state["counters"])
