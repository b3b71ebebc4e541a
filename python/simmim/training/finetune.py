"""``simmim finetune``: an encoder and a linear classifier, trained on labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from simmim.config.labels import FinetuneConfig
from simmim.data.batches import Batch
from simmim.data.classes import split_classes
from simmim.data.crops import central_crops, training_crops
from simmim.data.fingerprint import data_fingerprint
from simmim.errors import UnreadableImageError, require
from simmim.evaluation.plot import confusion_picture
from simmim.models.classifier import Classifier, completed, start
from simmim.training.counters import Counters
from simmim.training.init_from import read_initial
from simmim.training.loop import Loop
from simmim.training.progress import named_if_slow
from simmim.training.report import print_files, print_trained, stopped

transforms = require("torchvision.transforms.v2")


def command(config: FinetuneConfig) -> int:
    """Train, print the accuracy, draw pictures; returns the exit status."""
    trainer = Finetuner(config)
    summary = trainer.fit()
    if summary.signal or not trainer.fabric.is_global_zero:
        return stopped(trainer, summary)
    print_trained(trainer, summary)
    counters, names = summary.counters, trainer.classes.names
    right = int(counters.confusion.diagonal().sum())
    unread = f"; {counters.unread:,} more could not be read" if counters.unread else ""
    print(
        f"{right} of {int(counters.confusion.sum())} test images right: accuracy "
        f"{counters.accuracy:.1%}, {len(names)} classes{unread}"
    )
    confusion = config.out / "confusion.png"
    trainer.run_folder.claim(confusion)
    confusion_picture(counters.confusion.numpy(), names, confusion)
    print_files(trainer, summary, ("confusion", confusion))
    return 0


@dataclass
class FinetuneCounters(Counters):
    """Of the newest validation: the share of right answers, how often class (row) was taken for
    class (column), and how many images could not be read and are in neither."""

    accuracy: float | None = None
    confusion: Tensor | None = None
    unread: int = 0


class Finetuner(Loop):
    """One fine-tuning run in ``config.out``, see ``Loop``.

    Raises:
        UserError: settings that cannot work, data or a checkpoint that cannot be used, an ``out``
            that already holds a run.
    """

    kind = "finetune"
    counters_type = FinetuneCounters

    def __init__(self, config: FinetuneConfig) -> None:
        config.check()
        with named_if_slow(f"looking for images in {config.data}"):
            self.classes = split_classes(config)
        config, self.weights = completed(config)
        config, self.initial, loaded = read_initial(config)
        self.all_images = len(self.classes.train.paths) + len(self.classes.test.paths)
        self.val_set = central_crops(config, self.classes.test.paths, cache=config.cache)
        self.mix = mixing(config.mixup, config.cutmix)
        super().__init__(
            config,
            training_crops(config, self.classes.train.paths),
            data_fingerprint(
                self.classes.train.paths,
                self.classes.root,
                self.classes.names,
                self.classes.train.labels.tolist(),
            ),
            (*self.classes.summary, *loaded),
        )

    def build_model(self) -> Classifier:
        encoder = start(self.config, self.weights, self.config.drop_path)
        initial = {name.removeprefix("encoder."): value for name, value in self.initial.items()}
        encoder.load_state_dict({**encoder.state_dict(), **initial})
        return Classifier(
            encoder,
            len(self.classes.names),
            fc_norm=self.config.fc_norm,
            head_scale=self.config.head_scale,
        )

    def more_state(self) -> dict[str, list[str]]:
        return {"classes": self.classes.names}

    def pass_loss(self, batch: Batch, epoch: int) -> Tensor:
        device = self.fabric.device
        images = batch.images.to(device, non_blocking=True)
        labels = self.classes.train.labels[batch.sources].to(device, non_blocking=True)
        target = one_hot(labels, len(self.classes.names)).float()
        if self.mix is not None:
            # rounded again: the patch embedding reads the numbers as they are stored
            mixed, target = self.mix(images.float(), target)
            images = (mixed if images.is_floating_point() else mixed.round()).to(images.dtype)
        return cross_entropy(
            self.model(images).float(), target, label_smoothing=self.config.smoothing
        )

    def validate(self) -> None:
        """Measure loss and accuracy on the held-out images."""
        device, count_of = self.fabric.device, len(self.classes.names)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        confusion = torch.zeros(count_of * count_of, dtype=torch.int64, device=device)
        for batch, count in self.validation_batches(self.val_set):
            read = batch.read[:count]
            labels = self.classes.test.labels[batch.sources][:count][read].to(device)
            # all of them, blank ones too: every process must take part
            scores = self.model(batch.images.to(device))[:count][read.to(device)].float()
            loss += cross_entropy(scores, labels, reduction="sum")
            confusion += torch.bincount(
                labels * count_of + scores.argmax(1), minlength=count_of * count_of
            )
        loss = self.fabric.all_reduce(loss, reduce_op="sum")
        confusion = self.fabric.all_reduce(confusion, reduce_op="sum").view(count_of, count_of)
        counters, total = self.counters, int(confusion.sum())
        unread = len(self.val_set) - total
        if not total:
            raise UnreadableImageError(f"none of the {unread:,} images to test on can be read")
        if unread != counters.unread:
            self.records.say(f"{unread:,} images to test on could not be read and are not counted")
        counters.unread = unread
        counters.confusion = confusion.cpu()
        counters.accuracy = int(confusion.diagonal().sum()) / total
        counters.last_validation = loss.item() / total
        if counters.first_validation is None:
            counters.first_validation = counters.last_validation
        self.records.validation(
            self.update,
            self.update // self.order.updates_per_epoch,
            loss=counters.last_validation,
            accuracy=counters.accuracy,
        )


def mixing(mixup: float, cutmix: float) -> transforms.Transform | None:
    """Mixup (Zhang et al., 2018), cutmix (Yun et al., 2019), one of both at random, or nothing, by
    the parameters of their Beta distributions; 0 leaves one out."""
    kinds = ((transforms.MixUp, mixup), (transforms.CutMix, cutmix))
    chosen = [kind(alpha=alpha) for kind, alpha in kinds if alpha]
    return transforms.RandomChoice(chosen) if chosen else None
