"""What the commands that need labels can be told: ``simmim finetune`` and ``simmim probe``.

Each field's docstring is what ``--help`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simmim.config.images import ImageConfig
from simmim.config.run import Published, RunConfig
from simmim.errors import UserError


@dataclass(frozen=True)
class LabelledConfig(ImageConfig):
    """Where an encoder comes from, and how labelled images are split."""

    checkpoint: Path | None = None
    """Start from the encoder of this checkpoint of simmim pretrain or finetune; without it, from random
    weights."""

    encoder: str | None = None
    """The encoder to start without a checkpoint, named as for simmim pretrain; a checkpoint brings
    its own."""

    encoder_args: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments for that encoder as pairs, for example: depth 4 embed_dim 192. With a
    checkpoint they go on top of its own, for example: window_size 7."""

    img_size: int | tuple[int, int] | None = None
    """Side of the images in pixels, or height and width; default that of the checkpoint, else 224. For
    another size than the checkpoint's its position tables are interpolated."""

    channels: int | None = None
    """3 reads 8-bit images as RGB, 1 as gray, any other number all bands as they are; default that of
    the checkpoint or of --stats, else 3."""

    val_share: float = 0.2
    """Without --val-data: share of each class of --data that is held out to test on; at least one
    image."""

    per_class: int = 0
    """Train on only this many images of each class, which --seed chooses; 0: on all."""


@dataclass(frozen=True)
class FinetuneConfig(RunConfig, LabelledConfig):
    """Train an encoder and a linear classifier on images in one folder per class."""

    preset: Literal["none", Published] = "none"
    """Named settings that become the defaults of everything below; flags override them: how SimMIM's
    (global batch 2048) and MAE's (1024) encoders were fine-tuned on ImageNet, to the letter."""

    data: Path | None = None
    """Folder that holds one folder of images per class, or train/ beside val/, validation/ or test/,
    each with the class folders; or what simmim pack made of it."""

    val_data: Path | None = None
    """Folder with the same class folders, to test on."""

    out: Path = Path("runs/finetune")
    """Folder for checkpoints, logs, pictures and the configuration."""

    drop_path: float = 0.1
    """Stochastic depth rate of the last block, growing linearly from 0 at the first."""

    fc_norm: bool = False
    """Normalise the mean of the tokens instead of the tokens, by a new norm, as BEiT's and SimMIM's
    fine-tuned ViTs do."""

    head_scale: float = 1.0
    """Multiplies the classifier's random weights before training; SimMIM's ViT: 0.001."""

    layer_decay: float = 0.65
    """Learning rate of each layer as a share of that of the next deeper one; 1: the same for
    all."""

    mixup: float = 0.8
    """Parameter of mixup's Beta distribution; 0: no mixup. With cutmix, each batch takes one of the
    two at random."""

    cutmix: float = 1.0
    """Parameter of cutmix's Beta distribution; 0: no cutmix."""

    auto_augment: str = ""
    """timm's RandAugment or AutoAugment of each crop of 8-bit gray or RGB images, in timm's words; empty:
    none. Published: rand-m9-mstd0.5-inc1."""

    erase: float = 0.0
    """Probability that a rectangle of a crop becomes noise (timm's random erasing); published 0.25."""

    test_crop: float = 1.0
    """Share of the shorter side that the central crops to test on have; published 0.875, a crop of 224
    from 256 pixels."""

    smoothing: float = 0.1
    """Label smoothing: share of the target that is spread over all classes."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of an image's area that a random crop covers."""

    keep_rest: bool = True
    """Make a smaller update of what is left over at the end of an epoch; otherwise it is
    dropped."""

    lr: float = 1.25e-3
    """Peak learning rate of the classifier for a global batch of 512; scaled linearly with the
    batch, as are --warmup-lr and --min-lr."""

    warmup_lr: float = 2.5e-7
    """Learning rate of the first update."""

    min_lr: float = 2.5e-7
    """Learning rate at the end of the cosine schedule."""

    warmup_epochs: float = 20
    """Epochs of linear warm-up."""

    log_every: int = 0
    """Updates between two rows of the training log; 0 writes one an epoch."""

    def _defaults(self) -> FinetuneConfig | None:
        from simmim.presets import FINETUNE_PRESETS

        return FINETUNE_PRESETS.get(self.preset)

    def check(self) -> None:
        super().check()
        if self.auto_augment and (self.pixel_type != "uint8" or self.channels not in (None, 1, 3)):
            raise UserError("--auto-augment is for 8-bit images of 1 or 3 channels: leave it out")


@dataclass(frozen=True)
class ProbeConfig(LabelledConfig):
    """Measure what a frozen encoder knows: a linear classifier and nearest neighbours on its
    features, the mean over the patch tokens of a block."""

    data: Path | None = None
    """Folder that holds one folder of images per class, or train/ beside val/, validation/ or test/,
    each with the class folders; or what simmim pack made of it."""

    val_data: Path | None = None
    """Folder with the same class folders, to test on."""

    out: Path = Path("runs/probe")
    """Folder for the results."""

    overwrite: bool = False
    """Replace the results that an earlier probe left in --out."""

    blocks: tuple[int, ...] = ()
    """Blocks to probe, from 1; default the last, whose tokens pass the final norm. 0 stands for all
    of them."""

    strength: float = 1.0
    """Inverse strength of the linear classifier's L2 penalty (scikit-learn's C)."""

    neighbours: int = 20
    """Neighbours that vote, each with the inverse of its cosine distance as weight; at most as many
    as there are images to train on."""

    batch_size: int = 128
    """Images in one forward pass."""

    workers: int | Literal["auto"] = "auto"
    """Processes that read images; 0 reads them in the main process; auto: see simmim pretrain."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """An image that cannot be read: skip names it and leaves it out; error stops."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run the encoder; auto takes a GPU where there is one."""

    seed: int = 0
    """Governs random weights and the choice of --per-class."""
