"""Calls of the GPU backends at the shapes that matter, to be compiled without being run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from simmim_kernels.backends._loss_spec import LossSpec

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


def box_mask(backend) -> dict[str, Callable]:
    ids = torch.arange(4)
    return {"14x14": lambda: backend.box_mask.box_mask(ids, 14, 14, 8, 8, False, 5, 1)}


def uniform_mask(backend) -> dict[str, Callable]:
    ids = torch.arange(4)
    return {"14x14": lambda: backend.uniform_mask.uniform_mask(ids, 14, 14, 3, 5, 1)}


def block_mask(backend) -> dict[str, Callable]:
    ids = torch.arange(4)
    return {
        f"{side}x{side}": lambda side=side: backend.block_mask.block_mask(
            ids, side, side, side * side // 2, 5, 1
        )
        for side in (14, 48)
    }


def avg_dist(backend) -> dict[str, Callable]:
    return {"6x6": lambda: backend.avg_dist.avg_dist(_mask(4, 6, 6), 32)}


def random_crops(backend) -> dict[str, Callable]:
    numbers = torch.arange(4), torch.full((4, 2), 300), 0.67, 1.0, 0.75, 4 / 3, 0.5, 5, 1
    return {"4": lambda: backend.random_crops.random_crops(*numbers)}


def crop_resize(backend) -> dict[str, Callable]:
    op, boxes = backend.crop_resize.crop_resize, torch.tensor([[0, 0, 240, 300]] * 4)
    images, flip = torch.empty(4, 3, 256, 341, dtype=torch.uint8), torch.zeros(4, dtype=torch.bool)
    made = (flip, 192, 192, "bilinear", True)
    return {
        "bytes": lambda: op(boxes, [images], *made, torch.uint8),
        "listed": lambda: op(boxes, list(images), *made, torch.uint8),
        "float32": lambda: op(boxes, [images.float()], None, 192, 192, "bicubic", True, F32),
        "float64": lambda: op(boxes, [images.double()], *made, torch.float64),
    }


def mask_image(backend) -> dict[str, Callable]:
    op, mask = backend.mask_image, _mask(4, 6, 6)
    image, stats = torch.empty(4, 3, 192, 192), (torch.zeros(3), torch.ones(3))
    last = image.contiguous(memory_format=torch.channels_last)
    return {
        "float32": lambda: op.mask_image_forward(image, mask, None, 0.5, None, None, F32),
        "bytes": lambda: op.mask_image_forward(
            image.to(torch.uint8), mask, torch.zeros(3), 0.0, *stats, BF16
        ),
        "channels_last": lambda: op.mask_image_forward(last, mask, None, 0.5, None, None, F32),
        "backward": lambda: op.mask_image_backward(image, mask, None, F32, F32),
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
            "features": (tokens, torch.empty(4, side, side, numbers).movedim(3, 1)),
        }
        kind = "l1" if patch == 16 else "smooth_l1"
        for what, (pred, target) in problems.items():
            stats = (torch.zeros(3), torch.ones(3)) if what == "bytes" else (None, None)
            listed = index if what == "listed" else None
            spec = LossSpec(kind, 1.0, "yxc" if what == "features" else "cyx", 1e-5, "mean")
            given = (pred, target, mask, listed, *stats, spec, True)
            calls[f"{what} {size}"] = lambda given=given: op(*given)
            if what == "listed":
                spec = spec._replace(norm="window", norm_side=47, norm_eps=1e-6)
                norm = (pred, target, mask, listed, *stats, spec, True)
                calls[f"listed {size} norm"] = lambda given=norm: op(*given)
    for dtype in (BF16, F32):
        grad = torch.empty(4, 196, 768, dtype=dtype)
        calls[f"scale {dtype}"] = lambda grad=grad: backend.masked_loss.scale_gradient_(
            grad, torch.ones(())
        )
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
        "224": lambda: op.normalize_targets(
            torch.empty(4, 3, 224, 224, dtype=BF16), 47, 1e-6, None, None
        ),
    }


def masked_linear(backend) -> dict[str, Callable]:
    return {"14x14": lambda: backend.masked_linear.masked_positions(_mask(4, 7, 7), 14, 14, 400)}


def place_tokens(backend) -> dict[str, Callable]:
    op, mask, rows = backend.place_tokens, _mask(4, 7, 7), torch.empty(400, 768, dtype=BF16)
    token, pos, x = torch.empty(768), torch.empty(196, 768), torch.empty(4, 196, 768, dtype=BF16)
    prefixed = torch.empty(4, 197, 768, dtype=BF16)
    return {
        "place": lambda: op.place_tokens(rows, mask, token, pos, 0, False, 14, 14, BF16),
        "take": lambda: op.take_tokens(x, mask, 0, False, 14, 14, 400, BF16, F32, 196, F32),
        "place with prefix": lambda: op.place_tokens(rows, mask, token, pos, 1, True, 14, 14, BF16),
        "take with prefix": lambda: op.take_tokens(
            prefixed, mask, 1, True, 14, 14, 400, BF16, F32, 196, F32
        ),
    }


def masked_patch_embed(backend) -> dict[str, Callable]:
    op, mask = backend.masked_patch_embed, _mask(4, 7, 7)
    image, stats = torch.empty(4, 3, 224, 224), (torch.zeros(3), torch.ones(3))
    return {
        "float32": lambda: op.gather_patches(image, mask, None, None, 16, 16, 400, F32),
        "bytes": lambda: op.gather_patches(image.to(torch.uint8), mask, *stats, 16, 16, 400, BF16),
        "backward": lambda: op.gather_patches_backward(
            torch.empty(400, 768, dtype=BF16), mask, stats[1], 3, 14, 14, 16, 16, F32
        ),
    }
