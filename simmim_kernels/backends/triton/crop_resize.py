"""Boxes of images resized into a batch in one launch, a program a tile of one channel of one sample.

The boxes are read where they lie, on the device: how many pixels an output is made of is a number of
the kernel's own, so that no box is waited for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of, power_of_two
from simmim_kernels.backends.triton._pixels import store

_TILE = 256  # outputs of a program
_ELEMENTS = {
    torch.uint8: tl.uint8,
    torch.uint16: tl.uint16,
    torch.int16: tl.int16,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
_WIDE = (torch.float64, torch.uint16, torch.int16)  # computed in float64, the others in float32


@triton.jit
def _axis(place, length, out, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr):
    """For the outputs at `place`: the first tap's pixel and its position in the filter; the largest
    number of taps, and the distance of two neighbouring pixels in the filter."""
    scale = length.to(tl.float64) / out
    stretch = tl.maximum(scale if ANTIALIAS else scale * 0, 1)
    inverse = 1 / stretch
    reach = stretch * (2 if CUBIC else 1)
    center = (place.to(tl.float64) + 0.5) * scale - 0.5
    first = tl.ceil(center - reach)
    return first.to(tl.int64), (first - center) * inverse, (2 * reach).to(tl.int32) + 1, inverse


@triton.jit
def _weight(t, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr):
    """The triangle, or the cubic filter with a = -0.5 (without antialiasing a = -0.75)."""
    t = tl.abs(t)
    if not CUBIC:
        return tl.maximum(1 - t, 0)
    a = -0.5 if ANTIALIAS else -0.75
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * a
    return tl.where(t < 1, near, tl.where(t < 2, far, 0))


@triton.jit
def _tap(first, start, step, k, length, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr):
    """The pixel and the weight of tap k of each output. With antialiasing pixels outside the box have
    no weight; without it the border pixels are repeated."""
    pixel, weight = first + k, _weight(start + step * k, CUBIC, ANTIALIAS)
    inside = tl.minimum(tl.maximum(pixel, 0), length - 1)
    if ANTIALIAS:
        weight = tl.where(pixel == inside, weight, 0)
    return inside, weight


@triton.jit(do_not_specialize=["rows", "columns", "tiles", "across"])
def _crop_resize(
    image, i_b, i_c, i_y, i_x, rows, columns, table, boxes, flip, out, tiles, across,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ELEMENT: tl.constexpr,
    CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, LISTED: tl.constexpr, FLIP: tl.constexpr,
    LEAST: tl.constexpr, MOST: tl.constexpr, WHOLE: tl.constexpr, COMPUTE: tl.constexpr,
    Y: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    sample, c = (plane // CHANNELS).to(tl.int64), (plane % CHANNELS).to(tl.int64)
    if LISTED:
        table += sample * 6
        image = tl.load(table).to(tl.pointer_type(ELEMENT))
        i_c, i_y, i_x = tl.load(table + 1), tl.load(table + 2), tl.load(table + 3)
        rows, columns = tl.load(table + 4), tl.load(table + 5)
    else:
        image += sample * i_b
    # A box that reaches beyond its image is cut, so that nothing outside is read.
    boxes += sample * 4
    top = tl.minimum(tl.maximum(tl.load(boxes), 0), rows - 1)
    left = tl.minimum(tl.maximum(tl.load(boxes + 1), 0), columns - 1)
    box_h = tl.minimum(tl.maximum(tl.load(boxes + 2), 1), rows - top)
    box_w = tl.minimum(tl.maximum(tl.load(boxes + 3), 1), columns - left)
    image += c * i_c + top * i_y + left * i_x
    y = tile // across * Y + tl.arange(0, Y)
    x = tile % across * X + tl.arange(0, X)
    exists = (y < HEIGHT)[:, None] & (x < WIDTH)[None, :]
    place = tl.minimum(x, WIDTH - 1)
    if FLIP:
        place = tl.where(tl.load(flip + sample) != 0, WIDTH - 1 - place, place)
    last_y = tl.minimum(y, HEIGHT - 1)
    first_y, start_y, taps_y, step_y = _axis(last_y, box_h, HEIGHT, CUBIC, ANTIALIAS)
    first_x, start_x, taps_x, step_x = _axis(place, box_w, WIDTH, CUBIC, ANTIALIAS)
    start_y, step_y = start_y.to(COMPUTE), step_y.to(COMPUTE)
    start_x, step_x = start_x.to(COMPUTE), step_x.to(COMPUTE)
    total = tl.zeros((Y, X), COMPUTE)
    sum_y, sum_x = tl.zeros((Y,), COMPUTE), tl.zeros((X,), COMPUTE)
    for k in range(taps_x):
        _, weight = _tap(first_x, start_x, step_x, k, box_w, CUBIC, ANTIALIAS)
        sum_x += weight
    for k in range(taps_y):
        at_y, weight_y = _tap(first_y, start_y, step_y, k, box_h, CUBIC, ANTIALIAS)
        sum_y += weight_y
        line = tl.zeros((Y, X), COMPUTE)
        for j in range(taps_x):
            at_x, weight_x = _tap(first_x, start_x, step_x, j, box_w, CUBIC, ANTIALIAS)
            used = exists & (weight_y != 0)[:, None] & (weight_x != 0)[None, :]
            at = (at_y * i_y)[:, None] + (at_x * i_x)[None, :]
            line += weight_x[None, :] * tl.load(image + at, mask=used, other=0).to(COMPUTE)
        total += weight_y[:, None] * line
    if ANTIALIAS:
        total = total / (sum_y[:, None] * sum_x[None, :])
    target = out + (plane.to(tl.int64) * HEIGHT + y[:, None]) * WIDTH + x[None, :]
    if LEAST < MOST:
        whole = (total + WHOLE) - WHOLE  # rounds, ties to even
        whole = tl.minimum(tl.maximum(whole, LEAST), MOST)
        tl.store(target, whole.to(tl.int32).to(out.dtype.element_ty), mask=exists)
    else:
        if tl.uint8 == ELEMENT:
            total = total / 255
        store(target, total, exists)


def _table(images: list[Tensor]) -> Tensor:
    """Address, strides and size of each image, `int64 (B, 6)` on their device, copied from pinned
    memory without synchronisation."""
    device = images[0].device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "images is a list while a CUDA graph is captured, and a replay would look for its images "
            "where these lie; pass a batch (B, C, H, W)"
        )
    numbers = [[i.data_ptr(), *i.stride(), *i.shape[1:]] for i in images]
    table = torch.tensor(numbers, dtype=torch.int64, device="cpu")
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


def crop_resize(boxes, images, flip, height, width, interpolation, antialias, dtype):
    first, batch = images[0], boxes.shape[0]
    channels = first.shape[-3]
    out = torch.empty((batch, channels, height, width), dtype=dtype, device=boxes.device)
    if not out.numel():
        return out
    wide = first.dtype in _WIDE or dtype == torch.float64
    limits = (0, 0) if dtype.is_floating_point else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    listed = first.dim() == 3
    x = power_of_two(width, 64)
    y = power_of_two(height, _TILE // x)
    across = cdiv(width, x)
    tiles = across * cdiv(height, y)
    with on_device_of(boxes):
        table = _table(images) if listed else None
        strides = (0, 0, 0, 0) if listed else first.stride()
        _crop_resize[(batch * channels * tiles,)](
            None if listed else first, *strides, *first.shape[-2:], table, boxes.contiguous(),
            None if flip is None else flip.contiguous(), out, tiles, across,
            CHANNELS=channels, HEIGHT=height, WIDTH=width, ELEMENT=_ELEMENTS[first.dtype],
            CUBIC=interpolation == "bicubic", ANTIALIAS=antialias, LISTED=listed,
            FLIP=flip is not None, LEAST=limits[0], MOST=limits[1],
            WHOLE=6755399441055744.0 if wide else 12582912.0,
            COMPUTE=tl.float64 if wide else tl.float32, Y=y, X=x, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return out
