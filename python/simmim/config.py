"""Everything the commands can be told, with the presets that fill it in.

Each field's docstring is what ``--help`` prints.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simmim.errors import UserError

#: fields that the run that resumes may have otherwise than the one that was interrupted
_FREE_ON_RESUME = frozenset(
    {
        "data",
        "out",
        "resume",
        "overwrite",
        "val_data",
        "on_bad_image",
        "workers",
        "cache",
        "device",
        "save_every",
        "keep",
        "picture",
    }
)
#: fields of types that JSON does not know
_PATHS = ("data", "out", "val_data")
_PAIRS = ("img_size", "crop_scale", "crop_ratio")


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train an encoder by hiding parts of images and predicting them."""

    preset: Literal["none", "demo", "tutorial", "vit-b", "swin-b"] = "none"
    """Named settings that become the defaults of everything below; flags override them. demo: a
    small model on scikit-image's photographs, minutes on two CPU cores. tutorial: the tutorial's
    CNN. vit-b, swin-b: the published 800-epoch recipes (global batch 2048)."""

    data: Path | None = None
    """Folder of training images, searched through all its subfolders: JPEG, PNG, WebP, TIFF, 8 bit.
    Preset demo brings its own."""

    out: Path = Path("runs/pretrain")
    """Folder for checkpoints, logs and the configuration."""

    resume: bool = False
    """Continue the run in --out at the very step of its newest checkpoint; start it if there is
    none. Give the same settings as before."""

    overwrite: bool = False
    """Delete the checkpoints and logs that an earlier run left in --out."""

    # model
    encoder: str = "simmim_vit_base"
    """simmim_vit_base and simmim_swin_base (the paper's), cnn (the tutorial's), or the name of any
    timm ViT, BEiT, Swin or SwinV2."""

    encoder_args: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments for the encoder as pairs, for example: depth 4 embed_dim 192. Several
    numbers are joined by commas: depths 2,2 num_heads 4,8."""

    img_size: int | tuple[int, int] = 224
    """Side of the training images in pixels, or height and width."""

    channels: int = 3
    """3 reads images as RGB, 1 as gray."""

    drop_path: float = 0.0
    """Stochastic depth rate of the last block, growing linearly from 0 at the first."""

    normalize: bool = True
    """Normalise inputs and targets by ImageNet's mean and standard deviation; otherwise pixels stay
    in [0, 1] and the head ends in a sigmoid."""

    # what is hidden, and how the prediction is scored
    mask: Literal["random", "block", "box"] = "random"
    """random: single units; block: BEiT's rectangles; box: one rectangle an image."""

    mask_unit: int = 32
    """Pixels a side of the squares that are hidden or shown as a whole."""

    mask_ratio: float = 0.6
    """Hidden fraction of the units; for box, the hidden fraction of each side."""

    loss: Literal["l1", "mse", "smooth_l1"] = "l1"
    """Distance between predicted and true pixels, over hidden pixels only."""

    target_norm: Literal["none", "window", "patch"] = "none"
    """Normalise the target further: window, every pixel by the square around it (the SwinV2
    recipe); patch, by the mean and deviation of each output token's pixels (as in MAE)."""

    target_window: int = 47
    """Side of that square in pixels, odd."""

    # data
    crop_scale: tuple[float, float] = (0.67, 1.0)
    """Smallest and largest share of an image's area that a random crop covers."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width-to-height ratio of a random crop."""

    flip: float = 0.5
    """Probability of mirroring a crop left to right."""

    crops_per_image: int = 1
    """Random crops of each image in one epoch, for small folders."""

    val_data: Path | None = None
    """Folder of images for the validation loss."""

    val_count: int = 0
    """Without --val-data: hold out this many images of --data for the validation loss."""

    val_crops: int = 1
    """Fixed crops of each validation image: the first is central, the others random."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """An image that cannot be read: skip logs its name, counts it and takes the next readable image
    in its place; error stops the run."""

    workers: int = 2
    """Processes that read images; 0 reads them in the training process. The run is the same
    whatever the number."""

    cache: bool = False
    """Keep decoded images in memory (each worker its own), for small folders."""

    # optimisation
    epochs: int = 100
    """Passes over the data."""

    batch_size: int = 128
    """Images in one forward and backward pass of one process."""

    accumulate: int = 1
    """Passes whose gradients are summed before one update."""

    lr: float = 1e-4
    """Peak learning rate for a global batch of 512; scaled linearly with the batch, as are
    --warmup-lr and --min-lr."""

    warmup_lr: float = 5e-7
    """Learning rate of the first update."""

    min_lr: float = 1e-6
    """Learning rate at the end of the cosine schedule."""

    warmup_epochs: float = 10
    """Epochs of linear warm-up."""

    schedule: Literal["cosine", "step"] = "cosine"
    """After the warm-up: cosine down to --min-lr, or constant with one drop to a tenth at 7/8 of
    the run."""

    weight_decay: float = 0.05
    """AdamW's decay; biases, norms, position tables and tokens are exempt."""

    clip: float = 5.0
    """Largest norm of the gradient of one update; 0 turns clipping off."""

    # machine
    seed: int = 0
    """Governs initialisation, order, crops and masks."""

    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    """float32 throughout, or matrix products in bfloat16."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""

    plain: bool = False
    """Run the published arithmetic in plain PyTorch instead of the kernels, for comparison: the
    losses are the same to rounding."""

    attention: Literal["auto", "sdpa", "products"] = "auto"
    """How attention is computed: by scaled_dot_product_attention, or by plain products and softmax.
    auto takes the one that was measured to be faster for the device, the precision and the kind of
    encoder; the log says which."""

    # records
    log_every: int = 50
    """Updates between two rows of the training log."""

    val_every: int = 1
    """Epochs between two validations; there is one before the first update and one after the
    last."""

    save_every: int = 500
    """Updates between two checkpoints; there is always one at the end and when interrupted."""

    keep: int = 2
    """Checkpoints to keep."""

    picture: int = 0
    """Validation images in the reconstruction picture that is drawn at the end; 0 draws none."""

    def check(self) -> None:
        """Refuse numbers that make no sense; raises ``UserError``."""
        if self.channels not in (1, 3):
            raise UserError(f"images are read with 1 or 3 channels, not {self.channels}")
        if self.target_norm != "none" and not self.normalize:
            raise UserError("--target-norm needs targets beyond [0, 1]: leave out --no-normalize")
        if self.target_window < 1 or self.target_window % 2 == 0:
            raise UserError(f"--target-window must be odd and positive, not {self.target_window}")
        counts = ("epochs", "batch_size", "accumulate", "crops_per_image", "val_crops")
        for name in (*counts, "log_every", "val_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{flag(name)} must be at least 1, not {getattr(self, name)}")

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        return (self.img_size,) * 2 if isinstance(self.img_size, int) else self.img_size

    def to_json(self) -> str:
        """The configuration as JSON, paths as strings."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PretrainConfig:
        """Inverse of ``to_json``."""
        values = json.loads(text)
        for name in _PATHS:
            values[name] = None if values[name] is None else Path(values[name])
        for name in _PAIRS:
            if isinstance(values[name], list):
                values[name] = tuple(values[name])
        return cls(**values)

    def differences(self, other: PretrainConfig) -> list[str]:
        """Fields in which resuming would leave the run that ``other`` began, as ``--flag a, not b``."""
        return [
            f"{flag(f.name)} {getattr(other, f.name)}, not {getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if f.name not in _FREE_ON_RESUME and getattr(self, f.name) != getattr(other, f.name)
        ]


@dataclass(frozen=True)
class ReconstructConfig:
    """Draw originals, what the model sees of them, and what it puts where they were hidden."""

    checkpoint: Path
    """A checkpoint of simmim pretrain, for example runs/demo/checkpoints/last.pt."""

    data: Path | None = None
    """Folder of images; without it, the validation images of the run."""

    out: Path = Path("reconstruction.png")
    """The picture to write: PNG, JPEG, PDF, by its suffix."""

    count: int = 4
    """Images to show."""

    seed: int = 0
    """Chooses the masks."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """skip passes over images that cannot be read; error stops at the first."""


def flag(name: str) -> str:
    """The command line's name of a field."""
    return "--" + name.replace("_", "-")


_PUBLISHED_800 = PretrainConfig(
    epochs=800, warmup_epochs=10, schedule="step", lr=1e-4, warmup_lr=5e-7, workers=8
)

PRESETS: dict[str, PretrainConfig] = {
    "none": PretrainConfig(),
    "vit-b": dataclasses.replace(
        _PUBLISHED_800,
        preset="vit-b",
        out=Path("runs/vit-b"),
        encoder="simmim_vit_base",
        img_size=224,
        drop_path=0.1,
        batch_size=128,
        accumulate=16,
    ),
    "swin-b": dataclasses.replace(
        _PUBLISHED_800,
        preset="swin-b",
        out=Path("runs/swin-b"),
        encoder="simmim_swin_base",
        img_size=192,
        drop_path=0.0,
        batch_size=128,
        accumulate=16,
    ),
    "tutorial": PretrainConfig(
        preset="tutorial",
        out=Path("runs/tutorial"),
        encoder="cnn",
        img_size=64,
        normalize=False,
        mask="box",
        mask_unit=1,
        mask_ratio=0.15,
        loss="mse",
        batch_size=32,
        epochs=10,
        lr=1.6e-2,
        warmup_lr=1.6e-2,
        min_lr=1.6e-2,
        warmup_epochs=0,
        weight_decay=0.0,
        clip=0.0,
    ),
    "demo": PretrainConfig(
        preset="demo",
        out=Path("runs/demo"),
        overwrite=True,
        # windows are a prior for looking nearby: a plain ViT of this size is still worse than the
        # mean colour (0.70 against 0.65) after the images with which this one reaches 0.46
        encoder="swin_tiny_patch4_window7_224",
        encoder_args={"embed_dim": 64, "depths": "2,2", "num_heads": "4,8", "window_size": 6},
        img_size=96,
        mask_unit=8,
        crop_scale=(0.1, 1.0),
        crops_per_image=64,
        val_crops=16,
        workers=0,
        cache=True,
        epochs=10,
        batch_size=16,
        lr=6.4e-2,
        warmup_lr=1e-5,
        min_lr=1e-5,
        warmup_epochs=1,
        precision="32-true",
        log_every=26,
        val_every=2,
        picture=2,
    ),
}
