"""Visible patches as rows of a matrix and back, one pass each way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from simmim_kernels.backends._results import contiguous
from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of, power_of_two
from simmim_kernels.backends.triton._pixels import normalised, store
from simmim_kernels.backends.triton._places import listed_tokens
from simmim_kernels.backends.triton.mask_tokens import compute_type
from simmim_kernels.grid import scale_of

_TILE = 4096  # numbers of a program: 32 a thread


@triton.jit
def _patches(
    image, i_b, i_c, i_y, i_x, tokens, mean, std, rows, w, length, count,
    CHANNELS: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BYTES: tl.constexpr,
    STATS: tl.constexpr, BACK: tl.constexpr, COMPUTE: tl.constexpr, R: tl.constexpr,
    G: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Copies visible patches of the image to rows, or with BACK the rows' gradients to the image's."""
    # A tile has R rows of G groups of V numbers; a group is contiguous in the image.
    numbers: tl.constexpr = CHANNELS * PH * PW
    columns = tl.cdiv(numbers, G * V)
    row = tl.program_id(0) // columns * R + tl.arange(0, R)[:, None, None]
    g = tl.program_id(0) % columns * (G * V) + tl.arange(0, G)[None, :, None] * V
    v = tl.arange(0, V)[None, None, :]
    token = tl.load(tokens + row, mask=row < count, other=-1)
    patch = token % length
    # A hint without which Triton 3.6 loads one number at a time.
    within = tl.multiple_of(g % PW, (V, V, V))
    y, x = patch // w * PH + g // PW % PH, patch % w * PW + within + v
    c = tl.minimum(g // (PH * PW), CHANNELS - 1).to(tl.int64)
    at = token // length * i_b + c * i_c + y * i_y + x * i_x
    inside = (g < numbers) & (v < V)
    here = inside & (token >= 0)
    place = row.to(tl.int64) * numbers + g + v
    if BACK:
        value = tl.load(rows + place, mask=here, other=0.0).to(COMPUTE)
        if STATS:
            value = value / tl.load(std + c).to(COMPUTE)
        store(image + at, value, here)
    else:
        value = tl.load(image + at, mask=here, other=0).to(COMPUTE)
        value = normalised(value, mean, std, c, c >= 0, BYTES, STATS, STATS)
        store(rows + place, tl.where(here, value, 0.0), inside & (row < count))


def _run(image, tokens, mean, std, rows, patch_h, patch_w, back, dtype) -> None:
    _, channels, height, width = image.shape
    h, w = scale_of((height, width), (patch_h, patch_w))
    count, numbers = rows.shape
    vector = min(patch_w & -patch_w, 16)
    groups = power_of_two(cdiv(numbers, vector), 1024 // vector)
    high = power_of_two(count, max(_TILE // (groups * vector), 1))
    mean, std = contiguous(mean, std)
    with on_device_of(image):
        _patches[(cdiv(count, high) * cdiv(numbers, groups * vector),)](
            image, *image.stride(), tokens, mean, std, rows, w, h * w, count,
            CHANNELS=channels, PH=patch_h, PW=patch_w, BYTES=image.dtype == torch.uint8,
            STATS=std is not None, BACK=back, COMPUTE=compute_type(dtype), R=high, G=groups,
            V=vector, num_warps=4, **OPTIONS,
        )  # fmt: skip


def gather_patches(image, mask, mean, std, patch_h, patch_w, count, dtype):
    _, channels, height, width = image.shape
    rows = torch.empty((count, channels * patch_h * patch_w), dtype=dtype, device=image.device)
    if rows.numel():
        h, w = scale_of((height, width), (patch_h, patch_w))
        tokens = listed_tokens(mask, h, w, count, False, torch.int64)
        _run(image, tokens, mean, std, rows, patch_h, patch_w, False, dtype)
    return rows


def gather_patches_backward(grad, mask, std, channels, h, w, patch_h, patch_w, dtype):
    size = mask.shape[0], channels, h * patch_h, w * patch_w
    image = torch.zeros(size, dtype=dtype, device=grad.device)
    if grad.numel():
        tokens = listed_tokens(mask, h, w, grad.shape[0], False, torch.int64)
        _run(image, tokens, None, std, grad.contiguous(), patch_h, patch_w, True, dtype)
    return image
