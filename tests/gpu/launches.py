"""Calls of the GPU backends at the shapes that matter, to be compiled without being run."""

from __future__ import annotations

from collections.abc import Callable

import torch

BF16, F32 = torch.bfloat16, torch.float32


def _mask(batch: int, *grid: int) -> torch.Tensor:
    return torch.zeros((batch, *grid), dtype=torch.bool)


def random_mask(backend) -> dict[str, Callable]:
    ids = torch.arange(4)
    return {
        f"{side}x{side}": lambda side=side: backend.random_mask.random_mask(
            ids, side, side, side * side // 2, 5, 1
        )
        for side in (7, 14, 40, 100)
    }


def mask_tokens(backend) -> dict[str, Callable]:
    op = backend.mask_tokens
    calls = {}
    for name, shape, prefix in (("vit-b", (4, 197, 768), 1), ("swin-b", (4, 48, 48, 128), 0)):
        grid = (7, 7) if prefix else (6, 6)
        for dtype in (BF16, F32):
            x = torch.empty(shape, dtype=dtype)
            token, pos = torch.empty(shape[-1]), torch.empty(1, 196, 768)
            calls[f"{name} {dtype} forward"] = lambda x=x, t=token, g=grid, p=prefix: (
                op.mask_tokens_forward(x, _mask(4, *g), t, None, p, True)
            )
            calls[f"{name} {dtype} backward"] = lambda x=x, g=grid, p=prefix: (
                op.mask_tokens_backward(x, _mask(4, *g), p, x.dtype, F32, 0, None)
            )
            if prefix:
                calls[f"{name} {dtype} forward pos"] = lambda x=x, t=token, g=grid, p=pos: (
                    op.mask_tokens_forward(x, _mask(4, *g), t, p, 1, True)
                )
                calls[f"{name} {dtype} backward pos"] = lambda x=x, g=grid: op.mask_tokens_backward(
                    x, _mask(4, *g), 1, x.dtype, F32, 196, F32
                )
    return calls


def masked_loss(backend) -> dict[str, Callable]:
    op = backend.masked_loss.masked_loss
    calls = {}
    for size, unit, patch in ((224, 32, 16), (192, 32, 32)):
        image, side = torch.empty(4, 3, size, size), size // patch
        numbers, mask = 3 * patch * patch, _mask(4, size // unit, size // unit)
        tokens = torch.empty(4, side * side, numbers, dtype=BF16)
        index = torch.empty(4 * side * side // 2, dtype=torch.int32)
        problems = {
            "image": (image.bfloat16(), image),
            "float32": (tokens.float(), image),
            "tokens": (tokens, image),
            "bytes": (tokens, image.to(torch.uint8)),
            "map": (torch.empty(4, numbers, side, side, dtype=BF16), image),
            "listed": (tokens[0, :1].expand(len(index), -1).contiguous(), image),
        }
        kind = "l1" if patch == 16 else "smooth_l1"
        for what, (pred, target) in problems.items():
            stats = (torch.zeros(3), torch.ones(3)) if what == "bytes" else (None, None)
            listed = index if what == "listed" else None
            options = ("cyx", *stats, kind, 1.0, 1e-5, "mean", True, "none", 0, 0.0)
            given = (pred, target, mask, listed, *options)
            calls[f"{what} {size}"] = lambda given=given: op(*given)
    return calls


def normalize_patches(backend) -> dict[str, Callable]:
    op = backend.normalize_patches
    image, stats = torch.empty(4, 3, 224, 224), (torch.zeros(3), torch.ones(3))
    return {
        "float32": lambda: op.normalize_patches(image, 16, 1e-6, None, None),
        "bytes": lambda: op.normalize_patches(image.to(torch.uint8), 16, 1e-6, *stats),
        "masked": lambda: op.patch_normalized(image, 16, 1e-6, None, None, F32, _mask(4, 7, 7)),
    }


def normalize_targets(backend) -> dict[str, Callable]:
    op = backend.normalize_targets
    image, stats = torch.empty(4, 3, 192, 192), (torch.zeros(3), torch.ones(3))
    return {
        "float32": lambda: op.normalize_targets(image, 47, 1e-6, None, None),
        "bytes": lambda: op.normalize_targets(image.to(torch.uint8), 47, 1e-6, *stats),
        "masked": lambda: op.window_normalized(image, 47, 1e-6, None, F32, _mask(4, 6, 6)),
    }
