"""One table of calls, several of every op, for what all ops promise (see test_contract.py).

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
from simmim_kernels.ops.place_tokens import place_tokens, take_masked_tokens
from tests.ops.integer_images import INTEGERS, integers

STATS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
UNIT, PATCH, CHANNELS, WIDTH = 8, 4, 3, 20


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


def _loss(pred, target_dtype=torch.float32, plain=False, **options):
    def make(batch, grid):
        hidden = mask(batch, grid)
        arguments = {"pred": pred(batch, grid), "target": image(batch, grid, target_dtype)}
        return {**arguments, "mask": hidden.mask if plain else hidden, **options}

    return make


def _listed(batch, grid):
    count = mask(batch, grid).masked.shape[1]
    return torch.randn(batch, count, CHANNELS * UNIT**2)


def _map(batch, grid, dtype=torch.float32):
    return torch.randn(batch, CHANNELS * PATCH**2, *(side * UNIT // PATCH for side in grid)).to(
        dtype
    )


def _embedding(batch, grid):
    return {
        "image": image(batch, grid, torch.uint8),
        "weight": torch.randn(WIDTH, CHANNELS, PATCH, PATCH),
        "bias": torch.randn(WIDTH),
        "mask": mask(batch, grid),
        "token": torch.randn(WIDTH),
        "pos_embed": torch.randn(1, tokens(1, grid).shape[1], WIDTH),
        **STATS,
    }


def _head(batch, grid):
    return {
        "tokens": tokens(batch, grid, WIDTH),
        "weight": torch.randn(CHANNELS * PATCH**2, WIDTH),
        "bias": torch.randn(CHANNELS * PATCH**2),
        "target": image(batch, grid),
        "mask": mask(batch, grid),
    }


def _mask_tokens(batch, grid):
    return {
        "x": tokens(batch, grid, WIDTH, prefix=1),
        "mask": mask(batch, grid),
        "token": torch.randn(1, 1, WIDTH),
        "pos_embed": tokens(1, grid, WIDTH, prefix=1),
        "prefix_tokens": 1,
    }


def _mask_tokens_map(batch, grid):
    x = torch.randn(batch, grid[0] * 2, grid[1] * 2, WIDTH + 1).bfloat16()
    return {"x": x, "mask": mask(batch, grid).mask, "token": torch.randn(WIDTH + 1)}


def _ids(**options):
    return lambda batch, grid: {
        "n_or_ids": torch.arange(batch) * 7919 - 3,
        "grid": grid,
        "ratio": 0.4,
        "seed": 5,
        **options,
    }


def _rows(batch, grid):
    hidden = mask(batch, grid)
    return {
        "rows": torch.randn(hidden.on_grid(tuple(2 * s for s in grid)).visible.numel(), WIDTH),
        "mask": hidden,
        "token": torch.randn(WIDTH),
        "grid": tuple(2 * side for side in grid),
    }


def _visible_tokens(batch, grid):
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


def _crops(batch, grid, element=torch.float32, **options):
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


def _listed_crops(batch, grid):
    """The same of images of different sizes and strides."""
    given = _crops(batch, grid, torch.uint8, interpolation="bicubic", size=(20, 37))
    images = [one[:, : one.shape[1] - k % 3] for k, one in enumerate(given["images"])]
    return given | {"images": [one.mT.contiguous().mT for one in images]}


def _uniform_mask(n_or_ids, grid, seed):
    return sk.uniform_mask(n_or_ids, (2 * grid[0], 2 * grid[1]), seed=seed)


def _avg_dist(mask, unit):
    return torch.tensor(sk.avg_dist(mask, unit), dtype=torch.float64, device="cpu")


HALF, BYTES, WIDE = torch.float16, torch.uint8, torch.float64
LOSS = {"leaves": ("pred",), "modules": ("masked_loss",)}
CALLS: dict[str, Call] = {
    "masked_l1 tokens": Call(
        sk.masked_l1,
        _loss(lambda b, g: tokens(b, g, dtype=torch.bfloat16), BYTES, **STATS),
        **LOSS,
    ),
    "masked_l1 yxc": Call(
        sk.masked_l1, _loss(lambda b, g: tokens(b, g, dtype=WIDE), WIDE, order="yxc"), **LOSS
    ),
    "masked_mse image": Call(
        sk.masked_mse, _loss(image, target_norm=sk.PatchNorm(), plain=True), **LOSS
    ),
    "masked_mse units": Call(sk.masked_mse, _loss(_listed, eps=0.0), **LOSS),
    "masked_smooth_l1 map": Call(
        sk.masked_smooth_l1,
        _loss(
            lambda b, g: _map(b, g, HALF),
            reduction="none",
            beta=0.7,
            target_norm=sk.WindowNorm(5),
        ),
        **LOSS,
    ),
    "masked_smooth_l1 sum": Call(
        sk.masked_smooth_l1, _loss(image, torch.bfloat16, reduction="sum"), **LOSS
    ),
    "masked_huber yxc": Call(
        sk.masked_huber,
        _loss(lambda b, g: tokens(b, g, dtype=torch.bfloat16), BYTES, order="yxc", delta=1.3),
        **LOSS,
    ),
    "masked_huber small": Call(
        sk.masked_huber, _loss(lambda b, g: tokens(b, g, dtype=HALF), delta=1e-3), **LOSS
    ),
    "masked_l1 target tokens": Call(
        sk.masked_l1,
        lambda b, g: {
            "pred": tokens(b, g, 11, torch.bfloat16),
            "target": tokens(b, g, 11),
            "mask": mask(b, g),
        },
        **LOSS,
    ),
    "masked_mse listed target tokens": Call(
        sk.masked_mse,
        lambda b, g: {
            "pred": torch.randn(b, mask(b, g).masked.shape[1], WIDTH + 1),
            "target": torch.randn(b, g[0] * g[1], WIDTH + 1).bfloat16(),
            "mask": mask(b, g),
            "target_norm": sk.PatchNorm(),
        },
        **LOSS,
    ),
    "masked_linear_smooth_l1 target tokens": Call(
        sk.masked_linear_smooth_l1,
        lambda b, g: {
            **_head(b, g),
            "target": tokens(b, g),
            "target_norm": sk.PatchNorm(),
        },
        ("tokens", "weight", "bias"),
        ("masked_linear", "place_tokens", "masked_loss"),
        products=True,
    ),
    "masked_linear_huber": Call(
        sk.masked_linear_huber,
        lambda b, g: _head(b, g) | {"delta": 2.0},
        ("tokens", "weight", "bias"),
        ("masked_linear", "place_tokens", "masked_loss"),
        products=True,
    ),
    "masked_linear_l1": Call(
        sk.masked_linear_l1,
        _head,
        ("tokens", "weight", "bias"),
        ("masked_linear", "place_tokens", "masked_loss"),
        products=True,
    ),
    "masked_linear_mse plain": Call(
        sk.masked_linear_mse,
        lambda b, g: _head(b, g) | {"mask": mask(b, g).mask, "order": "yxc"},
        ("tokens", "weight", "bias"),
        ("masked_linear", "place_tokens", "masked_loss"),
        products=True,
    ),
    "masked_patch_embed plain": Call(
        sk.masked_patch_embed,
        lambda b, g: _embedding(b, g) | {"mask": mask(b, g).mask, "bias": None, "pos_embed": None},
        ("weight", "token"),
        ("masked_patch_embed", "place_tokens"),
        products=True,
    ),
    "masked_patch_embed": Call(
        sk.masked_patch_embed,
        _embedding,
        ("weight", "bias", "token", "pos_embed"),
        ("masked_patch_embed", "place_tokens"),
        products=True,
    ),
    "mask_tokens": Call(
        sk.mask_tokens, _mask_tokens, ("x", "token", "pos_embed"), ("mask_tokens",)
    ),
    "mask_tokens map": Call(sk.mask_tokens, _mask_tokens_map, ("x", "token"), ("mask_tokens",)),
    "visible_patch_embed": Call(
        sk.visible_patch_embed,
        lambda b, g: {k: v for k, v in _embedding(b, g).items() if k != "token"},
        ("weight", "bias", "pos_embed"),
        ("masked_patch_embed", "place_tokens"),
        products=True,
    ),
    "restore_tokens": Call(
        sk.restore_tokens,
        _visible_tokens,
        ("x", "token", "pos_embed"),
        ("place_tokens",),
    ),
    "take_masked_tokens": Call(
        take_masked_tokens,
        lambda b, g: {"x": tokens(b, g, WIDTH, HALF, 1), "mask": mask(b, g), "prefix_tokens": 1},
        ("x",),
        ("place_tokens",),
    ),
    "place_tokens": Call(place_tokens, _rows, ("rows", "token"), ("place_tokens",)),
    "mask_image": Call(
        sk.mask_image,
        lambda b, g: {
            "image": image(b, g),
            "mask": mask(b, g),
            "fill": torch.randn(CHANNELS),
        },
        ("image", "fill"),
        ("mask_image",),
    ),
    "mask_image bytes": Call(
        sk.mask_image,
        lambda b, g: {
            "image": image(b, g, BYTES),
            "mask": mask(b, g).mask,
            "fill": 0.5,
            "dtype": torch.bfloat16,
            **STATS,
        },
        (),
        ("mask_image",),
    ),
    "normalize_targets": Call(
        sk.normalize_targets,
        lambda b, g: {"image": image(b, g), "window": 5},
        (),
        ("normalize_targets",),
    ),
    "normalize_targets bytes": Call(
        sk.normalize_targets,
        lambda b, g: {"image": image(b, g, BYTES), "window": 47, **STATS},
        (),
        ("normalize_targets",),
    ),
    "normalize_patches": Call(
        sk.normalize_patches,
        lambda b, g: {"image": image(b, g, torch.bfloat16), "patch": PATCH},
        (),
        ("normalize_patches",),
    ),
    "normalize_patches bytes": Call(
        sk.normalize_patches,
        lambda b, g: {"image": image(b, g, BYTES), "patch": 2, **STATS},
        (),
        ("normalize_patches",),
    ),
    "random_mask": Call(sk.random_mask, _ids(epoch=3), (), ("random_mask",)),
    "block_mask": Call(sk.block_mask, _ids(), (), ("block_mask",)),
    "box_mask": Call(sk.box_mask, _ids(), (), ("box_mask",)),
    "inverse_block_mask": Call(sk.inverse_block_mask, _ids(), (), ("block_mask",)),
    "uniform_mask": Call(
        _uniform_mask,
        lambda b, g: {k: v for k, v in _ids()(b, g).items() if k != "ratio"},
        (),
        ("uniform_mask",),
    ),
    "random_crops": Call(
        sk.random_crops,
        lambda batch, grid: {
            "ids": torch.arange(batch) * 7919 - 3,
            "sizes": torch.arange(2 * batch).view(-1, 2) * 31 % 200 + 1,
            "size": grid,
            "scale": (0.1, 0.9),
            "ratio": (0.5, 2.0),
            "seed": 5,
            "epoch": 3,
        },
        (),
        ("random_crops",),
    ),
    "crop_resize": Call(sk.crop_resize, _crops, (), ("crop_resize",)),
    "crop_resize bytes": Call(
        sk.crop_resize, lambda b, g: _crops(b, g, BYTES, size=(17, 67)), (), ("crop_resize",)
    ),
    "crop_resize listed": Call(sk.crop_resize, _listed_crops, (), ("crop_resize",)),
    "crop_resize wide": Call(
        sk.crop_resize,
        lambda b, g: _crops(b, g, torch.uint16, antialias=False, dtype=HALF),
        (),
        ("crop_resize",),
    ),
    "avg_dist": Call(
        _avg_dist,
        lambda b, g: {"mask": mask(b, g).mask, "unit": UNIT},
        (),
        ("avg_dist",),
        compiles=False,
    ),
}


def arguments_of(name: str, batch: int = 2, grid: tuple[int, int] = (2, 3)) -> dict[str, Any]:
    """The same arguments at every call, in every process."""
    torch.manual_seed(11)
    return CALLS[name].make(batch, grid)


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def results(
    name: str, arguments: dict[str, Any], function=None, grad_dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """What a call returns, then the gradients of its leaves for a fixed gradient of each output,
    rounded to `grad_dtype` (by default its own type)."""
    call = CALLS[name]
    leaves = {key: arguments[key].detach().requires_grad_() for key in call.leaves}
    out = outputs((function or call.function)(**arguments | leaves))
    if not leaves:
        return out
    torch.manual_seed(12)
    weights = torch.randn(out[0].shape).to(grad_dtype or out[0].dtype).to(out[0].dtype)
    return (
        *(tensor.detach() for tensor in out),
        *torch.autograd.grad(out[0], tuple(leaves.values()), weights),
    )
