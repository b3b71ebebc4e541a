"""``simmim pretrain``: training with the masked loss, and validation on held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simmim.config.conflicts import check_without_validation
from simmim.config.images import measured
from simmim.config.pretrain import PretrainConfig, ReconstructConfig
from simmim.data.batches import Batch
from simmim.data.crops import central_crops, training_crops
from simmim.data.fingerprint import data_fingerprint
from simmim.data.splits import VALIDATION_SEED, split_files
from simmim.errors import UnreadableImageError
from simmim.evaluation.reconstruct import draw
from simmim.models.build import build_masking, build_model
from simmim.models.simmim import SimMIM, visible_mean
from simmim.training.counters import Counters
from simmim.training.init_from import read_initial
from simmim.training.loop import Loop
from simmim.training.progress import named_if_slow
from simmim.training.report import print_files, print_trained, stopped
from simmim_kernels import PatchMask


def command(config: PretrainConfig) -> int:
    """Train, print the losses, draw pictures; returns the exit status."""
    trainer = Trainer(config)
    summary = trainer.fit()
    if summary.signal or not trainer.fabric.is_global_zero:
        return stopped(trainer, summary)
    print_trained(trainer, summary)
    counters = summary.counters
    pictures = []
    if counters.last_validation is not None:
        print(
            f"validation loss {counters.first_validation:.4f} at the start, "
            f"{counters.last_validation:.4f} at the end; "
            f"{counters.baseline:.4f} for predicting the mean of the visible part"
        )
        if config.picture and config.target == "hog":
            print("no picture is drawn: --target hog predicts histograms")
        elif config.picture:
            picture = config.out / "reconstruction.png"
            trainer.run_folder.claim(picture)
            draw(ReconstructConfig(summary.checkpoint, out=picture, count=config.picture))
            pictures.append(("reconstruction", picture))
    print_files(trainer, summary, *pictures, baseline=counters.baseline)
    return 0


@dataclass
class PretrainCounters(Counters):
    """Validation losses, of the model and of the baseline, the mean of the visible pixels."""

    baseline: float | None = None


class Trainer(Loop):
    """One pre-training run in ``config.out``, see ``Loop``.

    Raises:
        UserError: settings that cannot work, data that cannot be read, an ``out`` that already
            holds a run.
    """

    kind = "pretrain"
    counters_type = PretrainCounters

    def __init__(self, config: PretrainConfig) -> None:
        config = measured(config)
        config.check()
        config, self.initial, loaded = read_initial(config)
        with named_if_slow(f"looking for images in {config.data}"):
            files = split_files(config)
        self.all_images = len(files.train) + len(files.validation)
        self.val_set = None
        if not files.validation:
            check_without_validation(config, config.defaults())
        else:
            own = {"crops": config.val_crops, "cache": config.cache}
            self.val_set = central_crops(config, files.validation, **own)
        self.masking = build_masking(config)
        super().__init__(
            config,
            training_crops(config, files.train),
            data_fingerprint(files.train, files.root),
            (*files.summary, *loaded),
        )

    def build_model(self) -> SimMIM:
        model = build_model(self.config)
        model.load_state_dict({**model.state_dict(), **self.initial})
        return model

    def pass_loss(self, batch: Batch, epoch: int) -> Tensor:
        images, mask, with_data = self._to_device(batch, self.config.seed, epoch)
        if not self.config.second_ratio:
            return self.model(images, mask, with_data=with_data)
        second = self.masking.second(
            batch.ids, seed=self.config.seed, epoch=epoch, device=self.fabric.device
        )
        return self.model(images, mask, with_data=with_data, second=second)

    def scored_share(self, batch: Batch, epoch: int) -> float | Tensor:
        if not self.config.nodata:
            return 1.0
        mask, with_data = self._masks(batch, self.config.seed, epoch)
        scored = self.model.module.scored(batch.images, mask, with_data)
        return scored.double().mean() / mask.mask.double().mean()

    def _to_device(
        self, batch: Batch, seed: int, epoch: int
    ) -> tuple[Tensor, PatchMask, Tensor | None]:
        """Images, their masks, and where they hold data."""
        images = batch.images.to(self.fabric.device, non_blocking=True)
        return images, *self._masks(batch, seed, epoch)

    def _masks(self, batch: Batch, seed: int, epoch: int) -> tuple[PatchMask, Tensor | None]:
        device, with_data = self.fabric.device, batch.with_data
        if with_data is not None:
            with_data = with_data.to(device, non_blocking=True)
        return self.masking(batch.ids, seed=seed, epoch=epoch, device=device), with_data

    def validate(self) -> None:
        """Measure the loss on the held-out images, the first time also the baseline's."""
        if self.val_set is None:
            return
        model = self.model.module
        sums = torch.zeros(3, dtype=torch.float64, device=self.fabric.device)
        for batch, count in self.validation_batches(self.val_set):
            images, mask, with_data = self._to_device(batch, VALIDATION_SEED, 0)
            losses = [self.model(images, mask, "none", with_data)]
            if self.counters.baseline is None:
                guess = visible_mean(model, images, mask, with_data)
                losses.append(model.score(guess, images, mask, "none", with_data))
            counts = batch.read.to(sums.device)
            if with_data is not None:
                # an image of which nothing is scored has no loss
                counts = counts & model.scored(images, mask, with_data).flatten(1).any(1)
            counts = counts[:count]
            sums[0] += counts.sum()
            for place, values in enumerate(losses, 1):
                sums[place] += values[:count][counts].sum(dtype=torch.float64)
        counted, loss, baseline = self.fabric.all_reduce(sums, reduce_op="sum").tolist()
        if not counted:
            raise UnreadableImageError(
                f"none of the {len(self.val_set.paths):,} images to validate on can be read"
            )
        if self.counters.baseline is None:
            self.counters.baseline = baseline / counted
            self.counters.first_validation = loss / counted
        self.counters.last_validation = loss / counted
        epoch = self.update // self.order.updates_per_epoch
        self.records.validation(self.update, epoch, loss=loss / counted)
