"""Hashes of what the kernels compute, to be compared between instruction sets."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

import simmim_kernels as sk
from tests.ops.calls import CALLS, STATS, arguments_of, results
from tests.ops.loss_cases import LAYOUTS, LOSSES, ours, problem

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def calls() -> Iterator[Tensor]:
    """Every call of the table in two sizes; matrix products are PyTorch's own."""
    for name, call in CALLS.items():
        if not call.products:
            for batch, grid in ((2, (2, 3)), (3, (5, 4))):
                yield from results(name, arguments_of(name, batch, grid))


def losses() -> Iterator[Tensor]:
    """Loss and gradient of every kind, and of targets normalised by patch, in every layout and several
    types."""
    types = [(torch.float32, torch.float32), (torch.bfloat16, torch.uint8)]
    types += [(torch.float16, torch.bfloat16), (torch.float64, torch.float32)]
    for layout, (dtype, target_dtype) in itertools.product(LAYOUTS, types):
        pred, target, mask, stats = problem(2, 3, (2, 3), 16, 8, layout, dtype, target_dtype)
        for kind, norm in [*((kind, None) for kind in LOSSES), ("mse", sk.PatchNorm())]:
            leaf, options = pred.detach().requires_grad_(), {"target_norm": norm, **stats}
            loss = ours(kind, leaf, target, mask, layout, reduction="none", **options)
            yield loss.detach()
            yield torch.autograd.grad(loss.sum(), leaf)[0]


def all_halves() -> Tensor:
    """Every number of 16 bits, infinities and NaN among them, `int16 (1, 1, 256, 256)`."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(1, 1, 256, 256)


def losses_of_every_half() -> Iterator[Tensor]:
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    for dtype in (torch.float16, torch.bfloat16):
        pred = all_halves().view(dtype).requires_grad_()
        loss = sk.masked_mse(pred, torch.randn(pred.shape), mask, reduction="sum")
        yield torch.autograd.grad(loss, pred)[0]


def masked_images() -> Iterator[Tensor]:
    for last, source, unit in itertools.product((0, 1), (*FLOATS, torch.uint8), (1, 5, 33)):
        image = (torch.randn(2, 3, 2 * unit, 3 * unit) * 40 + 120).clamp(0, 255).to(source)
        if last:
            image = image.contiguous(memory_format=torch.channels_last)
        mask = sk.random_mask(2, (2, 3), 0.6, seed=4)
        for dtype in FLOATS:
            fill = torch.randn(3, requires_grad=True)
            statistics = STATS if source == torch.uint8 else {}
            out = sk.mask_image(image, mask, fill, dtype=dtype, **statistics)
            out.backward(torch.randn(out.shape).to(dtype))
            yield out.detach()
            yield fill.grad


def normalised_images() -> Iterator[Tensor]:
    for dtype in (*FLOATS, torch.uint8):
        image = (torch.randn(2, 3, 75, 60) * 40 + 120).clamp(0, 255).to(dtype)
        for patch in (1, 5, 15):
            yield sk.normalize_patches(image, patch)
        if dtype != torch.uint8:
            image[0, 1, 50, 50] = float("inf")
        for window in (3, 47, 201):
            yield sk.normalize_targets(image[..., :-1], window).nan_to_num(nan=7.0)


def crops_of_bytes() -> Iterator[Tensor]:
    """Each code that a resize of bytes can take: colours side by side or in planes, one to four channels,
    mirrored or not, made larger, a little smaller and up to eight times smaller."""
    boxes, flips = torch.tensor([[3, 5, 80, 120], [0, 0, 91, 130]]), torch.tensor([True, False])
    for channels, planes in ((1, False), (3, False), (3, True), (4, False)):
        images = torch.randint(0, 256, (2, 91, 130, channels), dtype=torch.uint8).permute(
            0, 3, 1, 2
        )
        images = images.contiguous() if planes else images
        for size in ((99, 161), (79, 100), (53, 65), (40, 49), (30, 33), (11, 15)):
            for mode, antialias in itertools.product(("bilinear", "bicubic"), (False, True)):
                options = {"interpolation": mode, "antialias": antialias}
                yield sk.crop_resize(images, boxes, size, flip=flips, **options)


def digest() -> dict[str, str]:
    """A hash of the bits of each group, one thread or several."""
    found = {}
    groups = (calls, losses, losses_of_every_half, masked_images, normalised_images)
    for group in (*groups, crops_of_bytes):
        torch.manual_seed(5)
        bits = hashlib.sha256()
        for tensor in group():
            bits.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        found[group.__name__] = bits.hexdigest()
    return found
