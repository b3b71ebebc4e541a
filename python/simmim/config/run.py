"""What every command that trains can be told.

Each field's docstring is what ``--help`` prints.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from simmim.config.images import ImageConfig
from simmim.errors import UserError

Config = TypeVar("Config", bound="RunConfig")

#: fields of a type that JSON does not know
_PATHS = ("data", "out", "val_data", "checkpoint", "stats", "init_from")


#: presets of published recipes, of pre-training and of fine-tuning
Published = Literal[
    "vit-b",
    "swin-b",
    "swin-b-100",
    "swin-l",
    "swinv2-b",
    "mae-vit-b",
    "mae-vit-l",
    "mae-vit-h",
]


@dataclass(frozen=True)
class RunConfig(ImageConfig):
    """A training run: its data, its optimisation, its records."""

    data: Path | None = None
    """Training images: a folder, searched through all its subfolders; a list of files (txt, csv,
    parquet); an array of many images (npy, zarr); tar shards; a table with a column of images
    (parquet, Hugging Face datasets); what simmim pack wrote. Where a folder holds train/ beside val/, validation/ or test/,
    these are used as such. Folders of runs are left out."""

    out: Path = Path("runs/pretrain")
    """Folder for checkpoints, logs and the configuration."""

    resume: bool = False
    """Continue the run in --out at the very step of its newest checkpoint; start it if there is
    none. Settings that are not given are those of the run. From that step on may change --epochs,
    --lr, --warmup-lr, --min-lr, --warmup-epochs, --schedule, --milestones, --gamma, --clip, --precision,
    --attention and --compile, and at any time what does not touch the weights."""

    overwrite: bool = False
    """Delete the checkpoints and logs that an earlier run left in --out."""

    init_from: Path | None = None
    """Begin with the weights in this file: anything that simmim import reads, for --encoder. The log says
    what was loaded and what is new; position tables of another --img-size are interpolated."""

    # data
    crop_scale: tuple[float, float] = (0.67, 1.0)
    """Smallest and largest share of an image's area that a random crop covers."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width-to-height ratio of a random crop."""

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How crops are resized, in both cases with antialiasing. Bicubic in MAE's recipe and in all for
    fine-tuning."""

    flip: float = 0.5
    """Probability of mirroring a crop left to right."""

    crops_per_image: int | Literal["auto"] = 1
    """Random crops of each image in one epoch. auto, for scenes: as many as the image has areas of
    --img-size, and a crop covers the share --crop-scale of one such area."""

    val_data: Path | None = None
    """Images for the validation loss: a folder, or whatever --data takes."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """An image that cannot be read: skip logs its name, counts it and takes the next readable image
    in its place, or, in validation, none; error stops the run. Eight files in a row that are gone
    stop it in any case."""

    workers: int | Literal["auto"] = "auto"
    """Processes that read images; 0 reads them in the training process, between updates. auto
    begins with threads of the training process on up to four cores without a GPU, else with
    processes, tries other ways and more of them while the run waits for images, and keeps what is
    the fastest. The run is the same whatever reads."""

    cache: bool = False
    """Keep decoded images in memory (each worker its own), for small folders."""

    # optimisation
    epochs: int = 100
    """Passes over the data. A run that is resumed with more follows, from there on, the schedule of
    a run that had as many from the start: the learning rate goes up again."""

    batch_size: int = 128
    """Images in one forward and backward pass of one process; an update takes this many, times
    --accumulate, times the processes."""

    accumulate: int = 1
    """Passes whose gradients are summed before one update."""

    keep_rest: bool = False
    """Make a smaller update of what is left over at the end of an epoch; otherwise it is dropped, as
    published."""

    lr: float = 1e-4
    """Peak learning rate for a global batch of 512; scaled linearly with the batch, as are
    --warmup-lr and --min-lr."""

    warmup_lr: float = 5e-7
    """Learning rate of the first update."""

    min_lr: float = 1e-6
    """Learning rate at the end of the cosine schedule."""

    warmup_epochs: float = 10
    """Epochs of linear warm-up."""

    schedule: Literal["cosine", "cosine-from-start", "step", "multistep"] = "cosine"
    """After the warm-up: cosine down to --min-lr; a cosine that is counted from the first update, as
    SimMIM's code counts it for fine-tuning; constant with one drop to a tenth at 7/8 of the run, in 800
    epochs after the published 700; or constant with a drop at each of --milestones."""

    milestones: tuple[float, ...] = ()
    """Epochs after which --schedule multistep multiplies the learning rate by --gamma; with more --epochs
    they stay where they are."""

    gamma: float = 0.1
    """What --schedule multistep multiplies the learning rate by."""

    late_rate: bool = False
    """The rate of an update is that of the pass before it, as in SimMIM's code, which sets it after the
    update."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's; MAE pre-trains with 0.9 0.95."""

    weight_decay: float = 0.05
    """AdamW's decay; biases, norms, position tables and tokens are exempt."""

    also_decay: tuple[str, ...] = ()
    """Ends of the names of tokens and tables that decay all the same. The published code decays some by
    mistake, and the presets do as it does: SimMIM Swin's tables and its ViT's table and mask token, MAE
    its class and mask token."""

    clip: float = 5.0
    """Largest norm of the gradient of one update; 0 turns clipping off."""

    fixed_ends: bool = False
    """With --layer-decay all layers have the same --warmup-lr and --min-lr, as in SimMIM's code, and not
    their share of it, as in BEiT's and MAE's."""

    # machine
    seed: int = 0
    """Governs initialisation, order, crops and masks."""

    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    """float32 throughout, or matrix products in bfloat16, or in float16 with a scaled loss, for GPUs
    without bfloat16 (V100, T4). With 16-mixed an update whose gradient overflows is skipped; it counts
    as an update for the schedule, and halves the scale."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""

    shard: bool = False
    """With several processes (torchrun): spread weights, gradients and optimiser state over them
    instead of holding all in each (FSDP), for encoders that do not fit otherwise."""

    attention: Literal["auto", "sdpa", "products"] = "auto"
    """How attention is computed: by scaled_dot_product_attention, or by plain products and softmax.
    auto takes the one that was measured to be faster for the device, the precision and the kind of
    encoder; the log says which."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model with torch.compile; the losses stay the same to rounding. auto does so, from
    the fourth update on, where the time that is left earns it back; the log says what was decided
    and why."""

    # records
    log_every: int = 50
    """Updates between two rows of the training log; 0 writes one an epoch."""

    val_every: int = 1
    """Epochs between two validations; there is one before the first update and one after the
    last."""

    save_every: int = 500
    """Updates between two checkpoints; there is always one at the end and when the run ends
    early (a signal, a full disk, images that cannot be read any more)."""

    keep: int = 2
    """Checkpoints to keep."""

    def to_json(self) -> str:
        """The configuration as JSON, paths as strings."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls: type[Config], text: str) -> Config:
        """Inverse of ``to_json``.

        Raises:
            UserError: settings that another version wrote.
        """
        values = {**json.loads(text)}
        unknown = values.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise UserError(
                f"this simmim has no setting {', '.join(sorted(unknown))}: use the version that "
                "wrote it"
            )
        for name in _PATHS:
            if values.get(name) is not None:
                values[name] = Path(values[name])
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)
