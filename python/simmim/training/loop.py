"""The parts of every training run, and how a run is saved and restored."""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from simmim.config.run import STARTED_FROM, RunConfig
from simmim.data.batches import Batch, collate
from simmim.data.crops import Crops, check_measured, check_readable
from simmim.data.fingerprint import difference
from simmim.data.order import Order
from simmim.errors import UserError, system_words
from simmim.models.attention_path import choose_attention
from simmim.storage import checkpoint
from simmim.storage.files import write_text
from simmim.storage.run_folder import RunFolder
from simmim.training.clock import run_clock
from simmim.training.counters import Counters, RunningSums
from simmim.training.failures import first_not_finite
from simmim.training.fitting import Fitting
from simmim.training.mixed_precision import choose_precision
from simmim.training.optimizer import adamw, parameter_groups
from simmim.training.processes import Peers, chosen_device, launch
from simmim.training.progress import named_if_slow
from simmim.training.resume_rules import accepted_changes, refused_changes
from simmim.training.sharding import gathered, load_model, load_optimizer


class Loop(Fitting, ABC):
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
        fingerprint: dict[str, int | str],
        data_summary: Sequence[str] = (),
    ) -> None:
        precision, self.precision_line = choose_precision(
            config.precision, chosen_device(config.device)
        )
        config = dataclasses.replace(config, precision=precision)  # which a resumed run keeps
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
            # a preset may have set it
            passes = f"--accumulate, {config.accumulate}, or " if config.accumulate > 1 else ""
            raise UserError(
                f"{self.images} images with {len(train_set)} crops make no full batch of "
                f"{self.order.global_batch}: lower {passes}--batch-size or raise --crops-per-image"
            )
        self.log_every = config.log_every or self.order.updates_per_epoch
        self.peers = Peers(self.order.rank, self.order.world)
        if len(self.peers.union({precision: ""})) > 1:
            raise UserError("the processes' devices differ in what is fast: give --precision")
        random.seed(config.seed)
        np.random.seed(config.seed % 2**32)
        torch.manual_seed(config.seed)
        with named_if_slow(f"building {config.encoder}"):
            model = self.build_model()
        self._check_also_decay(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.attention = choose_attention(
            model, config.attention, self.fabric.device.type, config.precision
        )
        # in this order: sharding gives the model other parameters
        self.model = self.fabric.setup_module(model)
        groups = parameter_groups(
            self.model.module,
            config.weight_decay,
            getattr(config, "layer_decay", 1.0),
            config.also_decay,
        )
        self.optimizer = self.fabric.setup_optimizers(adamw(groups, config.betas))
        self.update = 0
        self.counters = self.counters_type()
        self.sums = RunningSums(self.fabric.device)
        self.caught: list[int] = []
        self.reader = None
        self.run_folder = RunFolder(config.out, self.kind)
        self.folder = self.run_folder.checkpoints
        self.saved_at = -1
        self._open_out()

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model, newly initialised from the default generator; has ``encoder``."""

    @abstractmethod
    def pass_loss(self, batch: Batch, epoch: int) -> Tensor:
        """The mean loss of one pass in ``epoch``."""

    def scored_share(self, batch: Batch, epoch: int) -> float | Tensor:
        """The share of a batch's hidden pixels that ``pass_loss`` is the mean over: less than 1 where
        some of them have no data, then ``float64 ()`` on the device."""
        return 1.0

    @abstractmethod
    def validate(self) -> None:
        """Update the validation's counters and records; all processes take part."""

    def _check_also_decay(self, model: nn.Module) -> None:
        """Refuse ends of names that no parameter has; a preset's may be of another encoder's."""
        names = [name for name, _ in model.named_parameters()]
        preset = (self.config.defaults() or self.config).also_decay
        for end in set(self.config.also_decay) - set(preset):
            if not any(name.endswith(end) for name in names):
                raise UserError(
                    f"--also-decay {end}: no parameter of {self.config.encoder} ends so"
                )

    def more_state(self) -> dict[str, Any]:
        """Further entries of checkpoints."""
        return {}

    def _what_remains(self) -> str:
        newest = self.run_folder.newest
        return (
            f"the newest checkpoint is {newest}, from which --resume goes on"
            if newest
            else "no checkpoint was written yet"
        )

    def _save(self) -> None:
        began = run_clock()
        loss_sum, norm_sum, weight_sum = self._read_sums()
        found = (self.peers.union(files) for files in (self.counters.bad, self.counters.partly))
        self._name_files(*found)
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
            "weight_sum": weight_sum,
            "summed": self.sums.count,
            "counters": dataclasses.asdict(self.counters),
            "config": self.config.to_json(),
            "data": self.fingerprint,
            "scaler": self.precision.state_dict(),
            **self.more_state(),
        }
        lost = first_not_finite({key: state[key] for key in ("model", "optimizer")})
        if lost:
            raise self._not_finite(lost)
        self.run_folder.newest = self._in_first_process(
            lambda: self.run_folder.save(self.update, state, self.config.keep)
        )
        self.saved_at = self.update
        self.records.pause(run_clock() - began)

    def _in_first_process(self, action: Callable[[], Any]) -> Any:
        """What ``action`` returns in the first process, in every process; raises ``UserError`` for
        one of the first process, or what the system refuses there."""
        result, problem = None, None
        if self.fabric.is_global_zero:
            try:
                result = action()
            except UserError as error:
                problem = str(error)
            except OSError as error:
                problem = system_words(error)
        result, problem = self.fabric.broadcast((result, problem))
        if problem is not None:
            raise UserError(problem)
        return result

    def _open_out(self) -> None:
        """Take the run's folder, and restore its newest checkpoint or begin anew."""
        try:
            found = self._in_first_process(self._take_folder)
            if found is not None:
                self._restore(found)
            self._in_first_process(lambda: self._begin_in_folder(found))
        except BaseException:
            self.run_folder.release()
            raise

    def _take_folder(self) -> Path | None:
        """Lock the folder; returns the checkpoint to go on from."""
        self.run_folder.lock()
        return self.run_folder.resume_from(self._read) if self.config.resume else None

    def _begin_in_folder(self, found: Path | None) -> None:
        config = self.config
        if found is not None:
            self.run_folder.go_on(found)
        else:
            # before anything is deleted
            check_measured(config, self.train_set)
            check_readable(collate([self.train_set[0, 0]]), config.on_bad_image)
            self.run_folder.start_anew(config.overwrite, restart=config.resume)
        write_text(config.out / "config.json", config.to_json())

    def _read(self, path: Path) -> dict[str, Any]:
        """The state in the checkpoint ``path``, checked against this run.

        Raises:
            DamagedError: it is damaged.
            UserError: it is of a run with other settings or images.
        """
        state = checkpoint.read(path, self.kind)
        if checkpoint.step_of(path) not in (None, state["update"]):
            raise checkpoint.DamagedError(
                f"{path} is damaged: it holds update {state['update']}, not that of its name"
            )
        changed = refused_changes(self.config, checkpoint.settings(path, state, type(self.config)))
        if state["global_batch"] != self.order.global_batch:
            changed.append(
                f"{state['global_batch']} images an update, not {self.order.global_batch} "
                f"(--batch-size {self.order.batch} x --accumulate {self.order.accumulate} x "
                f"{self.order.world} processes)"
            )
        if changed:
            raise UserError(f"to resume {path} give the same settings: {'; '.join(changed)}")
        checkpoint.check_weights(path, state["model"], self.model.state_dict())
        other = difference(self.fingerprint, state["data"])
        if other:
            raise UserError(
                f"the images are not those of {path} ({other}): resume with the same --data, or "
                "start anew in another --out"
            )
        return state

    def _restore(self, path: Path) -> None:
        state = self._read(path)
        old = checkpoint.settings(path, state, type(self.config))
        # config.json goes on saying what the run began with
        began = {
            n: getattr(self.config, n) or getattr(old, n) for n in STARTED_FROM if hasattr(old, n)
        }
        self.config = dataclasses.replace(self.config, **began)
        load_model(self.model, state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.precision.state_dict() and state["scaler"]:
            self.precision.load_state_dict(state["scaler"])
        self.run_folder.newest = path
        self.update = self.saved_at = state["update"]
        summed = state["summed"]
        # checkpoints of before updates had weights: all weighed 1
        weight = state.get("weight_sum", summed)
        self.sums.restore(state["loss_sum"], state["norm_sum"], weight, summed)
        self.counters = self.counters_type(**state["counters"])
        text = accepted_changes(path, self.config, old, self.update, self.order)
        if text:
            before = max(group["lr"] for group in self.optimizer.param_groups)
            self.counters.changes.append(
                f"{text} (learning rate {before:.3g} before, {self.learning_rate():.3g} now)"
            )
