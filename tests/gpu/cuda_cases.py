"""Calls of every op with its gradients on CUDA tensors, for what only a GPU can show."""

from __future__ import annotations

from collections.abc import Callable

import torch

import simmim_kernels as sk
from simmim_kernels import backends
from simmim_kernels.backends._loss_spec import KINDS
from tests.ops.loss_cases import numbers_of

NAMES = ("triton", "cuda")
STATS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def missing(name: str, modules: tuple[str, ...]) -> str | None:
    """Why backend `name` can't serve all of `modules` on a GPU; None where it can."""
    reasons = (backends.why_not(name, module, "cuda") for module in modules)
    return next((reason for reason in reasons if reason is not None), None)


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)


def _with_gradients(out: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (out, *torch.autograd.grad(out, leaves, torch.ones_like(out)))


def _image(batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, (batch, 3, 112, 112), dtype=dtype, device="cuda")
    return torch.randn(batch, 3, 112, 112, device="cuda", dtype=dtype)


def _ids(batch: int) -> torch.Tensor:
    return torch.arange(batch, device="cuda")


def _mask(ids: torch.Tensor) -> sk.PatchMask:
    return sk.random_mask(ids, (7, 7), 0.6, seed=3)


def _mask_tokens(x, token, ids):
    out = sk.mask_tokens(x, _mask(ids), token, prefix_tokens=1)
    return _with_gradients(out, x, token)


def _loss(kind: str, **options) -> Callable:
    function = getattr(sk, f"masked_{kind}")

    def run(pred, target, ids):
        stats = STATS if target.dtype == torch.uint8 else {}
        return _with_gradients(function(pred, target, _mask(ids), **options, **stats), pred)

    return run


def _scaled_loss(pred, target, ids):
    losses = sk.masked_l1(pred, target, _mask(ids), reduction="none")
    return _with_gradients(losses.mean() + losses[0], pred)


def _mask_image(image, fill, ids):
    out = sk.mask_image(image, _mask(ids), fill, **STATS, dtype=torch.float32)
    return _with_gradients(out, fill)


def _patch_embed(image, weight, token, ids):
    mask = _mask(ids)
    out = sk.masked_patch_embed(image, weight, None, mask, token, **STATS)
    return _with_gradients(out, weight, token)


def _linear(tokens, weight, target, ids):
    loss = sk.masked_linear_mse(tokens, weight, None, target, _mask(ids))
    return _with_gradients(loss, tokens, weight)


def _crops(images, ids):
    boxes, flips = sk.random_crops(ids, (112, 112), (64, 96), (0.2, 1.0), (0.5, 2.0), seed=3)
    return sk.crop_resize(images, boxes, (64, 96), flip=flips), boxes, flips


# Name: the modules that it needs, what makes its tensors for a batch, and the call.
CASES: dict[str, tuple[tuple[str, ...], Callable, Callable]] = {
    "random_mask": (("random_mask",), lambda b: (_ids(b),), _mask),
    **{
        name: (
            (name,),
            lambda b: (_ids(b),),
            lambda ids, name=name: getattr(sk, name)(ids, (14, 14), 0.75, seed=3),
        )
        for name in ("block_mask", "box_mask", "uniform_mask")
    },
    "crops": (
        ("random_crops", "crop_resize"),
        lambda b: (_image(b, torch.uint8), _ids(b)),
        _crops,
    ),
    "mask_tokens": (
        ("random_mask", "mask_tokens"),
        lambda b: (_leaf(b, 197, 96, dtype=torch.bfloat16), _leaf(96), _ids(b)),
        _mask_tokens,
    ),
    "loss of tokens": (
        ("random_mask", "masked_loss"),
        lambda b: (_leaf(b, 49, 768, dtype=torch.bfloat16), _image(b), _ids(b)),
        _loss("l1"),
    ),
    "loss of an image": (
        ("random_mask", "masked_loss"),
        lambda b: (_leaf(b, 3, 112, 112), _image(b, torch.uint8), _ids(b)),
        _loss("smooth_l1", reduction="none"),
    ),
    "loss of a map": (
        ("random_mask", "masked_loss"),
        lambda b: (_leaf(b, 768, 7, 7), _image(b), _ids(b)),
        _loss("mse", reduction="sum"),
    ),
    **{
        f"loss of tokens, {kind}": (
            ("random_mask", "masked_loss"),
            lambda b: (_leaf(b, 49, 768, dtype=torch.float16), _image(b), _ids(b)),
            _loss(kind, **numbers_of(kind, 2.0)),
        )
        for kind in KINDS
    },
    "loss of each sample, scaled": (
        ("random_mask", "masked_loss"),
        lambda b: (_leaf(b, 49, 768, dtype=torch.float16), _image(b), _ids(b)),
        _scaled_loss,
    ),
    "loss of a window target": (
        ("random_mask", "masked_loss"),
        lambda b: (_leaf(b, 49, 768), _image(b, torch.uint8), _ids(b)),
        _loss("l1", target_norm=sk.WindowNorm(47)),
    ),
    "loss of a patch target": (
        ("random_mask", "masked_loss"),
        lambda b: (_leaf(b, 49, 768), _image(b), _ids(b)),
        _loss("l1", target_norm=sk.PatchNorm()),
    ),
    "loss of target tokens": (
        ("random_mask", "masked_loss"),
        lambda b: (
            _leaf(b, 49, 512, dtype=torch.bfloat16),
            torch.randn(b, 49, 512, device="cuda"),
            _ids(b),
        ),
        _loss("smooth_l1", target_norm=sk.PatchNorm()),
    ),
    "normalize_targets": (
        ("normalize_targets",),
        lambda b: (_image(b),),
        lambda image: (sk.normalize_targets(image, 47),),
    ),
    "normalize_patches": (
        ("normalize_patches",),
        lambda b: (_image(b),),
        lambda image: (sk.normalize_patches(image, 16),),
    ),
    "mask_image": (
        ("random_mask", "mask_image"),
        lambda b: (_image(b, torch.uint8), _leaf(3), _ids(b)),
        _mask_image,
    ),
    "masked_patch_embed": (
        ("random_mask", "masked_patch_embed", "place_tokens"),
        lambda b: (_image(b, torch.uint8), _leaf(96, 3, 16, 16), _leaf(96), _ids(b)),
        _patch_embed,
    ),
    "masked_linear": (
        ("random_mask", "masked_linear", "place_tokens", "masked_loss"),
        lambda b: (_leaf(b, 49, 96), _leaf(768, 96), _image(b), _ids(b)),
        _linear,
    ),
}
