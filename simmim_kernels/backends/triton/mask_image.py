"""Filling of masked pixels in one pass, and the gradient of the fill.

A program takes lines of one sample as they lie in memory: rows of a channel, or of a channels-last
image rows of pixels with their channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends._results import contiguous, empty_image, memory_format
from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of, power_of_two
from simmim_kernels.backends.triton._grid import unit_of
from simmim_kernels.backends.triton._pixels import normalised, store
from simmim_kernels.backends.triton._scalars import bits_of, float64
from simmim_kernels.backends.triton._sums import add_rows
from simmim_kernels.backends.triton.mask_tokens import compute_type
from simmim_kernels.grid import scale_of

_TILE = 4096  # numbers in a program: 32 a thread
_WARP_TILE = 1024  # numbers in a program of one warp: 32 a thread
_SECTOR = 32  # bytes, the smallest unit of memory traffic


@triton.jit
def _lines(piece, width, height, R: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
           LAST: tl.constexpr):  # fmt: skip
    """Channel, row and column of a tile's numbers, their positions in their lines, and which of them
    lie within the image."""
    numbers = width * CHANNELS if LAST else width
    lines = height if LAST else height * CHANNELS
    columns = tl.cdiv(numbers, BLOCK)
    r = (piece // columns * R + tl.arange(0, R))[:, None]
    k = (piece % columns * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (r < lines) & (k < numbers)
    if LAST:
        return k % CHANNELS + r * 0, r + k * 0, k // CHANNELS + r * 0, k, inside
    return r // height + k * 0, r % height + k * 0, k + r * 0, k, inside


@triton.jit
def _statistics(mean, std, channel, inside, BYTES: tl.constexpr, STATS: tl.constexpr,
                COMPUTE: tl.constexpr):  # fmt: skip
    """Gain and offset of each channel for (x / 255 - mean) / std of a byte x, a multiply-add, or for
    (x - mean) / std of another number, a subtraction and a multiplication."""
    gain, offset = tl.full((), 1.0, COMPUTE), tl.full((), 0.0, COMPUTE)
    if STATS:
        offset = tl.load(mean + channel, mask=inside, other=0.0).to(COMPUTE)
        gain = 1 / tl.load(std + channel, mask=inside, other=1.0).to(COMPUTE)
    if BYTES:
        offset = 0 - offset * gain
        gain = gain / 255
    return gain, offset


@triton.jit
def _masked_values(
    image, mask, fill, mean, std, source, cell, c, here, inside, colour, FILL: tl.constexpr,
    BYTES: tl.constexpr, MEAN: tl.constexpr, STD: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The pixel values at `source` of channels c, and the fill where `mask` is set at `cell`."""
    masked = tl.load(mask + cell, mask=here, other=0) != 0
    value = tl.load(image + source, mask=inside & (masked == 0), other=0).to(COMPUTE)
    if tl.float64 == COMPUTE:
        value = normalised(value, mean, std, c, c >= 0, BYTES, MEAN, STD)
    elif BYTES or MEAN:
        gain, offset = _statistics(mean, std, c, c >= 0, BYTES, MEAN, COMPUTE)
        value = tl.fma(value, gain, offset) if BYTES else (value - offset) * gain
    elif STD:
        value = value / tl.load(std + c).to(COMPUTE)
    if FILL:
        colour = tl.load(fill + c)
    return tl.where(masked, colour.to(COMPUTE), value)


@triton.jit(do_not_specialize=["unit_h", "grid_h", "grid_w", "number"])
def _mask_image(
    image, i_b, i_c, i_y, i_x, mask, fill, mean, std, out, o_b, o_c, o_y, o_x,
    height, width, unit_h, unit_w, grid_h, grid_w, pieces, number: tl.int64,
    CHANNELS: tl.constexpr, FILL: tl.constexpr, BYTES: tl.constexpr, MEAN: tl.constexpr,
    STD: tl.constexpr, COMPUTE: tl.constexpr, R: tl.constexpr, G: tl.constexpr, V: tl.constexpr,
    WIDE: tl.constexpr, SAME: tl.constexpr,
):  # fmt: skip
    """R rows of a channel, G groups of V neighbours at a time; those of a group lie in one mask unit,
    so that masking never splits a load. WIDE: a channel is beyond the reach of 32 bits; SAME: image
    and result have the same strides."""
    plane = tl.program_id(0) // pieces
    y = tl.program_id(0) % pieces * R + tl.arange(0, R)[:, None, None]
    sample, c = (plane // CHANNELS).to(tl.int64), (plane % CHANNELS).to(tl.int64)
    image += sample * i_b + c * i_c
    out += sample * o_b + c * o_c
    mask += sample * (grid_h * grid_w)
    g, v = tl.arange(0, G)[None, :, None] * V, tl.arange(0, V)[None, None, :]
    row = y.to(tl.int64) if WIDE else y
    for start in range(0, width, G * V):
        x = start + g
        column = (x + v).to(tl.int64) if WIDE else x + v
        here = (y < height) & (x < width)
        source = row * i_y + column * i_x
        place = source if SAME else row * o_y + column * o_x
        inside = here & (v < V)
        cell = unit_of(y, x, unit_h, unit_w, grid_w)
        value = _masked_values(
            image, mask, fill, mean, std, source, cell, c, here, inside, float64(number),
            FILL, BYTES, MEAN, STD, COMPUTE,
        )  # fmt: skip
        store(out + place, value, inside)


@triton.jit(do_not_specialize=["unit_h", "grid_h", "grid_w", "number"])
def _mask_channels_last(
    image, mask, fill, mean, std, out, height, width, unit_h, unit_w, grid_h, grid_w, pieces,
    number: tl.int64, CHANNELS: tl.constexpr, FILL: tl.constexpr, BYTES: tl.constexpr,
    MEAN: tl.constexpr, STD: tl.constexpr, COMPUTE: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The same of an image and a result that are contiguous in this format."""
    program = tl.program_id(0)
    sample = (program // pieces).to(tl.int64)
    c, y, x, k, inside = _lines(program % pieces, width, height, R, BLOCK, CHANNELS, True)
    source = (sample * height + y) * (width * CHANNELS) + k
    cell = sample * (grid_h * grid_w) + unit_of(y, x, unit_h, unit_w, grid_w)
    value = _masked_values(
        image, mask, fill, mean, std, source, cell, c, inside, inside, float64(number),
        FILL, BYTES, MEAN, STD, COMPUTE,
    )  # fmt: skip
    store(out + source, value, inside)


@triton.jit(do_not_specialize=["unit_h", "grid_h", "grid_w"])
def _fill_sums(
    grad, g_b, g_c, g_y, g_x, mask, sums, height, width, unit_h, unit_w, grid_h, grid_w, tiles,
    CHANNELS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The partial sum of one channel's gradient over a tile of one sample."""
    program = tl.program_id(0)
    c, piece = (program % CHANNELS).to(tl.int64), program // CHANNELS
    sample = (piece // tiles).to(tl.int64)
    _, y, x, _, inside = _lines(piece % tiles, width, height, R, BLOCK, 1, False)
    cell = sample * (grid_h * grid_w) + unit_of(y, x, unit_h, unit_w, grid_w)
    masked = inside & (tl.load(mask + cell, mask=inside, other=0) != 0)
    at = sample * g_b + c * g_c + y.to(tl.int64) * g_y + x.to(tl.int64) * g_x
    value = tl.load(grad + at, mask=masked, other=0.0).to(tl.float64)
    tl.store(sums + program, tl.sum(tl.sum(value, 1), 0))


def _tile(numbers: int, lines: int) -> tuple[int, int, int]:
    """Lines in a tile, numbers in a line, and tiles in an image."""
    block = power_of_two(numbers, 1024)
    rows = power_of_two(lines, max(_TILE // block, 1))
    return rows, block, cdiv(numbers, block) * cdiv(lines, rows)


def _grid(image: Tensor, mask: Tensor) -> tuple[int, ...]:
    (height, width), (grid_h, grid_w) = image.shape[2:], mask.shape[1:]
    return height, width, *scale_of((height, width), (grid_h, grid_w)), grid_h, grid_w


def _reach(image: Tensor) -> int:
    """The offset of a channel's last pixel from its first."""
    (height, width), (by_row, by_column) = image.shape[2:], image.stride()[2:]
    return height * by_row + width * by_column


def mask_image_forward(image, mask, fill, value, mean, std, dtype):
    out = empty_image(image, dtype)
    if not out.numel():
        return out
    batch, channels, height, width = image.shape
    grid = _grid(image, mask)
    mask, fill, mean, std = contiguous(mask, fill, mean, std)
    options = {
        "CHANNELS": channels, "FILL": fill is not None, "BYTES": image.dtype == torch.uint8,
        "MEAN": mean is not None, "STD": std is not None,
        "COMPUTE": compute_type(image.dtype, dtype), **OPTIONS,
    }  # fmt: skip
    with on_device_of(image):
        if memory_format(image) is torch.channels_last:
            rows, block, pieces = _tile(width * channels, height)
            _mask_channels_last[(batch * pieces,)](
                image, mask, fill, mean, std, out, *grid, pieces, bits_of(value),
                R=rows, BLOCK=block, num_warps=4, **options,
            )  # fmt: skip
            return out
        vector = min(grid[3] & -grid[3], 16 // out.element_size())
        groups = width // vector
        # no lane is idle where a power of two divides a line into whole sectors
        even = groups & -groups
        whole = even >= 8 or even * vector * image.element_size() >= _SECTOR
        groups = min(even, 32) if whole else power_of_two(groups, 32)
        rows = power_of_two(height, _WARP_TILE // (groups * vector))
        pieces = cdiv(height, rows)
        _mask_image[(batch * channels * pieces,)](
            image, *image.stride(), mask, fill, mean, std, out, *out.stride(), *grid, pieces,
            bits_of(value), R=rows, G=groups, V=vector, WIDE=_reach(image) >= 1 << 31,
            SAME=image.stride() == out.stride(), num_warps=1, **options,
        )  # fmt: skip
    return out


def mask_image_backward(grad, mask, std, image_dtype, fill_dtype):
    batch, channels, height, width = grad.shape
    d_image = torch.empty((0,), dtype=image_dtype, device=grad.device)
    if image_dtype:
        d_image = mask_image_forward(grad, mask, None, 0.0, None, std, image_dtype)
    d_fill = torch.empty(channels if fill_dtype else 0, dtype=fill_dtype, device=grad.device)
    if d_fill.numel():
        rows, block, tiles = _tile(width, height)
        sums = torch.empty((batch * tiles, channels), dtype=torch.float64, device=grad.device)
        with on_device_of(grad):
            if sums.numel():
                _fill_sums[(sums.numel(),)](
                    grad, *grad.stride(), mask.contiguous(), sums, *_grid(grad, mask), tiles,
                    CHANNELS=channels, R=rows, BLOCK=block, num_warps=4, **OPTIONS,
                )  # fmt: skip
            add_rows(sums, d_fill)
    return d_image, d_fill
