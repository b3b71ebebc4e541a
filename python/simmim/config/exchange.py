"""What ``simmim import`` and ``simmim export`` can be told.

Each field's docstring is what ``--help`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Project = Literal["simmim", "microsoft", "mmpretrain", "transformers", "timm", "mae"]
Order = Literal["cyx", "yxc"]


@dataclass(frozen=True)
class ImportConfig:
    """Make a checkpoint of another project one of ours, for probe, finetune and reconstruct."""

    source: Path
    """The other project's file: safetensors, or a pickle, of which tensors and plain values are read
    and nothing is run. Of a folder: model.safetensors or pytorch_model.bin, in shards or whole."""

    encoder: str
    """The encoder that it holds, named as for simmim pretrain: simmim_vit_base for microsoft's
    ViT-B, simmim_swin_base for its Swin-B at 192 pixels, or a name of timm's."""

    encoder_args: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments for that encoder as pairs, for example: window_size 12."""

    img_size: int | tuple[int, int] = 224
    """Side of the images in pixels, or height and width. Position tables of another size are
    interpolated."""

    tables: Literal["linear", "cubic"] = "linear"
    """How tables of relative positions are interpolated: linear, as by timm, or cubic, as by SimMIM's code
    for fine-tuning, and by simmim finetune. Absolute ones are bicubic."""

    source_img_size: int | tuple[int, int] | None = None
    """Side of the images that the file's model was trained on, or height and width; default: what
    the file's configuration says, else that its position tables are of square images."""

    source_window: int | tuple[int, int] | None = None
    """Window of the file's Swin; default: what its configuration says, else that it is square."""

    channels: int = 3
    """Channels of the images."""

    project: Literal["auto"] | Project = "auto"
    """Whose names the file has; auto tells by the names. mae: facebookresearch/mae."""

    encoder_only: bool = False
    """Take the encoder alone and leave the mask token and the head newly initialised, as always for
    timm: for classifiers and bare backbones. Otherwise MAE's decoder is taken along."""

    decoder_heads: int | None = None
    """Attention heads of MAE's decoder, which no tensor shows; default what the file's configuration
    says, else the published 16."""

    classifier: bool = False
    """Take a fine-tuned classifier with its head, whose features are the mean over the patches, for simmim
    predict, features, probe, finetune and export."""

    weights: str | None = None
    """Which model of the file to take where there are several: the key under which it lies or the
    prefix of its names; default: the only one that is no EMA copy."""

    head_order: Order = "cyx"
    """How the head's rows follow each other in the file: cyx (channel, dy, dx), as all the listed
    projects have them, or yxc, as MAE and heads of its kind."""

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
    """Whose names. timm gets the encoder alone; transformers a folder for from_pretrained; mae,
    facebookresearch/mae's code, takes a ViT of --method mae with its decoder."""

    out: Path
    """The file to write: a pickle where it ends in .pt, .pth or .bin, and .safetensors. For transformers
    a folder."""

    head_order: Order = "cyx"
    """How the head's rows are to follow each other; see simmim import."""

    overwrite: bool = False
    """Replace the file --out, or the files of a model in the folder --out, if they are there
    already."""
