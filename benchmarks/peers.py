"""What a user would run without this library: the published arithmetic in plain PyTorch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PIXEL_LOSS = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


def pixel_mask(mask: Tensor, unit: int) -> Tensor:
    """`(B, gh, gw)` -> `(B, 1, H, W)`, by two `repeat_interleave` as published."""
    return mask.repeat_interleave(unit, 1).repeat_interleave(unit, 2).unsqueeze(1).contiguous()


def masked_loss(pred: Tensor, target: Tensor, mask: Tensor, unit: int, loss: str) -> Tensor:
    """The published loss of a full-size prediction; `mask` is the int64 one of the generator."""
    pixels = pixel_mask(mask, unit)
    difference = PIXEL_LOSS[loss](pred, target, reduction="none")
    return (difference * pixels).sum() / (pixels.sum() + 1e-5) / target.shape[1]


def tokens_to_image(tokens: Tensor, channels: int, stride: int) -> Tensor:
    """Head output `(B, L, C*p*p)` to the full-size prediction, through PixelShuffle."""
    batch, length, width = tokens.shape
    side = int(length**0.5)
    return F.pixel_shuffle(tokens.transpose(1, 2).reshape(batch, width, side, side), stride)


def mask_tokens(x: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """The published substitution: multiply by the weight and its complement."""
    weight = mask.flatten(1).unsqueeze(-1).type_as(token)
    return x * (1.0 - weight) + token * weight


def mask_tokens_where(x: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """The best rewrite in plain PyTorch: one `where`, in the promoted type."""
    dtype = torch.promote_types(x.dtype, token.dtype)
    return torch.where(mask.flatten(1).unsqueeze(-1).bool(), token.to(dtype), x.to(dtype))


def mask_image(image: Tensor, mask: Tensor, unit: int, mean: Tensor, std: Tensor) -> Tensor:
    """A uint8 image normalised, then zero where masked."""
    pixels = (image.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return pixels.masked_fill(pixel_mask(mask, unit), 0.0)


def random_mask(batch: int, grid: int, ratio: float) -> Tensor:
    """The published NumPy generator, a permutation a sample, collated into one tensor.

    The mask stays on the grid of mask units, as ours does.
    """
    units = grid * grid
    count = int(np.ceil(units * ratio))
    masks = []
    for _ in range(batch):
        chosen = np.random.permutation(units)[:count]
        mask = np.zeros(units, dtype=int)
        mask[chosen] = 1
        masks.append(torch.from_numpy(mask.reshape(grid, grid)))
    return torch.stack(masks)
