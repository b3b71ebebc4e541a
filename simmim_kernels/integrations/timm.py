"""timm's models as encoders that see a partly hidden image."""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import Any

from torch import Tensor, nn

from simmim_kernels._numbers import to_sides
from simmim_kernels.channel_statistics import ChannelStatistics
from simmim_kernels.integrations.report import Report
from simmim_kernels.integrations.timm_families import ViT, family_of
from simmim_kernels.integrations.timm_stage import Stage, image_size_of
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._channels import Channels
from simmim_kernels.ops._check import PIXELS, has_dims, is_tensor
from simmim_kernels.ops.mask_image import mask_image


class MaskedEncoder(ChannelStatistics):
    """A timm model whose hidden patches are replaced by a learnt mask token.

        encoder = MaskedEncoder(timm.create_model("swin_tiny_patch4_window7_224"))
        head = nn.Linear(encoder.width, 3 * encoder.stride**2)
        loss = masked_linear_l1(encoder(images, mask), head.weight, head.bias, images, mask)
        backbone = encoder.undo()

    ViT (DeiT), BEiT, Swin and SwinV2 embed the visible patches alone. For any other model with a
    patch-embedding stage, hidden pixels become 0 before it, so that an overlapping stage shows none
    of them to its neighbours, and the token takes the place of the stage's hidden outputs. Called on
    its own, the model gives what it gave before: all features, `forward_intermediates` included.

    Args:
        backbone: of timm, owns its parameters as before; its classifier is not run.
        img_size: `(H, W)` in pixels; by default that of the model's patch embedding or its
            pretrained configuration.
        mean, std: normalisation of the images, one number a channel, both or neither; uint8 images
            are divided by 255 first. They keep their digits whatever the encoder is cast to.
        stage: name of the module that turns pixels into patches, where it is neither `patch_embed`
            nor `stem`.

    Attributes:
        mask_token: parameter `(1, 1, D)`, normal with deviation 0.02 cut at that.
        patch, stride: pixels a side of a patch, and of an output token.
        width: numbers in an output token.
        family: how the model runs under a mask; None for one that is run through its stage.
        report: what was replaced, what was left and why.

    Raises:
        TypeError: no timm model, or without a stage of patches.
        ValueError: outputs that form no grid over the image, a stage that was changed already,
            patches that are not square or are dropped at random.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        img_size: tuple[int, int] | None = None,
        mean: Channels = None,
        std: Channels = None,
        stage: str | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(backbone, "forward_features"):
            raise TypeError(
                f"MaskedEncoder: {type(backbone).__name__} has no forward_features; allowed: a model "
                "of timm.create_model without features_only"
            )
        if not isinstance(getattr(backbone, "patch_drop", None), nn.Identity | None):
            raise ValueError(
                f"MaskedEncoder: this {type(backbone).__name__} drops patches while it trains, and "
                "every hidden one must be predicted; build it with patch_drop_rate=0"
            )
        if stage is not None and not isinstance(stage, str):
            raise TypeError(f"stage must be the name of a module, got {type(stage).__name__}")
        img_size = None if img_size is None else to_sides("img_size", img_size)
        self.backbone = backbone
        self.report = Report(type(backbone).__name__)
        self.family = family_of(backbone) if stage is None else None
        if self.family is not None:
            self.patch, other_side = backbone.patch_embed.patch_size
            if self.patch != other_side:
                raise ValueError(
                    f"MaskedEncoder: the patches are {self.patch} x {other_side}; allowed: squares"
                )
            self.stride = self.family.stride()
            self.width, token_width = backbone.num_features, backbone.patch_embed.proj.out_channels
            self._tell_family()
        else:
            self._stage = Stage(backbone, stage, img_size or image_size_of(backbone), self.report)
            self.patch, token_width = self._stage.patch, self._stage.width
            self.stride, self.width = self._stage.out_stride, self._stage.out_width
        like = next(backbone.parameters())
        self.mask_token = nn.Parameter(like.new_empty(1, 1, token_width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self._keep_statistics(mean, std, like)

    def forward(self, images: Tensor, mask: PatchMask | Tensor) -> Tensor:
        """Tokens `(B, L, width)` in row-major order, without prefix tokens, of images
        `(B, C, H, W)`, uint8 or floating, under a mask.

        Raises:
            RuntimeError: the backbone, its `forward_features` or its patch embedding is another than
                when this encoder was made; the other methods raise it too.
        """
        self._check(images)
        if self.family is not None:
            return self.family.tokens(self._patches(images, mask), self._patch_grid(images))
        dtype = self.mask_token.dtype
        image = mask_image(images, mask, 0.0, mean=self.mean, std=self.std, dtype=dtype)
        return self._stage.tokens(image, mask, self.mask_token)

    def hidden_tokens(self, images: Tensor, mask: PatchMask | Tensor) -> Tensor | None:
        """The tokens of hidden patches alone, `(B, K, width)`, in the order of
        `mask.on_grid(...).masked` on the grid of output tokens.

        None where the last block needs all tokens or must be called (a hook), where samples may hide
        different numbers (a plain mask), or where a mask unit is smaller than an output token.
        """
        self._check(images)
        if self.family is None or not isinstance(mask, PatchMask):
            return None
        out_grid = images.shape[2] // self.stride, images.shape[3] // self.stride
        units = mask.mask.shape[1:]
        if any(side % n for side, n in zip(out_grid, units, strict=True)):
            return None
        last = self.family.last_for(out_grid)
        if last is None:
            return None
        last = partial(last, mask=mask, grid=out_grid)
        return self.family.tokens(self._patches(images, mask), self._patch_grid(images), last)

    def visible_tokens(self, images: Tensor, mask: PatchMask) -> Tensor:
        """Prefix tokens, then those of visible patches alone in ascending order, `(B, prefix + V,
        width)`: hidden patches are left out, as in MAE's encoder (He et al., 2022).

        Raises:
            TypeError: no ViT: the tokens of all others depend on their neighbours in a grid.
        """
        self._check(images)
        if not isinstance(self.family, ViT):
            raise TypeError(
                f"visible_tokens: this {type(self.backbone).__name__} needs its patches on a whole "
                "grid; allowed: a ViT"
            )
        return self.family.all_tokens(self._visible_patches(images, mask))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "backbone" and getattr(self, "_is_replica", False):
            # DataParallel's replica has a backbone of its own, and shares all else with the original.
            part = "_stage" if self.family is None else "family"
            runner = copy(getattr(self, part))
            runner.backbone = value
            setattr(self, part, runner)

    def undo(self) -> nn.Module:
        """The model as it was, with the weights that it has now. To mask it again make a new encoder."""
        self.report.undo()
        return self.backbone

    def no_weight_decay(self) -> set[str]:
        """Names of this module's parameters that weight decay must leave alone."""
        theirs = getattr(self.backbone, "no_weight_decay", set)()
        return {"mask_token"} | {f"backbone.{name}" for name in theirs}

    def _check(self, images: Tensor) -> None:
        is_tensor("images", images, PIXELS)
        has_dims("images", images, {4: "(B, C, H, W)"})
        runner = self._stage if self.family is None else self.family
        if self.backbone is not runner.backbone or not runner.fits():
            raise RuntimeError(
                f"MaskedEncoder: the {type(runner.backbone).__name__} that this encoder runs, its "
                "forward_features or its patch embedding was replaced or undone; make a new MaskedEncoder"
            )

    def _patch_grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch, images.shape[3] // self.patch

    def _patches(self, images: Tensor, mask: PatchMask | Tensor) -> Tensor:
        return self.family.patches(images, mask, self.mask_token, self.mean, self.std)

    def _visible_patches(self, images: Tensor, mask: PatchMask) -> Tensor:
        return self.family.patches(images, mask, None, self.mean, self.std)

    def _tell_family(self) -> None:
        self.report.replaced["patch_embed"] = "masked_patch_embed, in this encoder's calls"
        if self.family.why_not_last is not None:
            self.report.left["last block"] = self.family.why_not_last
        else:
            self.report.replaced["last block"] = "MaskedLastBlock, in hidden_tokens"
