"""Settings of ``simmim import`` and ``simmim export``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Project = Literal["simmim", "microsoft", "mmpretrain", "transformers", "timm", "mae"]
Order = Literal["cyx", "yxc"]


@dataclass(frozen=True)
class ImportConfig:
    """Convert a checkpoint of another project, for probe, finetune, predict and the other commands."""

    source: Path
    """The other project's file: safetensors, or a pickle, whose code is not run. Or a folder with
    model.safetensors or pytorch_model.bin, whole or in shards."""

    encoder: str
    """The encoder in the file, named as for simmim pretrain: simmim_vit_base for microsoft's ViT-B,
    simmim_swin_base for its Swin-B at 192 pixels, or a timm name."""

    encoder_args: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments for that encoder as pairs, for example: window_size 12."""

    img_size: int | tuple[int, int] = 224
    """Side of the images in pixels, or height and width. Position tables of another size are
    interpolated."""

    tables: Literal["linear", "cubic"] = "linear"
    """Interpolation of relative-position tables: linear, as in timm, or cubic, as in SimMIM's fine-tuning
    code and in simmim finetune. Tables of absolute positions are interpolated bicubically."""

    source_img_size: int | tuple[int, int] | None = None
    """Side of the images that the file's model was trained on, or height and width; default: what the
    file's configuration says, else square images."""

    source_window: int | tuple[int, int] | None = None
    """Window of the file's Swin; default: what its configuration says, else a square one."""

    channels: int = 3
    """Channels of the images."""

    mean: tuple[float, ...] = ()
    """Mean of each channel that the file's model subtracts, in the units of the files' numbers (timm and
    transformers state it by 255); default what preprocessor_config.json of transformers or config.json
    of timm beside it says, else ImageNet's."""

    std: tuple[float, ...] = ()
    """Standard deviation of each channel, in the units of --mean."""

    project: Literal["auto"] | Project = "auto"
    """The project whose names the file has; auto recognises it. mae: facebookresearch/mae."""

    encoder_only: bool = False
    """Read the encoder only; mask token and head are newly initialised. For classifiers and bare
    backbones, and always for timm. Otherwise a head and MAE's decoder are read too."""

    decoder_heads: int | None = None
    """Attention heads of MAE's decoder, which its tensors don't tell; default what the file's
    configuration says, else the published 16."""

    classifier: bool = False
    """Read a fine-tuned classifier with its head, for simmim predict, features, probe, finetune and
    export. Its features must be the mean over the patches."""

    pool: Literal["auto", "mean"] = "auto"
    """What a ViT classifier of timm's without fc_norm sees, where no config.json beside it says so: mean, the
    mean over the patches (global_pool='avg')."""

    weights: str | None = None
    """Which of several models in the file to read: its key, or the prefix of its names; default: the only
    one that is not an EMA copy."""

    head_order: Order = "cyx"
    """Order of the head's rows in the file: cyx (channel, dy, dx), or yxc, as in MAE."""

    out: Path = Path("imported.safetensors")
    """The checkpoint to write."""

    overwrite: bool = False
    """Replace the file --out if it is there already."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a model under the names of another project."""

    checkpoint: Path
    """A checkpoint of simmim pretrain or simmim import, or with the projects simmim, timm and, for Swin,
    transformers one of simmim finetune."""

    project: Project
    """The project to write for. timm: the encoder only; transformers: a folder for from_pretrained; mae:
    a ViT of --method mae with its decoder, for facebookresearch/mae."""

    out: Path
    """The file to write: a pickle if it ends in .pt, .pth or .bin, else .safetensors. For transformers a
    folder."""

    head_order: Order = "cyx"
    """Order of the head's rows in the file; see simmim import."""

    overwrite: bool = False
    """Replace the file --out, or the files of a model in the folder --out, if they exist."""
