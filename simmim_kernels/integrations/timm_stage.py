"""The stage of any timm model that turns pixels into patches, with the mask token in its output."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from simmim_kernels.integrations.instance import is_changed
from simmim_kernels.integrations.report import Report
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops.mask_tokens import mask_tokens

_STAGES = ("patch_embed", "stem")


class _Masking(threading.local):
    """What a thread that runs `Stage.tokens` puts into the stage's output: mask, token and layout."""

    now: tuple[PatchMask | Tensor, Tensor, str] | None = None


_MASKING = _Masking()


class Stage:
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
        self.backbone, self.name = backbone, found
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

    def fits(self) -> bool:
        """Whether the model's stage is the one whose forward was changed."""
        return is_changed(self.backbone.get_submodule(self.name))

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


def image_size_of(backbone: nn.Module) -> tuple[int, int]:
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
