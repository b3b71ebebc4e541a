"""Random boxes: the Inception crop, ten draws and then the central box."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simmim_kernels.backends._crops import CROP_ATTEMPTS, EXP_TERMS, WHOLE, WORD, check_sizes
from simmim_kernels.backends._seed import CROP_STREAM, resolve_seed
from simmim_kernels.backends.reference._philox import draw, uniform


def _exp(x: Tensor) -> Tensor:
    part, value = x * (1 / 256), torch.zeros_like(x)
    for term in EXP_TERMS:
        value = value * part + term
    for _ in range(8):
        value = value * value
    return value


def _whole(x: Tensor) -> Tensor:
    return (x + WHOLE) - WHOLE


def random_crops(
    ids: Tensor,
    sizes: Tensor,
    least_scale: float,
    most_scale: float,
    least_ratio: float,
    most_ratio: float,
    flip: float,
    seed: int | None,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    if sizes.device.type == "cpu":
        check_sizes(sizes)
    rows, columns = sizes.clamp(1, (1 << 31) - 1).unbind(1)
    height, width = rows.double(), columns.double()
    blocks = torch.arange(CROP_STREAM, CROP_STREAM + CROP_ATTEMPTS + 1, device=ids.device)
    words = draw(ids, blocks, resolve_seed(seed, ids.device), epoch).view(-1, CROP_ATTEMPTS + 1, 4)

    ratio = width / height
    box_h = torch.where(ratio < least_ratio, _whole(width / least_ratio), height)
    box_w = torch.where(ratio > most_ratio, _whole(height * most_ratio), width)
    box_h, box_w = (side.clamp(min=1).long() for side in (box_h, box_w))
    top, left = (rows - box_h) // 2, (columns - box_w) // 2
    span = math.log(most_ratio / least_ratio)
    for attempt in reversed(range(CROP_ATTEMPTS)):
        first, second, third, fourth = words[:, attempt].unbind(1)
        area = height * width * (least_scale + first.double() * WORD * (most_scale - least_scale))
        aspect = least_ratio * _exp(second.double() * WORD * span)
        w, h = _whole(torch.sqrt(area * aspect)), _whole(torch.sqrt(area / aspect))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        w, h = (torch.where(fits, side, 1).long() for side in (w, h))
        box_h, box_w = torch.where(fits, h, box_h), torch.where(fits, w, box_w)
        top = torch.where(fits, uniform(third, rows - h + 1), top)
        left = torch.where(fits, uniform(fourth, columns - w + 1), left)
    flips = words[:, CROP_ATTEMPTS, 0].double() * WORD < flip
    return torch.stack((top, left, box_h, box_w), 1), flips
