"""timm's models as encoders that see a partly hidden image."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simmim_kernels.channel_statistics import ChannelStatistics
from simmim_kernels.integrations.instance import is_changed
from simmim_kernels.integrations.report import Report
from simmim_kernels.integrations.timm_families import ViT, family_of
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._channels import Channels
from simmim_kernels.ops.mask_image import mask_image
from simmim_kernels.ops.mask_tokens import mask_tokens

_STAGES = ("patch_embed", "stem")


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
            self._stage = _Stage(backbone, stage, img_size or _image_size(backbone), self.report)
            self.patch, token_width = self._stage.patch, self._stage.width
            self.stride, self.width = self._stage.out_stride, self._stage.out_width
        like = next(backbone.parameters())
        self.mask_token = nn.Parameter(like.new_empty(1, 1, token_width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self._keep_statistics(mean, std, like)

    def forward(self, images: Tensor, mask: PatchMask | Tensor) -> Tensor:
        """Tokens `(B, L, width)` in row-major order, without prefix tokens, of images
        `(B, C, H, W)`, uint8 or floating, under a mask."""
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
        """The model as it was, with the weights that it has now. The encoder is of no use then."""
        self.report.undo()
        return self.backbone

    def no_weight_decay(self) -> set[str]:
        """Names of this module's parameters that weight decay must leave alone."""
        theirs = getattr(self.backbone, "no_weight_decay", set)()
        return {"mask_token"} | {f"backbone.{name}" for name in theirs}

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


class _Masking(threading.local):
    """What a thread that runs `_Stage.tokens` puts into the stage's output: mask, token and layout."""

    now: tuple[PatchMask | Tensor, Tensor, str] | None = None


_MASKING = _Masking()


class _Stage:
    """The stage of a model that turns pixels into patches, with the token put into its output.

    Its forward is changed on the instance, and is the class's own but while `tokens` runs.
    """

    def __init__(
        self, backbone: nn.Module, name: str | None, img_size: tuple[int, int], report: Report
    ) -> None:
        cls = type(backbone).__name__
        names = _STAGES if name is None else (name,)
        modules = dict(backbone.named_modules())
        found = next((n for n in names if isinstance(modules.get(n), nn.Module)), None)
        if found is None:
            raise TypeError(
                f"MaskedEncoder: {cls} has no {' or '.join(names)}; {_advice(backbone)}"
            )
        module = modules[found]
        if not _convolves(module):
            raise TypeError(
                f"MaskedEncoder: {found} of {cls} has no convolution that turns pixels into patches; "
                f"{_advice(backbone)}"
            )
        if is_changed(module):
            raise ValueError(f"MaskedEncoder: {found} of this {cls} was changed already: undo that")
        self.backbone = backbone
        self.prefix = getattr(backbone, "num_prefix_tokens", 0)
        self._learn_shapes(module, found, img_size)
        report._replace_forward(module, _substituting)
        report.replaced[found] = "mask_tokens on its output, in this encoder's calls"
        report.left["patches"] = "all are embedded: this family's stage is run as it is"

    def _learn_shapes(self, module: nn.Module, name: str, img_size: tuple[int, int]) -> None:
        """Run the model on zeros, and read from what comes how its stage and output are laid out."""
        seen: list[Tensor] = []
        hook = module.register_forward_hook(lambda _, __, out: seen.append(_first(out)))
        like = next(self.backbone.parameters())
        channels = next(m for m in module.modules() if isinstance(m, nn.Conv2d)).in_channels
        training = self.backbone.training
        try:
            with torch.no_grad():
                zeros = like.new_zeros(1, channels, *img_size)
                out = self.backbone.eval().forward_features(zeros)
        finally:
            hook.remove()
            self.backbone.train(training)
        where = f"MaskedEncoder: {type(self.backbone).__name__}"
        if not seen:
            raise ValueError(
                f"{where} does not call its {name} as one module; pass stage=, the name of the "
                "module that turns pixels into patches"
            )
        self.layout, self.patch, self.width = _layout(f"{where}.{name}", seen[0], img_size, 0)
        self.out_layout, self.out_stride, self.out_width = _layout(
            where, _first(out), img_size, self.prefix
        )

    def tokens(self, image: Tensor, mask: PatchMask | Tensor, token: Tensor) -> Tensor:
        before, _MASKING.now = _MASKING.now, (mask, token, self.layout)
        try:
            x = _first(self.backbone.forward_features(image))
        finally:
            _MASKING.now = before
        if self.out_layout == "NCHW":
            return x.flatten(2).transpose(1, 2)
        return x[:, self.prefix :] if x.dim() == 3 else x.flatten(1, 2)


def _substituting(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """The stage's forward, with the token in its output while there is a mask."""

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = theirs(module, *args, **kwargs)
        if _MASKING.now is None:
            return out
        mask, token, layout = _MASKING.now
        x = _first(out)
        if layout == "NCHW":
            x = mask_tokens(x.permute(0, 2, 3, 1), mask, token).permute(0, 3, 1, 2)
        else:
            x = mask_tokens(x, mask, token)
        return (x, *out[1:]) if isinstance(out, tuple) else x

    return forward


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) for m in module.modules())


def _advice(backbone: nn.Module) -> str:
    """What to do about a model whose stage of patches was not found."""
    stages = [name for name, module in backbone.named_children() if _convolves(module)]
    if stages:
        return (
            "pass stage=, the name of the module whose convolutions turn pixels into patches; this "
            f"model has convolutions in {', '.join(stages)}"
        )
    return (
        "this model embeds patches without a convolution, which is not supported; use one that does, "
        "as the ViT of a fixed size with the same weights (vit_base_patch16_224)"
    )


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple | list) else out


def _image_size(backbone: nn.Module) -> tuple[int, int]:
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    size = size or getattr(backbone, "pretrained_cfg", {}).get("input_size", (0, 224, 224))[1:]
    return (size, size) if isinstance(size, int) else tuple(size)


def _layout(what: str, x: Tensor, img_size: tuple[int, int], prefix: int) -> tuple[str, int, int]:
    """How a map or a row of tokens lies over an image: its layout, pixels a token, numbers a token."""
    height, width = img_size
    if x.dim() == 3:
        tokens = max(x.shape[1] - prefix, 1)
        side = math.isqrt(height * width // tokens)
        if side and (height // side) * (width // side) == tokens:
            return "NLC", side, x.shape[2]
    elif x.dim() == 4:
        for layout, (h, w), channels in (
            ("NCHW", x.shape[2:], x.shape[1]),
            ("NHWC", x.shape[1:3], x.shape[3]),
        ):
            if height % h == width % w == 0 and height // h == width // w:
                return layout, height // h, channels
    raise ValueError(
        f"{what} gives {tuple(x.shape)} for an image of {height} x {width}, which is no grid of "
        "square tokens; pass img_size="
    )
