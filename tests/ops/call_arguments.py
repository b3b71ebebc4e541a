"""Arguments of the calls in `calls.py`, for a batch and a grid of mask units.

All sizes differ (batch, channels, grid height and width, unit, patch, width), so that two that are
confused give another shape or another result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import simmim_kernels as sk
from tests.ops.integer_images import INTEGERS, integers

STATS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
UNIT, PATCH, CHANNELS, WIDTH = 8, 4, 3, 20
HALF, BYTES, WIDE = torch.float16, torch.uint8, torch.float64


@dataclass(frozen=True)
class Call:
    """How to call a function: `make(batch, grid)` gives its arguments by name."""

    function: Callable[..., Any]
    make: Callable[[int, tuple[int, int]], dict[str, Any]]
    leaves: tuple[str, ...] = ()  # the arguments that get a gradient
    modules: tuple[str, ...] = ()  # the files whose ops it runs
    products: bool = False  # of PyTorch's: not bit for bit
    compiles: bool = True


def image(batch: int, grid: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    shape = batch, CHANNELS, grid[0] * UNIT, grid[1] * UNIT
    if dtype in INTEGERS:
        return integers(shape, dtype)
    return torch.randn(shape).to(dtype)


def tokens(batch, grid, width=CHANNELS * PATCH**2, dtype=torch.float32, prefix=0) -> Tensor:
    scale = UNIT // PATCH
    return torch.randn(batch, prefix + grid[0] * grid[1] * scale**2, width).to(dtype)


def mask(batch: int, grid: tuple[int, int]) -> sk.PatchMask:
    return sk.random_mask(batch, grid, 0.6, seed=1)


def loss(pred, target_dtype=torch.float32, plain=False, **options):
    def make(batch, grid):
        hidden = mask(batch, grid)
        arguments = {"pred": pred(batch, grid), "target": image(batch, grid, target_dtype)}
        return {**arguments, "mask": hidden.mask if plain else hidden, **options}

    return make


def listed(batch, grid):
    count = mask(batch, grid).masked.shape[1]
    return torch.randn(batch, count, CHANNELS * UNIT**2)


def feature_map(batch, grid, dtype=torch.float32):
    return torch.randn(batch, CHANNELS * PATCH**2, *(side * UNIT // PATCH for side in grid)).to(
        dtype
    )


def embedding(batch, grid):
    return {
        "image": image(batch, grid, torch.uint8),
        "weight": torch.randn(WIDTH, CHANNELS, PATCH, PATCH),
        "bias": torch.randn(WIDTH),
        "mask": mask(batch, grid),
        "token": torch.randn(WIDTH),
        "pos_embed": torch.randn(1, tokens(1, grid).shape[1], WIDTH),
        **STATS,
    }


def head(batch, grid):
    return {
        "tokens": tokens(batch, grid, WIDTH),
        "weight": torch.randn(CHANNELS * PATCH**2, WIDTH),
        "bias": torch.randn(CHANNELS * PATCH**2),
        "target": image(batch, grid),
        "mask": mask(batch, grid),
    }


def mask_tokens(batch, grid):
    return {
        "x": tokens(batch, grid, WIDTH, prefix=1),
        "mask": mask(batch, grid),
        "token": torch.randn(1, 1, WIDTH),
        "pos_embed": tokens(1, grid, WIDTH, prefix=1),
        "prefix_tokens": 1,
    }


def mask_tokens_map(batch, grid):
    x = torch.randn(batch, grid[0] * 2, grid[1] * 2, WIDTH + 1).bfloat16()
    return {"x": x, "mask": mask(batch, grid).mask, "token": torch.randn(WIDTH + 1)}


def from_ids(**options):
    return lambda batch, grid: {
        "n_or_ids": torch.arange(batch) * 7919 - 3,
        "grid": grid,
        "ratio": 0.4,
        "seed": 5,
        **options,
    }


def rows(batch, grid):
    hidden = mask(batch, grid)
    return {
        "rows": torch.randn(hidden.on_grid(tuple(2 * s for s in grid)).visible.numel(), WIDTH),
        "mask": hidden,
        "token": torch.randn(WIDTH),
        "grid": tuple(2 * side for side in grid),
    }


def visible_tokens(batch, grid):
    hidden, fine = (
        mask(batch, grid).on_grid(tuple(2 * side for side in grid)),
        4 * grid[0] * grid[1],
    )
    return {
        "x": torch.randn(batch, 1 + hidden.visible.shape[1], WIDTH),
        "mask": hidden,
        "token": torch.randn(1, 1, WIDTH),
        "pos_embed": torch.randn(1, 1 + fine, WIDTH),
        "prefix_tokens": 1,
    }


def crops(batch, grid, element=torch.float32, **options):
    """A batch of images with a box in each. Of odd sides made odd and larger no number is half a level,
    which every backend would round to its own side."""
    images = image(batch, grid, element)
    height, width = images.shape[2:]
    boxes = [
        (k % 3, k % 2, height - 3 - 2 * (k % 3), width - 1 - 2 * (k % 3)) for k in range(batch)
    ]
    flip = torch.arange(batch) % 2 == 0
    return {
        "images": images,
        "boxes": torch.tensor(boxes),
        "size": (11, 9),
        "flip": flip,
        **options,
    }


def listed_crops(batch, grid):
    """The same of images of different sizes and strides."""
    given = crops(batch, grid, torch.uint8, interpolation="bicubic", size=(20, 37))
    images = [one[:, : one.shape[1] - k % 3] for k, one in enumerate(given["images"])]
    return given | {"images": [one.mT.contiguous().mT for one in images]}


def uniform_mask(n_or_ids, grid, seed):
    return sk.uniform_mask(n_or_ids, (2 * grid[0], 2 * grid[1]), seed=seed)


def avg_dist(mask, unit):
    return torch.tensor(sk.avg_dist(mask, unit), dtype=torch.float64, device="cpu")
