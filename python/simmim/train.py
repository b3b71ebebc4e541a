"""The pre-training run: Lightning Fabric, checkpoints, logs, and an orderly end."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim import checkpoint
from simmim.attention import choose_attention
from simmim.build import build_masking, build_model
from simmim.config import PretrainConfig
from simmim.data import (
    VALIDATION_SEED,
    Batch,
    check_readable,
    loader,
    split_files,
    training_crops,
    validation_batches,
    validation_crops,
)
from simmim.errors import UserError, require
from simmim.log import Records
from simmim.model import visible_mean_colour
from simmim.optim import adamw, learning_rate
from simmim.order import Order
from simmim.signals import caught_signals

fabric_package = require("lightning.fabric")


@dataclass
class Counters:
    """What a run has found out so far; travels with the checkpoint."""

    first_validation: float | None = None
    last_validation: float | None = None
    baseline: float | None = None
    bad: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        updates: updates done in all.
        images: image files, of training and validation.
        images_per_second: training speed of this process.
        counters: validation losses, baseline, unreadable files.
        checkpoint: the newest one.
        signal: number of the signal that ended the run early, else 0.
    """

    updates: int
    images: int
    images_per_second: float
    counters: Counters
    checkpoint: Path
    signal: int


class Trainer:
    """One pre-training run in ``config.out``.

    The state of a run is a function of the number of updates done: order, crops and masks depend on
    (seed, epoch, sample id) only, the learning rate on the update, and a checkpoint holds the rest.
    So a run that is resumed from any checkpoint repeats, in float32 on the CPU bit for bit, what
    the uninterrupted run does.

    Raises:
        UserError: settings that cannot work, data that cannot be read, an ``out`` that already
            holds a run.
    """

    def __init__(self, config: PretrainConfig) -> None:
        config.check()
        self.config = config
        files = split_files(config)
        self.images = len(files.train)
        self.all_images = self.images + len(files.validation)
        self.train_set = training_crops(config, files.train)
        self.val_set = validation_crops(config, files.validation) if files.validation else None
        names = "\n".join(path.name for path in files.train)
        self.data_fingerprint = hashlib.sha256(names.encode()).hexdigest()
        self.masking = build_masking(config)

        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
        self.fabric = fabric_package.Fabric(
            accelerator=device, devices=1, precision=config.precision
        )
        self.fabric.launch()
        self.order = Order(
            samples=len(self.train_set),
            batch=config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
            epochs=config.epochs,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        if not self.order.updates_per_epoch:
            raise UserError(
                f"{self.images} images x {config.crops_per_image} crops make no full batch of "
                f"{self.order.global_batch}: lower --batch-size or raise --crops-per-image"
            )

        random.seed(config.seed)
        np.random.seed(config.seed % 2**32)
        torch.manual_seed(config.seed)
        model = build_model(config)
        self.attention = choose_attention(
            model, config.attention, self.fabric.device.type, config.precision
        )
        self.model, self.optimizer = self.fabric.setup(model, adamw(model, config.weight_decay))
        self.update = 0
        self.counters = Counters()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        self.norm_sum = torch.zeros_like(self.loss_sum)
        self.folder = config.out / "checkpoints"
        self.saved_at = -1
        self._open_out()

    def fit(self) -> Summary:
        """Train from the current update to the end, or until SIGTERM or SIGINT."""
        config, order = self.config, self.order
        self.records = Records(config.out, self.update, order.updates, order.global_batch)
        self.records.progress.say(self.attention)
        # not "at update 0": a run that was stopped before its first update has already done it
        if self.counters.first_validation is None:
            self._validate()
        batches = iter(
            loader(
                self.train_set,
                order,
                self.update,
                config.workers,
                pin=self.fabric.device.type == "cuda",
            )
        )
        self.model.train()
        with caught_signals() as caught:
            while self.update < order.updates and not caught:
                self._update(batches)
                if self.update % config.log_every == 0 or self.update == order.updates:
                    self._log()
                if self._validation_due():
                    self._validate()
                if self.update % config.save_every == 0:
                    self._save()
            if self.saved_at != self.update:
                self._save()
        self.records.close()
        return Summary(
            updates=self.update,
            images=self.all_images,
            images_per_second=self.records.progress.overall_rate(self.update),
            counters=self.counters,
            checkpoint=self.folder / checkpoint.LAST,
            signal=caught[0] if caught and self.update < order.updates else 0,
        )

    def _update(self, batches: Iterator[Batch]) -> None:
        config = self.config
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        epoch = self.order.epoch(self.update)
        for turn in range(config.accumulate):
            batch = next(batches)
            self._note_bad(batch)
            last = turn == config.accumulate - 1
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                images, mask = self._to_device(batch, config.seed, epoch)
                loss = self.model(images, mask) / config.accumulate
                self.fabric.backward(loss)
            self.loss_sum += loss.detach()
        # once an update: clipping each pass's part would change the gradient's direction
        self.norm_sum += self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.update += 1

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

    def _to_device(self, batch: Batch, seed: int, epoch: int) -> tuple[Tensor, Any]:
        device = self.fabric.device
        mask = self.masking(batch.ids, seed=seed, epoch=epoch, device=device)
        return batch.images.to(device, non_blocking=True), mask

    def _note_bad(self, batch: Batch) -> None:
        check_readable(batch, self.config.on_bad_image)
        for path, reason in batch.bad:
            if path not in self.counters.bad:
                self.counters.bad[path] = reason
                self.records.progress.say(f"skipped {path}: {reason}")

    def _log(self) -> None:
        since = self.update % self.config.log_every or self.config.log_every
        loss, norm = (total / since for total in self._read_sums())
        self.loss_sum.zero_()
        self.norm_sum.zero_()
        self.records.training(
            self.update,
            self.order.epoch(self.update - 1),
            loss=loss,
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=norm,
        )

    def _read_sums(self) -> list[float]:
        """Loss and gradient norm summed since the last log row; the host waits for the GPU here.

        Raises:
            UserError: one of them is infinite or not a number: the weights are lost.
        """
        sums = torch.stack([self.loss_sum, self.norm_sum]).tolist()
        if not all(map(math.isfinite, sums)):
            raise UserError(
                f"the loss or its gradient is no longer finite by update {self.update}; the newest "
                f"checkpoint is {checkpoint.newest(self.folder)}: lower --lr, or use "
                "--precision 32-true"
            )
        return sums

    def _validation_due(self) -> bool:
        if self.update == self.order.updates:
            return True
        epoch, rest = divmod(self.update, self.order.updates_per_epoch)
        return rest == 0 and epoch % self.config.val_every == 0

    @torch.no_grad()
    def _validate(self) -> None:
        if self.val_set is None:
            return
        began = time.perf_counter()
        model = self.model
        model.eval()
        losses, baselines = [], []
        for batch in validation_batches(self.val_set, self.config.batch_size):
            self._note_bad(batch)
            images, mask = self._to_device(batch, VALIDATION_SEED, 0)
            losses.append(model(images, mask, reduction="none"))
            if self.counters.baseline is None:
                guess = visible_mean_colour(model.module, images, mask)
                baselines.append(model.module.score(guess, images, mask, reduction="none"))
        model.train()
        loss = torch.cat(losses).mean().item()
        if baselines:
            self.counters.baseline = torch.cat(baselines).mean().item()
            self.counters.first_validation = loss
        self.counters.last_validation = loss
        epoch = self.update // self.order.updates_per_epoch
        self.records.validation(self.update, epoch, loss)
        self.records.progress.pause(time.perf_counter() - began)

    def _save(self) -> None:
        began = time.perf_counter()
        self._read_sums()
        self.records.sync()
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "update": self.update,
            "epoch": self.order.epoch(self.update),
            "update_in_epoch": self.update % self.order.updates_per_epoch,
            "random": checkpoint.random_state(),
            "loss_sum": self.loss_sum,
            "norm_sum": self.norm_sum,
            "counters": dataclasses.asdict(self.counters),
            "config": self.config.to_json(),
            "data": {"images": self.images, "sha256": self.data_fingerprint},
        }
        checkpoint.save(self.folder, self.update, state, self.config.keep)
        self.saved_at = self.update
        self.records.progress.pause(time.perf_counter() - began)

    def _open_out(self) -> None:
        config = self.config
        found = checkpoint.newest(self.folder)
        if config.resume and found:
            self._restore(found)
        elif found and not config.overwrite:
            raise UserError(
                f"{config.out} already holds a run ({found.name}): continue it with --resume, "
                "replace it with --overwrite, or choose another --out"
            )
        else:
            checkpoint.delete_all(self.folder)
            (config.out / "metrics.csv").unlink(missing_ok=True)
            for events in (config.out / "tensorboard").glob("events.*"):
                events.unlink()
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "config.json").write_text(config.to_json())

    def _restore(self, path: Path) -> None:
        state = checkpoint.load(path)
        changed = self.config.differences(PretrainConfig.from_json(state["config"]))
        if changed:
            raise UserError(f"to resume {path} give the same settings: {'; '.join(changed)}")
        if state["data"]["sha256"] != self.data_fingerprint:
            raise UserError(
                f"the images are not those of {path} ({state['data']['images']} then, "
                f"{self.images} now): resume with the same --data, or start anew in another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.update = self.saved_at = state["update"]
        self.loss_sum.copy_(state["loss_sum"])
        self.norm_sum.copy_(state["norm_sum"])
        self.counters = Counters(**state["counters"])
        checkpoint.set_random_state(state["random"])
