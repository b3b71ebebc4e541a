"""Settings of ``simmim pretrain`` and ``simmim reconstruct``."""

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
    """A named set of defaults for the other options; those that you give override it. demo: a small model on
    scikit-image's photographs, minutes on two CPU cores. tutorial: the tutorial's CNN. vit-b, swin-b,
    swin-l, swinv2-b: SimMIM's published 800-epoch recipes (global batch 2048); swin-b-100: its 100-epoch
    recipe; mae-vit-b, mae-vit-l, mae-vit-h: MAE's recipes (global batch 4096). The published ones follow
    the published code to the letter."""

    method: Literal["simmim", "mae"] = "simmim"
    """How to pre-train. simmim: the encoder sees all patches, hidden ones replaced by a learnt token, and
    a linear layer predicts pixels (Xie et al., 2022). mae: a ViT encoder sees visible patches only, and
    a decoder predicts the hidden ones (He et al., 2022); Swin and SwinV2 need --mask uniform, whose
    visible units form an image of half the side (UM-MAE, Li et al., 2022). Without --preset each
    method's defaults are its published recipe."""

    # model
    encoder: str = "simmim_vit_base"
    """The model to train: simmim_vit_base or simmim_swin_base (the paper's), cnn (the tutorial's), or any
    ViT, BEiT, Swin or SwinV2 of timm by its name."""

    encoder_args: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments for the encoder as pairs, for example: depth 4 embed_dim 192. Several
    numbers are joined by commas: depths 2,2 num_heads 4,8."""

    img_size: int | tuple[int, int] = 224
    """Side of the training images in pixels, or height and width."""

    channels: int = 3
    """3 reads 8-bit images as RGB and 1 as gray; any other number takes all bands as they are. Set by
    --stats."""

    drop_path: float = 0.0
    """Stochastic depth rate of the last block, growing linearly from 0 at the first."""

    init: Literal["timm", "published"] = "timm"
    """Initialisation of the encoder's weights: as in timm, or as in SimMIM's code (for a ViT truncated at
    one standard deviation, the patch embedding included). MAE is always initialised as published."""

    normalize: bool = True
    """Normalise inputs and targets by --mean and --std. Otherwise 8-bit pixels are scaled to [0, 1] and
    the head ends in a sigmoid."""

    decoder_width: int = 512
    """Width of MAE's decoder, in numbers a token."""

    decoder_depth: int | Literal["auto"] = "auto"
    """Blocks of MAE's decoder; auto: 8 as published with MAE, 2 for Swin as published with UM-MAE."""

    decoder_heads: int = 16
    """Attention heads of MAE's decoder."""

    # masking and loss
    mask: Literal["random", "block", "inverse-block", "uniform", "box"] = "random"
    """Which units, squares of --mask-unit pixels, are hidden. random: each at random; block: BEiT's
    rectangles; inverse-block: everything except such rectangles; uniform: the same number in every
    2 x 2 units (UM-MAE); box: one rectangle an image."""

    mask_unit: int = 32
    """Side, in pixels, of a unit: a square that is hidden or shown as a whole."""

    mask_ratio: float = 0.6
    """Hidden fraction of the units; for box, the hidden fraction of each side. At least one unit
    must be hidden and one visible."""

    second_ratio: float = 0.0
    """UM-MAE's secondary masking: fraction of the visible units that Swin sees as a learnt token during
    training; published 0.25."""

    loss: Literal["l1", "mse", "smooth_l1"] = "l1"
    """Distance between predicted and true pixels, over hidden pixels only."""

    target: Literal["pixels", "hog", "lowpass"] = "pixels"
    """What is predicted for hidden patches: pixels; hog: histograms of oriented gradients of 8 x 8 pixels
    (as in MaskFeat); lowpass: pixels without their high frequencies (as in PixMIM)."""

    target_norm: Literal["none", "window", "patch"] = "none"
    """Local normalisation of the target. window: each pixel by mean and deviation of the square around
    it (the SwinV2 recipe); patch: by mean and deviation of the token's pixels (as in MAE)."""

    target_window: int = 47
    """Side of the square of --target-norm window, in pixels; odd."""

    plain: bool = False
    """Run the published arithmetic in plain PyTorch instead of the kernels, for comparison. Losses are
    the same to rounding."""

    # validation
    val_count: int = 0
    """Without --val-data: hold out this many images of --data for the validation loss."""

    val_crops: int = 1
    """Fixed crops of each validation image: the first is central, the others random."""

    picture: int = 0
    """Number of validation images in the reconstruction picture that is drawn at the end; 0: no
    picture."""

    show_bands: tuple[int, ...] = ()
    """Three channels that the picture shows as red, green and blue, or one shown as gray, counted from
    1; default the first three, or the first if there are fewer."""

    def defaults(self) -> PretrainConfig | None:
        from simmim.presets import METHODS, PRESETS

        return METHODS[self.method] if self.preset == "none" else PRESETS.get(self.preset)

    def check(self) -> None:
        super().check()
        if self.show_bands and (self.stats is None or self.mean):
            check_show_bands(self.show_bands, self.channels)
        if not self.normalize and self.pixel_type != "uint8":
            raise UserError("--no-normalize is for 8-bit images: leave it out")
        if not self.normalize and self.target_norm != "none":
            raise UserError("--target-norm needs targets beyond [0, 1]: leave out --no-normalize")
        if not self.normalize and self.target == "hog":
            raise UserError("--target hog predicts no pixels in [0, 1]: leave out --no-normalize")
        if self.target == "hog" and self.target_norm == "window":
            raise UserError(
                "--target-norm window is for pixels, --target hog has none: leave it out"
            )
        if self.target_window % 2 == 0:
            raise UserError(f"--target-window must be odd, not {self.target_window}")


@dataclass(frozen=True)
class ReconstructConfig:
    """Draw images, their visible parts, and the model's predictions of the hidden parts."""

    checkpoint: Path
    """A checkpoint of simmim pretrain, for example runs/demo/checkpoints/last.pt."""

    data: Path | None = None
    """Images, as for simmim pretrain; without it, the validation images of the run."""

    out: Path = Path("reconstruction.png")
    """The picture to write: PNG, JPEG, PDF, by its suffix."""

    count: int = 4
    """Images to show."""

    show_bands: tuple[int, ...] = ()
    """Three channels to show as red, green and blue, or one as gray, counted from 1; default those of
    the run."""

    seed: int = 0
    """Seed of the masks."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """What to do with an image that cannot be read. skip: pass over it; error: stop."""

    overwrite: bool = False
    """Replace the picture --out if it is there already."""
