"""Settings of all commands that train."""

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
#: what weights a run begins with, which a run that has a checkpoint no longer reads
STARTED_FROM = ("checkpoint", "init_from")


#: presets of published recipes, of pre-training and of fine-tuning
Published = Literal[
    "vit-b", "swin-b", "swin-b-100", "swin-l", "swinv2-b", "mae-vit-b", "mae-vit-l", "mae-vit-h"
]


@dataclass(frozen=True)
class RunConfig(ImageConfig):
    """A training run: its data, its optimisation, its records."""

    data: Path | None = None
    """Training images: a folder, searched through all its subfolders; a list of files (txt, csv,
    parquet); an array of many images (npy, npz, zarr); tar shards; a table with a column of images
    (parquet, Hugging Face datasets); or the output of simmim pack. If a folder holds train/ and val/,
    validation/ or test/, these are used as such. Folders that runs wrote are left out."""

    out: Path = Path("runs/pretrain")
    """Folder for checkpoints, logs and the configuration."""

    resume: bool = False
    """Continue the run in --out at the exact update of its newest checkpoint, or start it if there is
    none. Settings that are not given are those of the run. These may change: --epochs, --lr,
    --warmup-lr, --min-lr, --warmup-epochs, --schedule, --milestones, --gamma, --late-rate,
    --fixed-ends, --clip, --precision, --attention, --compile, and settings that don't affect the
    weights."""

    overwrite: bool = False
    """Delete the checkpoints and logs that an earlier run left in --out."""

    init_from: Path | None = None
    """Start from the weights in this file: any that simmim import reads and that fits --encoder. The log
    says what was loaded and what is new; position tables of another --img-size are interpolated."""

    # data
    crop_scale: tuple[float, float] = (0.67, 1.0)
    """Smallest and largest share of an image's area that a random crop covers."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width-to-height ratio of a random crop."""

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of crops, always antialiased. Bicubic in MAE's recipe and in all fine-tuning
    recipes."""

    flip: float = 0.5
    """Probability of mirroring a crop left to right."""

    crops_per_image: int | Literal["auto"] = 1
    """Random crops of each image in one epoch. auto, for large scenes: one for each area of --img-size
    in the image; each covers --crop-scale of such an area."""

    val_data: Path | None = None
    """Images for the validation loss: a folder, or whatever --data takes."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """What to do with an image that cannot be read. skip: log its name, count it, and take the next
    readable image in its place (in validation none). error: stop the run. Eight files in a row that
    cannot be opened always stop it."""

    workers: int | Literal["auto"] = "auto"
    """Processes that read images; 0: the training process reads them between updates. auto starts with
    threads of the training process on up to four cores without a GPU, else with processes; while the
    run waits for images it tries others and more of them, and keeps the fastest. The run's results
    don't depend on it."""

    cache: bool = False
    """Keep decoded images in memory, in each worker its own; for small folders."""

    # optimisation
    epochs: int = 100
    """Passes over the data. When a run is resumed with more epochs, its learning rate goes up again, to
    the schedule of a run that had this many from the start."""

    batch_size: int = 128
    """Images in one forward and backward pass of one process. An update takes this number times
    --accumulate times the number of processes."""

    accumulate: int = 1
    """Passes whose gradients are summed before one update."""

    keep_rest: bool = False
    """Train on the incomplete last batch of an epoch; otherwise it is dropped, as published."""

    lr: float = 1e-4
    """Peak learning rate for 512 images an update (the global batch); scaled linearly with the batch, as are
    --warmup-lr and --min-lr."""

    warmup_lr: float = 5e-7
    """Learning rate of the first update."""

    min_lr: float = 1e-6
    """Learning rate at the end of the cosine schedule."""

    warmup_epochs: float = 10
    """Epochs in which the learning rate rises linearly from --warmup-lr to --lr."""

    schedule: Literal["cosine", "cosine-from-start", "step", "multistep"] = "cosine"
    """Learning rate after the warm-up. cosine: down to --min-lr; cosine-from-start: the same, but counted
    from the first update, as in SimMIM's fine-tuning; step: constant, then a tenth from 7/8 of the run
    on (epoch 700 of 800, as published); multistep: multiplied by --gamma at each of --milestones."""

    milestones: tuple[float, ...] = ()
    """Epochs after which --schedule multistep multiplies the learning rate by --gamma; they don't move
    with --epochs."""

    gamma: float = 0.1
    """Factor by which --schedule multistep multiplies the learning rate at each of --milestones."""

    late_rate: bool = False
    """Use the learning rate of the pass before, as in SimMIM's code, which sets the rate after each
    update."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW; MAE pre-trains with 0.9 0.95."""

    weight_decay: float = 0.05
    """Weight decay of AdamW; biases, norms, position tables and tokens are exempt."""

    also_decay: tuple[str, ...] = ()
    """Names, or their last parts, of tokens and position tables that get weight decay though such parameters
    have none. The published code decays some by mistake, which the presets repeat: of SimMIM's Swin the
    tables, of its ViT the table and the mask token, of MAE the class and mask tokens."""

    clip: float = 5.0
    """Largest gradient norm of an update; 0: no clipping."""

    fixed_ends: bool = False
    """With simmim finetune's --layer-decay: use the same --warmup-lr and --min-lr for all layers, as in
    SimMIM's code, instead of scaling them by layer, as in BEiT's and MAE's."""

    # machine
    seed: int = 0
    """Seed of the random numbers: initial weights, order, crops and masks."""

    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """32-true: float32 throughout; bf16-mixed: matrix products in bfloat16; 16-mixed: in float16 with
    loss scaling. auto takes bf16-mixed where the GPU or CPU has fast products in bfloat16, 16-mixed on
    other GPUs (V100, T4) and 32-true on other CPUs; the log says which, and a resumed run keeps it.
    With 16-mixed an update whose gradient overflows is skipped, though the schedule counts it, and
    halves the scale."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""

    shard: bool = False
    """With several processes (torchrun): divide weights, gradients and optimiser state among them (FSDP),
    for encoders that do not fit otherwise."""

    attention: Literal["auto", "sdpa", "products"] = "auto"
    """How attention is computed: by scaled_dot_product_attention, or by plain products and softmax.
    auto takes the one that was measured to be faster for the device, precision and kind of encoder; the
    log says which."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model with torch.compile; losses stay the same to rounding. auto compiles after the
    third update if the remaining time earns it back; the log says what was decided and why."""

    # records
    log_every: int = 50
    """Updates between two rows of the training log; 0: one row an epoch."""

    val_every: int = 1
    """Epochs between two validations; one is always made before the first update and one after the
    last."""

    save_every: int = 500
    """Updates between two checkpoints; one is always written at the end, and when the run ends early (a
    signal, a full disk, images that can no longer be read)."""

    keep: int = 2
    """Number of checkpoints to keep."""

    def to_json(self) -> str:
        """The configuration as JSON, paths as strings."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls: type[Config], text: str) -> Config:
        """Inverse of ``to_json``; raises ``UserError`` for settings that another version wrote."""
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
