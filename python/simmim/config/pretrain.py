"""What ``simmim pretrain`` and ``simmim reconstruct`` can be told.

Each field's docstring is what ``--help`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simmim.config.images import check_show_bands
from simmim.config.run import Published, RunConfig
from simmim.errors import UserError


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Pre-train an encoder by hiding parts of images and predicting them."""

    preset: Literal["none", "demo", "tutorial", Published] = "none"
    """Named settings that become the defaults of everything below; flags override them. demo: a
    small model on scikit-image's photographs, minutes on two CPU cores. tutorial: the tutorial's
    CNN. vit-b, swin-b, swin-l, swinv2-b: SimMIM's published 800-epoch recipes (global batch 2048);
    swin-b-100: its short one; mae-vit-b, mae-vit-l, mae-vit-h: MAE's (4096). They do to the letter what
    the published code does."""

    method: Literal["simmim", "mae"] = "simmim"
    """simmim: the encoder sees all patches, hidden ones as a learnt token, and one linear layer predicts
    (Xie et al., 2022). mae: the encoder sees the visible patches of a ViT alone, and a decoder predicts
    (He et al., 2022); for Swin and SwinV2 with --mask uniform, whose visible units are an image of half
    the side to them (UM-MAE, Li et al., 2022). Without --preset it brings its published recipe."""

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
    """3 reads 8-bit images as RGB, 1 as gray, any other number all bands as they are; --stats brings
    it."""

    drop_path: float = 0.0
    """Stochastic depth rate of the last block, growing linearly from 0 at the first."""

    init: Literal["timm", "published"] = "timm"
    """How the encoder's weights are drawn: as timm draws them, or as SimMIM's code does (of a ViT cut at
    one deviation, the patch embedding too). MAE's are always drawn as published."""

    normalize: bool = True
    """Normalise inputs and targets by --mean and --std; otherwise pixels, of 8 bits, stay in [0, 1]
    and the head ends in a sigmoid."""

    decoder_width: int = 512
    """Width of MAE's decoder."""

    decoder_depth: int | Literal["auto"] = "auto"
    """Blocks of MAE's decoder; auto: 8 as published with MAE, 2 for Swin as published with UM-MAE."""

    decoder_heads: int = 16
    """Attention heads of MAE's decoder."""

    # what is hidden, and how the prediction is scored
    mask: Literal["random", "block", "inverse-block", "uniform", "box"] = "random"
    """random: single units; block: BEiT's rectangles; inverse-block: all but such (CAPI); uniform: the
    same number of every 2 x 2 units (UM-MAE); box: one rectangle an image."""

    mask_unit: int = 32
    """Pixels a side of the squares that are hidden or shown as a whole."""

    mask_ratio: float = 0.6
    """Hidden fraction of the units; for box, the hidden fraction of each side. At least one unit
    must be hidden and one visible."""

    second_ratio: float = 0.0
    """UM-MAE's secondary masking: fraction of the visible units whose tokens Swin gets as learnt tokens
    while it trains; published 0.25."""

    loss: Literal["l1", "mse", "smooth_l1"] = "l1"
    """Distance between predicted and true pixels, over hidden pixels only."""

    target: Literal["pixels", "hog", "lowpass"] = "pixels"
    """What is predicted of the hidden part. hog: histograms of oriented gradients of 8 x 8 pixels (as
    in MaskFeat); lowpass: its pixels without their high frequencies (as in PixMIM)."""

    target_norm: Literal["none", "window", "patch"] = "none"
    """Normalise the target further: window, every pixel by the square around it (the SwinV2
    recipe); patch, by the mean and deviation of each output token's pixels (as in MAE)."""

    target_window: int = 47
    """Side of that square in pixels, odd."""

    plain: bool = False
    """Run the published arithmetic in plain PyTorch instead of the kernels, for comparison: the
    losses are the same to rounding."""

    # validation
    val_count: int = 0
    """Without --val-data: hold out this many images of --data for the validation loss."""

    val_crops: int = 1
    """Fixed crops of each validation image: the first is central, the others random."""

    picture: int = 0
    """Validation images in the reconstruction picture that is drawn at the end; 0 draws none."""

    show_bands: tuple[int, ...] = ()
    """Three channels, or one, counted from 1, that the picture shows as red, green and blue; default
    the first three, or the first where there are fewer."""

    def _defaults(self) -> PretrainConfig | None:
        from simmim.presets import METHODS, PRESETS

        return METHODS[self.method] if self.preset == "none" else PRESETS.get(self.preset)

    def check(self) -> None:
        super().check()
        if self.show_bands and (self.stats is None or self.mean):
            check_show_bands(self.show_bands, self.channels)
        if not self.normalize and self.pixel_type != "uint8":
            raise UserError("--no-normalize is for 8-bit images: leave it out")
        if self.target_norm != "none" and not self.normalize:
            raise UserError("--target-norm needs targets beyond [0, 1]: leave out --no-normalize")
        if self.target == "hog" and not self.normalize:
            raise UserError("--target hog predicts no pixels in [0, 1]: leave out --no-normalize")
        if self.target == "hog" and self.target_norm == "window":
            raise UserError(
                "--target-norm window is for pixels, --target hog has none: leave it out"
            )
        if self.target_window < 1 or self.target_window % 2 == 0:
            raise UserError(f"--target-window must be odd and positive, not {self.target_window}")


@dataclass(frozen=True)
class ReconstructConfig:
    """Draw originals, what the model sees of them, and what it puts where they were hidden."""

    checkpoint: Path
    """A checkpoint of simmim pretrain, for example runs/demo/checkpoints/last.pt."""

    data: Path | None = None
    """Images, as for simmim pretrain; without it, the validation images of the run."""

    out: Path = Path("reconstruction.png")
    """The picture to write: PNG, JPEG, PDF, by its suffix."""

    count: int = 4
    """Images to show."""

    show_bands: tuple[int, ...] = ()
    """Three channels, or one, counted from 1, to show as red, green and blue; default the run's."""

    seed: int = 0
    """Chooses the masks."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """skip passes over images that cannot be read; error stops at the first."""

    overwrite: bool = False
    """Replace the picture --out if it is there already."""
