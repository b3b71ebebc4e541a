"""One table of calls, several of every op, for what all ops promise (see test_contract.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import simmim_kernels as sk
from simmim_kernels.ops.place_tokens import place_tokens, take_masked_tokens
from tests.budget import assert_within_budget
from tests.ops import call_arguments as make
from tests.ops.call_arguments import (
    BYTES,
    CHANNELS,
    HALF,
    PATCH,
    STATS,
    UNIT,
    WIDE,
    WIDTH,
    Call,
    image,
    mask,
    tokens,
)

OPS = {n for n in sk.__all__ if getattr(sk, n).__module__.startswith("simmim_kernels.ops.")}
LOSS = {"leaves": ("pred",), "modules": ("masked_loss",)}
HEAD = {
    "leaves": ("tokens", "weight", "bias"),
    "modules": ("masked_linear", "place_tokens", "masked_loss"),
    "products": True,
}
CALLS: dict[str, Call] = {
    "masked_l1 tokens": Call(
        sk.masked_l1,
        make.loss(lambda b, g: tokens(b, g, dtype=torch.bfloat16), BYTES, **STATS),
        **LOSS,
    ),
    "masked_l1 yxc": Call(
        sk.masked_l1, make.loss(lambda b, g: tokens(b, g, dtype=WIDE), WIDE, order="yxc"), **LOSS
    ),
    "masked_mse image": Call(
        sk.masked_mse, make.loss(image, target_norm=sk.PatchNorm(), plain=True), **LOSS
    ),
    "masked_mse units": Call(sk.masked_mse, make.loss(make.listed, eps=0.0), **LOSS),
    "masked_smooth_l1 map": Call(
        sk.masked_smooth_l1,
        make.loss(
            lambda b, g: make.feature_map(b, g, HALF),
            reduction="none",
            beta=0.7,
            target_norm=sk.WindowNorm(5),
        ),
        **LOSS,
    ),
    "masked_smooth_l1 sum": Call(
        sk.masked_smooth_l1, make.loss(image, torch.bfloat16, reduction="sum"), **LOSS
    ),
    "masked_huber yxc": Call(
        sk.masked_huber,
        make.loss(lambda b, g: tokens(b, g, dtype=torch.bfloat16), BYTES, order="yxc", delta=1.3),
        **LOSS,
    ),
    "masked_huber small": Call(
        sk.masked_huber, make.loss(lambda b, g: tokens(b, g, dtype=HALF), delta=1e-3), **LOSS
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
            **make.head(b, g),
            "target": tokens(b, g),
            "target_norm": sk.PatchNorm(),
        },
        **HEAD,
    ),
    "masked_linear_huber": Call(
        sk.masked_linear_huber,
        lambda b, g: make.head(b, g) | {"delta": 2.0},
        **HEAD,
    ),
    "masked_linear_l1": Call(sk.masked_linear_l1, make.head, **HEAD),
    "masked_linear_mse plain": Call(
        sk.masked_linear_mse,
        lambda b, g: make.head(b, g) | {"mask": mask(b, g).mask, "order": "yxc"},
        **HEAD,
    ),
    "masked_patch_embed plain": Call(
        sk.masked_patch_embed,
        lambda b, g: (
            make.embedding(b, g)
            | {"image": image(b, g), "mask": mask(b, g).mask, "bias": None, "pos_embed": None}
        ),
        ("image", "weight", "token"),
        ("masked_patch_embed", "place_tokens"),
        products=True,
    ),
    "masked_patch_embed": Call(
        sk.masked_patch_embed,
        make.embedding,
        ("weight", "bias", "token", "pos_embed"),
        ("masked_patch_embed", "place_tokens"),
        products=True,
    ),
    "mask_tokens": Call(
        sk.mask_tokens, make.mask_tokens, ("x", "token", "pos_embed"), ("mask_tokens",)
    ),
    "mask_tokens map": Call(sk.mask_tokens, make.mask_tokens_map, ("x", "token"), ("mask_tokens",)),
    "visible_patch_embed": Call(
        sk.visible_patch_embed,
        lambda b, g: {k: v for k, v in make.embedding(b, g).items() if k != "token"},
        ("weight", "bias", "pos_embed"),
        ("masked_patch_embed", "place_tokens"),
        products=True,
    ),
    "restore_tokens": Call(
        sk.restore_tokens,
        make.visible_tokens,
        ("x", "token", "pos_embed"),
        ("place_tokens",),
    ),
    "take_masked_tokens": Call(
        take_masked_tokens,
        lambda b, g: {"x": tokens(b, g, WIDTH, HALF, 1), "mask": mask(b, g), "prefix_tokens": 1},
        ("x",),
        ("place_tokens",),
    ),
    "place_tokens": Call(place_tokens, make.rows, ("rows", "token"), ("place_tokens",)),
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
    "normalize_targets large": Call(
        sk.normalize_targets,
        lambda b, g: {"image": 1e4 * torch.randn(b, 1, 4 * g[0] + 9, 160), "window": 9},
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
    "random_mask": Call(sk.random_mask, make.from_ids(epoch=3), (), ("random_mask",)),
    "block_mask": Call(sk.block_mask, make.from_ids(), (), ("block_mask",)),
    "box_mask": Call(sk.box_mask, make.from_ids(), (), ("box_mask",)),
    "inverse_block_mask": Call(sk.inverse_block_mask, make.from_ids(), (), ("block_mask",)),
    "uniform_mask": Call(
        make.uniform_mask,
        lambda b, g: {k: v for k, v in make.from_ids()(b, g).items() if k != "ratio"},
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
    "crop_resize": Call(sk.crop_resize, make.crops, (), ("crop_resize",)),
    "crop_resize bytes": Call(
        sk.crop_resize, lambda b, g: make.crops(b, g, BYTES, size=(17, 67)), (), ("crop_resize",)
    ),
    "crop_resize listed": Call(sk.crop_resize, make.listed_crops, (), ("crop_resize",)),
    "crop_resize wide": Call(
        sk.crop_resize,
        lambda b, g: make.crops(b, g, torch.uint16, antialias=False, dtype=HALF),
        (),
        ("crop_resize",),
    ),
    "avg_dist": Call(
        make.avg_dist,
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


def in_type(dtype: torch.dtype, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the same call with `dtype` in place of every floating-point type."""

    def change(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return dtype if value.is_floating_point else value
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(change, arguments)


def check_against_the_reference(name: str, found: tuple[Tensor, ...]) -> None:
    """Hold the results of `arguments_of(name)` to those of the reference, by the error budget."""
    arguments = arguments_of(name)
    with sk.backend("reference"):
        plain = results(name, arguments)
        exact = results(name, in_type(WIDE, arguments), grad_dtype=plain[0].dtype)
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        if ours.is_floating_point():
            assert_within_budget(ours, theirs, right, name)
        else:
            assert torch.equal(ours, theirs)


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
