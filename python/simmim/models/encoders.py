"""Encoders that see a partly hidden image: timm's ViT, BEiT, Swin, SwinV2, and a small CNN.

An encoder maps images ``(B, C, H, W)`` of any type and a mask to tokens ``(B, L, width)``, ``L = (H/stride)
* (W/stride)`` in row-major order. Hidden patches never reach it: the mask token stands in their
place right after the patch embedding (for Swin, after its LayerNorm), as in the SimMIM paper
(Xie et al., CVPR 2022), or, for the CNN, hidden pixels are filled before the first convolution.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simmim.errors import UserError, first_line, require
from simmim.models import published
from simmim_kernels import PatchMask, mask_image
from simmim_kernels.channel_statistics import ChannelStatistics

timm = require("timm")
integration = require("simmim_kernels.integrations.timm")

#: names that are ours, with the timm model and the arguments that they stand for
PAPER_ENCODERS = {
    "simmim_vit_base": (
        "beit_base_patch16_224",
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": 0.1},
    ),
    "simmim_swin_base": ("swin_base_patch4_window7_224", {"window_size": 6}),
}
CNN = "cnn"
#: timm's modules that hold the four families
FAMILIES = ("vision_transformer", "deit", "beit", "swin_transformer", "swin_transformer_v2")


class TimmEncoder(integration.MaskedEncoder):
    """A timm transformer whose hidden patches are replaced by a learnt mask token.

    Args:
        name: a timm ViT, BEiT, Swin or SwinV2, or a name of ``PAPER_ENCODERS``.
        img_size: ``(H, W)`` in pixels, each a multiple of the encoder's ``stride``.
        channels: channels ``C`` of the image, any number from 1.
        mean, std: normalisation of the image, of uint8 of the image divided by 255.
        drop_path: stochastic depth rate of the last block; it grows linearly from 0.
        norm_eps: epsilon of all LayerNorms; by default timm's. transformers' ViT has 1e-12.
        arguments: passed on to timm, for example ``depth=4``.

    Attributes:
        patch: pixels a side of one patch of the patch embedding.
        stride: pixels a side of one output token.
        width: numbers in one output token.
        plain: run the published arithmetic instead of the kernels.

    Raises:
        UserError: unknown name, a model that is none of the four families, a size that the stride
            does not divide, arguments that timm refuses.
    """

    def __init__(
        self,
        name: str,
        *,
        img_size: tuple[int, int],
        channels: int = 3,
        mean: Sequence[float],
        std: Sequence[float],
        drop_path: float = 0.0,
        norm_eps: float | None = None,
        **arguments: object,
    ) -> None:
        timm_name, defaults = PAPER_ENCODERS.get(name, (name, {}))
        if not timm.is_model(timm_name):
            raise UserError(_unknown(name))
        if not timm.models.is_model_in_modules(timm_name, FAMILIES):
            raise UserError(_wrong_family(name))
        try:
            backbone = timm.create_model(
                timm_name,
                img_size=img_size,
                in_chans=channels,
                num_classes=0,
                global_pool="",
                drop_path_rate=drop_path,
                **{**defaults, **arguments},
            )
        # what arguments that make no sense lead to is whatever the model's code meets first
        except Exception as error:
            raise UserError(
                f"timm cannot build encoder {name!r} this way: {first_line(error)}"
            ) from error
        for norm in (m for m in backbone.modules() if isinstance(m, nn.LayerNorm)):
            norm.eps = norm.eps if norm_eps is None else float(norm_eps)
        try:
            super().__init__(backbone, mean=mean, std=std)
        except (ValueError, IndexError) as error:
            why = "it has no block" if isinstance(error, IndexError) else error
            raise UserError(f"encoder {name!r}: {why}") from error
        if self.family is None:
            raise UserError(_wrong_family(name))
        self.plain = False
        check_divides("encoder stride", self.stride, img_size)

    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks in the order in which they run."""
        return self.family.blocks()

    def pooled(self, output: Tensor) -> Tensor:
        """The mean ``(B, width)`` over the patch tokens of what a block gave."""
        first = getattr(self.backbone, "num_prefix_tokens", 0)
        return output[:, first:].flatten(1, -2).mean(1)

    def depths(self) -> dict[str, int]:
        """How deep each parameter lies, as in the published fine-tuning of BEiT, SimMIM and MAE: 0 the
        embedding, n the n-th block and the merging of patches behind it; none for the final norm and
        a table that all blocks share, which lie with the head."""
        depths = {"mask_token": 0}
        blocks = {id(block): n for n, block in enumerate(self.blocks(), 1)}
        last = 0
        for prefix, module in self.backbone.named_modules():
            last = blocks.get(id(module), last)
            if id(module) in blocks or prefix.endswith(".downsample"):
                names = (f"backbone.{prefix}.{name}" for name, _ in module.named_parameters())
                depths |= dict.fromkeys(names, last)
        for name, _ in self.backbone.named_parameters():
            if not name.startswith(("blocks.", "layers.", "norm.", "fc_norm.", "rel_pos_bias.")):
                depths[f"backbone.{name}"] = 0
        return depths

    def _patches(self, images: Tensor, mask: PatchMask | Tensor) -> Tensor:
        if not self.plain:
            return super()._patches(images, mask)
        grid = self._patch_grid(images)
        embed, pos = self.backbone.patch_embed, self.family.pos_embed(grid)
        x = embed(published.normalized(images, self.mean, self.std).to(self.mask_token.dtype))
        x = x.flatten(1, 2) if x.dim() == 4 else x
        x = published.mask_tokens(x, mask, self.mask_token, grid)
        return x if pos is None else x + pos

    def _visible_patches(self, images: Tensor, mask: PatchMask) -> Tensor:
        if not self.plain:
            return super()._visible_patches(images, mask)
        x = self.backbone.patch_embed(
            published.normalized(images, self.mean, self.std).to(self.mask_token.dtype)
        )
        grid = self._patch_grid(images)
        pos = self.family.pos_embed(grid)
        return published.visible_tokens(x if pos is None else x + pos, mask.on_grid(grid))


class ConvEncoder(ChannelStatistics):
    """The tutorial's small CNN: three 3x3 convolutions with ReLU, stride 1, on pixels in [0, 1].

    Args:
        channels: channels of the image.
        widths: output channels of the three convolutions.
        fill: what a hidden pixel becomes.
        mean, std: normalisation of the image where its pixels are not in [0, 1].

    Attributes are those of ``TimmEncoder``; the output is ``(B, H*W, width)``.
    """

    patch = stride = 1
    plain = False

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 64),
        fill: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1)
            for before, after in itertools.pairwise(sizes)
        )
        self.fill = fill
        self.width = widths[-1]
        self._keep_statistics(mean, std, self.convolutions[0].weight)

    def forward(self, images: Tensor, mask: PatchMask | Tensor) -> Tensor:
        """One token per pixel, ``(B, H*W, width)``, of images ``(B, C, H, W)``."""
        dtype = self.convolutions[0].weight.dtype
        if self.plain:
            hidden = published.on_grid(mask, *images.shape[2:])[:, None]
            pixels = published.normalized(images, self.mean, self.std).to(dtype)
            x = pixels.masked_fill(hidden, self.fill)
        else:
            x = mask_image(images, mask, self.fill, mean=self.mean, std=self.std, dtype=dtype)
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        return x.flatten(2).transpose(1, 2)

    def hidden_tokens(self, images: Tensor, mask: PatchMask | Tensor) -> None:
        """None: a convolution's neighbours are all needed."""
        return None

    def blocks(self) -> list[nn.Module]:
        """The convolutions."""
        return list(self.convolutions)

    def pooled(self, output: Tensor) -> Tensor:
        """The mean ``(B, width)`` over the pixels of what a convolution gave, after its ReLU."""
        return output.relu().mean((2, 3))

    def depths(self) -> dict[str, int]:
        """How deep each parameter lies: n in the n-th convolution."""
        return {name: int(name.split(".")[1]) + 1 for name, _ in self.named_parameters()}

    def no_weight_decay(self) -> set[str]:
        return set()


def build_encoder(
    name: str,
    *,
    img_size: tuple[int, int],
    channels: int = 3,
    mean: Sequence[float],
    std: Sequence[float],
    pixels: bool = True,
    drop_path: float = 0.0,
    **arguments: object,
) -> TimmEncoder | ConvEncoder:
    """The encoder called ``name``; see ``TimmEncoder`` for the arguments. ``"cnn"`` takes any size.

    Args:
        pixels: the CNN sees pixels in [0, 1], as published, not normalised ones.
    """
    if name == CNN:
        if drop_path:
            raise UserError("encoder 'cnn' has no residual branches: give --drop-path 0")
        try:
            if not pixels:
                arguments |= {"mean": mean, "std": std}
            return ConvEncoder(channels, **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"cannot build encoder 'cnn' with {arguments}: it takes widths, the channels of "
                "its three convolutions, as in: widths 64,128,64"
            ) from error
    return TimmEncoder(
        name,
        img_size=img_size,
        channels=channels,
        mean=mean,
        std=std,
        drop_path=drop_path,
        **arguments,
    )


def is_swin(name: str) -> bool:
    """Whether ``name`` is that of a Swin or SwinV2."""
    name = PAPER_ENCODERS.get(name, (name, {}))[0]
    return timm.is_model(name) and timm.models.is_model_in_modules(name, FAMILIES[3:])


def check_divides(what: str, unit: int, img_size: tuple[int, int]) -> None:
    """Refuse an image size that is no whole number of ``unit`` pixels, and name one that is."""
    if all(side % unit == 0 and side > 0 for side in img_size):
        return
    near = tuple(max(unit, round(side / unit) * unit) for side in img_size)
    raise UserError(
        f"image size {img_size[0]}x{img_size[1]} is not a multiple of the {what}, {unit} pixels: "
        f"use {near[0]}x{near[1]}, or change the {what}"
    )


def _unknown(name: str) -> str:
    names = [CNN, *PAPER_ENCODERS]
    for family in ("vit*", "deit*", "beit*", "swin*"):
        names += timm.list_models(family)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "names are those of timm, or 'cnn'"
    return f"unknown encoder {name!r}: {hint}"


def _wrong_family(name: str) -> str:
    return f"encoder {name!r} is of another family: simmim takes ViT, BEiT, Swin, SwinV2 and 'cnn'"
