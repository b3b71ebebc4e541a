"""Settings of the commands that need labels: ``simmim finetune`` and ``simmim probe``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simmim.config.apply import InferenceConfig
from simmim.config.images import ImageConfig
from simmim.config.run import Published, RunConfig
from simmim.errors import UserError


@dataclass(frozen=True)
class LabelledConfig(ImageConfig):
    """The encoder to start from, and the split of labelled images."""

    checkpoint: Path | None = None
    """Start from the encoder of this checkpoint of simmim pretrain or finetune; without it, from random
    weights."""

    encoder: str | None = None
    """The encoder, named as for simmim pretrain, if there is no checkpoint; a checkpoint has its own."""

    encoder_args: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments for that encoder as pairs, for example: depth 4 embed_dim 192. With a checkpoint
    they are added to its own, for example: window_size 7."""

    img_size: int | tuple[int, int] | None = None
    """Side of the images in pixels, or height and width; default that of the checkpoint, else 224.
    Position tables of another size are interpolated."""

    channels: int | None = None
    """3 reads 8-bit images as RGB and 1 as gray; any other number takes all bands as they are. Default
    that of the checkpoint or of --stats, else 3."""

    label_column: str = ""
    """Which column of a table, or ending of the files beside the images in tar archives, holds the labels,
    or json:KEY for a value in JSON files; default: cls in archives, in tables the only one named label,
    labels, class, cls, category or target."""

    val_share: float = 0.2
    """Without --val-data: share of each class of --data that is held out for testing; at least one
    image."""

    per_class: int = 0
    """Train on only this many images of each class, chosen by --seed; 0: on all."""


@dataclass(frozen=True)
class FinetuneConfig(RunConfig, LabelledConfig):
    """Train an encoder and a linear classifier on labelled images."""

    preset: Literal["none", Published] = "none"
    """A named set of defaults for the other options; those that you give override it. The presets follow to
    the letter how SimMIM's (global batch 2048) and MAE's (1024) encoders were fine-tuned on ImageNet."""

    data: Path | None = None
    """Folder that holds one folder of images per class, or a table or tar archives with labels, see
    --label-column; or train/ beside val/, validation/ or test/ with one of these; or a pack."""

    val_data: Path | None = None
    """Images of the same classes, to test on."""

    out: Path = Path("runs/finetune")
    """Folder for checkpoints, logs, pictures and the configuration."""

    drop_path: float = 0.1
    """Stochastic depth rate of the last block, growing linearly from 0 at the first."""

    fc_norm: bool = False
    """Average the tokens and then normalise, by a new norm, instead of normalising each token first, as
    BEiT's and SimMIM's fine-tuned ViTs do."""

    head_scale: float = 1.0
    """Factor of the classifier's initial weights; 0.001 in SimMIM's ViT recipe."""

    layer_decay: float = 0.65
    """Learning rate of each layer relative to the next layer above it; 1: the same for all."""

    mixup: float = 0.8
    """Parameter (alpha) of mixup's Beta distribution; 0: no mixup. With cutmix, each batch takes one of the
    two at random."""

    cutmix: float = 1.0
    """Parameter (alpha) of cutmix's Beta distribution; 0: no cutmix."""

    auto_augment: str = ""
    """timm's specification of RandAugment or AutoAugment, for crops of 8-bit gray or RGB images; empty:
    none. Published: rand-m9-mstd0.5-inc1."""

    erase: float = 0.0
    """Probability that a rectangle of a crop becomes noise (timm's random erasing); published 0.25."""

    test_crop: float = 1.0
    """Side of the central test crops relative to the image's shorter side; published 0.875, a crop of 224
    from 256 pixels."""

    smoothing: float = 0.1
    """Label smoothing: share of the target distribution that is spread evenly over all classes."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of an image's area that a random crop covers."""

    keep_rest: bool = True
    """Train on the incomplete last batch of an epoch; otherwise it is dropped."""

    lr: float = 1.25e-3
    """Peak learning rate of the classifier for 512 images an update (the global batch); scaled linearly
    with the batch, as are --warmup-lr and --min-lr."""

    warmup_lr: float = 2.5e-7
    """Learning rate of the first update."""

    min_lr: float = 2.5e-7
    """Learning rate at the end of the cosine schedule."""

    warmup_epochs: float = 20
    """Epochs in which the learning rate rises linearly from --warmup-lr to --lr."""

    log_every: int = 0
    """Updates between two rows of the training log; 0: one row an epoch."""

    def defaults(self) -> FinetuneConfig | None:
        from simmim.presets import FINETUNE_PRESETS

        return FINETUNE_PRESETS.get(self.preset)

    def check_images(self, *, measured: bool = False) -> None:
        super().check_images(measured=measured)
        if self.auto_augment and (self.pixel_type != "uint8" or self.channels not in (None, 1, 3)):
            raise UserError(
                "--auto-augment is for 8-bit images of 1 or 3 channels: leave it out, or give "
                "--auto-augment '' beside a --preset"
            )


@dataclass(frozen=True)
class ProbeConfig(InferenceConfig, LabelledConfig):
    """Measure how well a frozen encoder's features tell classes apart, by a linear classifier and nearest
    neighbours. The features of an image are the mean over the patch tokens of a block."""

    data: Path | None = None
    """Folder that holds one folder of images per class, or a table or tar archives with labels, see
    --label-column; or train/ beside val/, validation/ or test/ with one of these; or a pack."""

    val_data: Path | None = None
    """Images of the same classes, to test on."""

    out: Path = Path("runs/probe")
    """Folder for the results."""

    overwrite: bool = False
    """Replace the results that an earlier probe left in --out."""

    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Interpolation of the central crops, antialiased; default that of the checkpoint, else bilinear."""

    test_crop: float | None = None
    """Side of the central crops relative to the image's shorter side; default that of a fine-tuned
    checkpoint, else 1."""

    blocks: tuple[int, ...] = ()
    """Blocks to probe, counted from 1; default the last, whose tokens pass the final norm. 0: all
    blocks."""

    strength: float = 1.0
    """Inverse strength of the linear classifier's L2 penalty (scikit-learn's C)."""

    neighbours: int = 20
    """Number of neighbours that vote, weighted by the inverse of their cosine distance; at most the
    number of training images."""

    seed: int = 0
    """Seed of random weights and of the choice of --per-class."""
