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
