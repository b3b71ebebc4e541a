"""The published arithmetic in plain PyTorch, which ``--plain`` runs in place of the kernels.

Every patch is embedded, then replaced; every token is predicted, shuffled to an image, and the loss
of every pixel is multiplied by the mask (SimMIM, Xie et al., CVPR 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from simmim_kernels import PatchMask, PatchNorm, WindowNorm

LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


def normalized(images: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Float pixels: ``uint8`` divided by 255, then normalised where ``mean`` is given."""
    pixels = images.to(torch.float32 if mean is None else mean.dtype)
    pixels = pixels / 255 if images.dtype == torch.uint8 else pixels
    return pixels if mean is None else (pixels - mean[:, None, None]) / std[:, None, None]


def local_statistics(
    pixels: Tensor, norm: WindowNorm | PatchNorm, patch: int
) -> tuple[Tensor, Tensor]:
    """What ``norm`` takes off every pixel and what it divides by, both broadcasting to ``pixels``.

    For ``WindowNorm`` three poolings over the square around each pixel, as published with SwinV2;
    for ``PatchNorm`` mean and deviation of each patch over its pixels and channels, as in MAE.
    """
    if isinstance(norm, WindowNorm):
        window = {"kernel_size": norm.window, "stride": 1, "padding": norm.window // 2}
        count = F.avg_pool2d(torch.ones_like(pixels), **window) * norm.window**2
        mean = F.avg_pool2d(pixels, **window, count_include_pad=False)
        square = F.avg_pool2d(pixels * pixels, **window, count_include_pad=False)
        variance = ((square - mean * mean) * (count / (count - 1))).clamp_min(0)
        return mean, (variance + norm.eps).sqrt()
    batch, channels, height, width = pixels.shape
    patches = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    variance, mean = torch.var_mean(patches, (1, 3, 5), keepdim=True)
    deviation = (variance + norm.eps).sqrt()
    return tuple(value.expand_as(patches).reshape(pixels.shape) for value in (mean, deviation))


def on_grid(mask: PatchMask | Tensor, height: int, width: int) -> Tensor:
    """The mask as ``bool (B, height, width)``, a finer grid."""
    units = mask.mask if isinstance(mask, PatchMask) else mask
    rows = units.repeat_interleave(height // units.shape[1], 1)
    return rows.repeat_interleave(width // units.shape[2], 2)


def mask_tokens(
    x: Tensor, mask: PatchMask | Tensor, token: Tensor, grid: tuple[int, int]
) -> Tensor:
    """``x * (1 - w) + token * w`` for tokens ``(B, h*w, D)``."""
    weight = on_grid(mask, *grid).flatten(1)[..., None].type_as(token)
    return x * (1 - weight) + token * weight


def visible_tokens(x: Tensor, mask: PatchMask) -> Tensor:
    """Those of tokens ``(B, N, D)`` that ``mask`` leaves visible."""
    return x.gather(1, mask.visible.long()[..., None].expand(-1, -1, x.shape[2]))


def restore_tokens(x: Tensor, mask: PatchMask, token: Tensor) -> Tensor:
    """Visible tokens ``(B, V, D)`` in their places among ``(B, N, D)``, the mask token elsewhere: MAE
    appends the mask tokens and brings all into order (He et al., 2022)."""
    x = torch.cat((x, token.expand(*mask.masked.shape, -1)), 1)
    order = torch.cat((mask.visible, mask.masked), 1).argsort(1)
    return x.gather(1, order[..., None].expand_as(x))


def masked_loss(
    prediction: Tensor,
    target: Tensor,
    mask: PatchMask | Tensor,
    loss: str,
    reduction: str = "mean",
    eps: float = 1e-5,
) -> Tensor:
    """The loss of full-size images: the sum over hidden pixels by their number, to which ``eps`` is
    added, and the channels.

    ``reduction`` is ``"mean"``, ``"sum"``, which does not divide, or ``"none"``: one value an image.
    """
    weight = on_grid(mask, *target.shape[2:])[:, None].to(target.dtype)
    if prediction.dtype != torch.float64:
        prediction = prediction.float()
    target = target.to(prediction.dtype)  # before PyTorch 2.13 mse_loss has no gradient otherwise
    pixels = LOSSES[loss](prediction, target, reduction="none") * weight
    if reduction == "sum":
        return pixels.sum()
    axes = {"mean": (0, 1, 2, 3), "none": (1, 2, 3)}[reduction]
    # where nothing is hidden, as where nothing holds data, the loss is 0
    return pixels.sum(axes) / (weight.sum(axes) + eps).clamp_min(1e-12) / target.shape[1]
