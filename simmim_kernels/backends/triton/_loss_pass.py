"""The Triton kernel of the masked losses: loss values, gradient and partial sums in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from simmim_kernels.backends.triton._grid import unit_of
from simmim_kernels.backends.triton._loss_sums import HALF_SLOPE, sample_of
from simmim_kernels.backends.triton._scalars import float64

IMAGE, TOKENS, MAP, LISTED = range(4)  # layouts of the prediction; the kernel knows the numbers


@triton.jit
def _value_and_slope(d, beta, KIND: tl.constexpr):
    """The loss of one pixel as a function of d, and its derivative, both in the type of d. Twin of
    csrc/common/pixel_loss.h."""
    if KIND == "mse":
        value, slope = d * d, d + d
    elif KIND == "l1":
        value = tl.abs(d)
        slope = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)).to(d.dtype)
    elif KIND == "huber":
        size = tl.abs(d)
        delta = beta.to(d.dtype)
        near = tl.where(size < delta, size, delta)
        value = near * (size - 0.5 * near)
        slope = tl.where(d > delta, delta, tl.where(d < -delta, -delta, d))
    else:
        tl.static_assert(KIND == "smooth_l1", "unknown loss")
        u = d * (1 / beta).to(d.dtype)
        size = tl.abs(u)
        value = tl.where(size < 1, 0.5 * u * u, size - 0.5) * beta.to(d.dtype)
        slope = tl.where(u > 1, 1.0, tl.where(u < -1, -1.0, u)).to(d.dtype)
    return value, slope


@triton.jit
def _numbers(
    piece, top, left, listed, mask, height, width, unit_h, unit_w, grid_w,
    LAYOUT: tl.constexpr, YXC: tl.constexpr, COVERED: tl.constexpr,
    CHANNELS: tl.constexpr, P: tl.constexpr, R: tl.constexpr, G: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """The numbers of a tile of R rows of G groups of V: channel, row and column of their token, row
    and column within it, row and column of the image, which exist, and which of these are masked.

    The numbers of a group are neighbours in memory and lie in one mask unit, so that masking never
    splits a 16-byte load. `top`, `left`, `listed`: where a listed token begins, and whether it
    is one."""
    r = tl.arange(0, R)[:, None, None]
    g = tl.arange(0, G)[None, :, None] * V
    v = tl.arange(0, V)[None, None, :]
    w = width // P
    if LAYOUT == 0:  # rows: lines of pixels; groups: along a line
        columns = tl.cdiv(width, G * V)
        r += piece // columns * R
        g += piece % columns * (G * V)
        c, ty, dy, tx, dx = r // height, r % height, r * 0, g + v, r * 0
        here, inside = (r < CHANNELS * height) & (g < width), g + v < width
    elif LAYOUT == 2:  # rows: pixels across a token; groups: tokens
        columns = tl.cdiv(height // P * w, G)
        c, dy = piece // columns // P + r * 0, piece // columns % P + r * 0
        g += piece % columns * G
        ty, tx, dx = g // w, g % w, r
        here, inside = (r < P) & (g < height // P * w), v < V
    else:  # rows: tokens; groups: along a token's numbers
        columns = tl.cdiv(CHANNELS * P * P, G * V)
        r += piece // columns * R
        g += piece % columns * (G * V)
        if P == 1:
            c, dy, dx = g + v, r * 0, r * 0
        elif YXC:
            number = g + v
            c, dy, dx = number % CHANNELS, number // (CHANNELS * P), number // CHANNELS % P
        else:
            # A hint without which Triton 3.6 loads one number at a time.
            c, dy, dx = g // (P * P), g // P % P, tl.multiple_of(g % P, (V, V, V)) + v
        ty, tx = r // w, r % w
        here, inside = (r < height // P * w) & (g < CHANNELS * P * P), g + v < CHANNELS * P * P
    if LAYOUT == 3:
        ty, tx = r * 0, r * 0
        y, x = top + dy, left + dx
        masked = here & (listed + r * 0 > 0)
    else:
        y, x = ty * P + dy, tx * P + dx
        if LAYOUT == 0:
            cell = unit_of(y, g, unit_h, unit_w, grid_w)
        elif COVERED:
            cell = unit_of(ty * P, tx * P, unit_h, unit_w, grid_w)
        elif LAYOUT == 1 and not YXC:
            cell = unit_of(y, tx * P + g % P, unit_h, unit_w, grid_w)
        else:
            cell = unit_of(y, x, unit_h, unit_w, grid_w)
        masked = tl.load(mask + cell, mask=here, other=0) != 0
    c, ty, dy, tx, dx = (
        c.to(tl.int64), ty.to(tl.int64), dy.to(tl.int64), tx.to(tl.int64), dx.to(tl.int64)
    )  # fmt: skip
    return c, ty, tx, dy, dx, y.to(tl.int64), x.to(tl.int64), here & inside, inside & masked


@triton.jit(do_not_specialize=["batch", "per_sample", "units", "pieces", "beta"])
def loss_pass(
    pred, p_b, p_c, p_ty, p_y, p_tx, p_x,
    grad, g_b, g_c, g_ty, g_y, g_tx, g_x,
    target, t_b, t_c, t_y, t_x,
    affine, mask, index, scale, partial,
    height, width, unit_h, unit_w, grid_w, batch, per_sample, units, pieces, beta: tl.int64,
    LAYOUT: tl.constexpr, YXC: tl.constexpr, AFFINE: tl.constexpr, KIND: tl.constexpr,
    WITH_GRAD: tl.constexpr, SCALED: tl.constexpr,
    EACH: tl.constexpr, COVERED: tl.constexpr, CHANNELS: tl.constexpr, P: tl.constexpr,
    COMPUTE: tl.constexpr, R: tl.constexpr, G: tl.constexpr, V: tl.constexpr, SPLIT: tl.constexpr,
    STEP: tl.constexpr, CHANNELS_INNERMOST: tl.constexpr,
):  # fmt: skip
    """STEP: a power of two that divides all strides but the innermost; a hint, because Triton itself
    only finds divisibility by 16. 1: no hint."""
    if STEP > 1:
        p_b, g_b, t_b = p_b // STEP * STEP, g_b // STEP * STEP, t_b // STEP * STEP
        p_ty, g_ty, t_y = p_ty // STEP * STEP, g_ty // STEP * STEP, t_y // STEP * STEP
        if LAYOUT == 0:
            width = width // STEP * STEP
        else:
            p_tx, g_tx = p_tx // STEP * STEP, g_tx // STEP * STEP
            p_y, g_y = p_y // STEP * STEP, g_y // STEP * STEP
        if CHANNELS_INNERMOST:
            p_x, g_x, t_x = p_x // STEP * STEP, g_x // STEP * STEP, t_x // STEP * STEP
        else:
            p_c, g_c, t_c = p_c // STEP * STEP, g_c // STEP * STEP, t_c // STEP * STEP
    program = tl.program_id(0)
    piece = program % pieces
    sample = (program // pieces).to(tl.int64)
    row = sample  # of scales
    pred_at, grad_at = sample * p_b, sample * g_b
    top, left, valid = 0, 0, 1
    if LAYOUT == 3:
        listed = sample
        named = tl.load(index + listed).to(tl.int64)
        sample, unit = sample_of(listed, named, batch, per_sample, units)
        valid = (sample >= 0).to(tl.int32)
        sample, unit = tl.maximum(sample, 0), tl.where(sample < 0, 0, unit)
        row = sample
        pred_at, grad_at = listed * p_tx, listed * g_tx
        top, left = (unit // grid_w).to(tl.int32) * P, (unit % grid_w).to(tl.int32) * P
    mask += sample * units
    c, ty, tx, dy, dx, y, x, here, at = _numbers(
        piece, top, left, valid, mask, height, width, unit_h, unit_w, grid_w,
        LAYOUT, YXC, COVERED, CHANNELS, P, R, G, V,
    )  # fmt: skip
    target += sample * t_b
    if SPLIT == 1:
        wanted = tl.load(target + c * t_c + y * t_y + x * t_x, mask=at, other=0)
    else:
        # 16 bytes of a wider type are fewer numbers, so lanes exchange parts of what they load.
        t_channel, _, _, _, _, t_row, t_column, _, t_at = _numbers(
            piece, top, left, valid, mask, height, width, unit_h, unit_w, grid_w,
            LAYOUT, YXC, COVERED, CHANNELS, P, R, G * SPLIT, V // SPLIT,
        )  # fmt: skip
        place = t_channel * t_c + t_row * t_y + t_column * t_x
        wanted = tl.reshape(tl.load(target + place, mask=t_at, other=0), (R, G, V))
    wanted = wanted.to(COMPUTE)
    if AFFINE:
        channel = tl.minimum(c, CHANNELS - 1)
        wanted = (wanted - tl.load(affine + CHANNELS + channel)) * tl.load(affine + channel)
        wanted = tl.where(at, wanted, 0.0)
    # Loaded last, so that Triton does all arithmetic in the layout in which the prediction is loaded.
    pred_at += c * p_c + ty * p_ty + dy * p_y + tx * p_tx + dx * p_x
    value = tl.load(pred + pred_at, mask=at, other=0.0).to(COMPUTE)
    value, slope = _value_and_slope(value - wanted, float64(beta), KIND)
    if WITH_GRAD:
        if SCALED:
            factor = tl.load(scale + row * EACH)
            slope = slope * factor.to(COMPUTE)
        else:
            slope = slope * HALF_SLOPE
        if grad.dtype.element_ty != tl.float64:
            slope = slope.to(tl.float32)  # no GPU narrows float64 to 16 bits in one step
        if LAYOUT == 3:
            # The gradient may overwrite the prediction, and in a row with fewer numbers than the block
            # has threads several threads load a number that one of them overwrites.
            tl.debug_barrier()
        grad_at += c * g_c + ty * g_ty + dy * g_y + tx * g_tx + dx * g_x
        tl.store(grad + grad_at, slope.to(grad.dtype.element_ty), mask=here)
    total = tl.sum(value)
    tl.store(partial + program, total.to(tl.float64))
