"""Masked losses and their gradient in one pass over the masked pixels.

Three launches: the factor of each result from the number of masked pixels, the pass itself with one
partial sum a program, and the ordered sum of those.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from simmim_kernels.backends._loss_spec import check_names
from simmim_kernels.backends._results import contiguous, empty_loss
from simmim_kernels.backends.triton import OPTIONS, cdiv, on_device_of, power_of_two
from simmim_kernels.backends.triton._loss_pass import IMAGE, LISTED, MAP, TOKENS, loss_pass
from simmim_kernels.backends.triton._loss_sums import finish, listed_units, masked_units, scales
from simmim_kernels.backends.triton._pixels import store
from simmim_kernels.backends.triton._scalars import bits_of
from simmim_kernels.backends.triton.mask_tokens import compute_type
from simmim_kernels.backends.triton.normalize_patches import patch_normalized
from simmim_kernels.backends.triton.normalize_targets import window_normalized
from simmim_kernels.grid import PredictionStrides, prediction_patch, prediction_strides, scale_of

_TILE = 4096  # numbers of a program: 32 a thread, so several 16-byte loads of each tensor in flight
_PROGRAMS = 1056  # eight for each of 132 multiprocessors, all at once


def _divisor(n: int, most: int) -> int:
    """The largest power of two that divides `n`, at most `most`."""
    return min(n & -n, most)


def _tile(
    layout: int, target: Tensor, most: int, patch: int, unit: tuple[int, int], yxc: bool
) -> tuple[int, int, int, int]:
    """Shape `(R, G, V)` of a tile, V at most `most`, and how many tiles a sample (or a listed row)
    has."""
    _, channels, height, width = target.shape
    tokens = math.prod(scale_of((height, width), (patch, patch)))
    if layout == MAP:
        rows, groups = power_of_two(patch, 4096), power_of_two(tokens, 256)
        groups = min(groups, max(_TILE // rows, 1))
        return rows, groups, 1, channels * patch * cdiv(tokens, groups)
    covered = unit[0] % patch == 0 and unit[1] % patch == 0
    if layout == IMAGE:
        vector, numbers, lines = _divisor(unit[1], 32), width, channels * height
    else:
        vector, numbers = _divisor(patch, 32), channels * patch * patch
        if yxc or patch == 1:
            vector = _divisor(numbers, 32) if covered or layout == LISTED else 1
        elif not covered and layout != LISTED:
            vector = _divisor(vector | unit[1], 32)
        lines = 1 if layout == LISTED else tokens
    block = numbers & -numbers
    if (
        block < 64 or layout == LISTED
    ):  # rows of a list are short; idle lanes cost less than more tiles
        block = power_of_two(numbers, 1 << 20)
    block = min(block, _TILE if layout == LISTED else 256)
    vector = min(vector, block, most)
    rows = power_of_two(lines, max(_TILE // block, 1))
    return rows, block // vector, vector, cdiv(lines, rows) * cdiv(numbers, block)


def _common_step(
    vector: int,
    layout: int,
    patch: int,
    channels_innermost: bool,
    pred: PredictionStrides,
    grad: PredictionStrides,
    target: tuple[int, ...],
    width: int,
) -> int:
    """`STEP` of `loss_pass`.

    Args:
        vector: neighbours that a thread loads at a time.
        layout: of the prediction.
        patch: side of its tokens.
        target: strides of `(B, C, H, W)`.
        width: of the target.
    """
    if vector == 1:
        return 1
    outer = [target[0], target[2], target[3 if channels_innermost else 1]]
    for of in (pred, grad):
        outer += [of.batch, of.token_y, width if layout == IMAGE else of.token_x]
        if not channels_innermost:
            outer.append(of.channel)
        if patch > 1:
            outer += [of.y, of.x] if channels_innermost else [of.y]
    known = all(s % 16 == 0 for s in outer)
    return 1 if known or any(s % vector for s in outer) else vector


def masked_loss(pred, target, mask, index, mean, std, spec, with_grad, grad=None):
    check_names(spec)
    loss, grad, scale_out = empty_loss(pred, target, index, spec, with_grad, grad)
    dtype = loss.dtype
    batch, channels, height, width = target.shape
    patch, device, each = (
        prediction_patch(pred.shape, target.shape),
        pred.device,
        spec.reduction == "none",
    )
    mask, index = contiguous(mask, index)
    scored = mask
    if spec.norm != "none" and index is not None:  # a list may name units that are not masked
        scored = listed_units(index, batch, *scale_of((height, width), (patch, patch)))
    if spec.norm == "window":
        target = window_normalized(target, spec.norm_side, spec.norm_eps, std, dtype, scored)
    elif spec.norm == "patch":
        target = patch_normalized(target, spec.norm_side, spec.norm_eps, mean, std, dtype, scored)
    if spec.norm != "none":  # done already
        mean = std = None
    mean, std = contiguous(mean, std)
    bytes_in = target.dtype == torch.uint8
    is_affine = bytes_in or std is not None
    results = batch if each else 1
    scaled = with_grad and pred.dtype != torch.float16
    scale = torch.empty(results, dtype=torch.float64, device=device)
    affine = torch.empty(2 * channels if is_affine else 0, dtype=dtype, device=device)
    unit = scale_of((height, width), mask.shape[1:])
    units = mask.shape[1] * mask.shape[2]
    layout, rows, per_sample, tokens_in_row = TOKENS, batch, 0, width // patch
    numbers, slopes = pred, grad if with_grad else pred
    if index is not None:
        numbers, slopes = (t.reshape(-1, pred.shape[-1]) for t in (numbers, slopes))
        layout, rows, tokens_in_row = LISTED, index.numel(), 0
        per_sample = index.shape[1] if index.dim() == 2 else 0
        unit = patch, patch
        units = math.prod(scale_of((height, width), unit))
    elif pred.dim() == 4:
        layout = IMAGE if patch == 1 else MAP
    # 16 bytes of the prediction, or 32 beside a wider target, which takes fewer registers.
    most = (32 if target.element_size() > pred.element_size() else 16) // pred.element_size()
    r, g, v, pieces = _tile(layout, target, most, patch, unit, spec.order == "yxc")
    split = max(v * target.element_size() // 16, 1)
    partial = torch.empty(rows * pieces, dtype=torch.float64, device=device)
    listed_flat = layout == LISTED and not per_sample
    with on_device_of(pred):
        counts, n, known = mask, 0, 0
        if layout == LISTED:
            n = rows if listed_flat else 0
            known = 0 if n else rows // max(results, 1)
        elif spec.reduction != "sum":
            counts, n = masked_units(mask, results)
        if results:
            scales[(results,)](
                counts, index, scale, scale_out, mean, std, affine,
                n, known, batch, per_sample, units, unit[0] * unit[1], bits_of(spec.eps),
                bits_of(spec.factor),
                LISTED=layout == LISTED, EACH=each, COUNTS=n > 0, MEAN=spec.reduction != "sum",
                CHANNELS=channels, STORE=scale_out.numel() > 0, AFFINE=is_affine,
                UNIT=255.0 if bytes_in else 1.0, STATS=std is not None, BLOCK=1024, num_warps=4, **OPTIONS,
            )  # fmt: skip
        if partial.numel():
            strides = [
                prediction_strides(t.stride(), channels, patch, tokens_in_row, spec.order)
                for t in (numbers, slopes)
            ]
            channels_innermost = layout != IMAGE and (patch == 1 or spec.order == "yxc")
            step = _common_step(
                v, layout, patch, channels_innermost, *strides, target.stride(), width
            )
            loss_pass[(rows * pieces,)](
                numbers, *strides[0], slopes, *strides[1], target, *target.stride(),
                affine, mask, index, scale, partial,
                height, width, *unit, width // unit[1], batch, per_sample, units, pieces, bits_of(spec.beta),
                LAYOUT=layout, YXC=spec.order == "yxc", AFFINE=is_affine, KIND=spec.kind,
                WITH_GRAD=with_grad, SCALED=scaled, EACH=int(each),
                COVERED=unit[0] % patch == 0 and unit[1] % patch == 0,
                CHANNELS=channels, P=patch,
                COMPUTE=tl.float64 if dtype == torch.float64 else tl.float32,
                R=r, G=g, V=v, SPLIT=split,
                STEP=step, CHANNELS_INNERMOST=channels_innermost, num_warps=4, **OPTIONS,
            )  # fmt: skip
        if results:
            by_list = each and listed_flat
            n = partial.numel() if by_list else partial.numel() // results
            finish[(results,)](
                partial, index, scale, loss, n, pieces, batch, per_sample, units,
                FILTER=by_list, BLOCK=1024, num_warps=4, **OPTIONS,
            )  # fmt: skip
    return loss, grad, scale_out


def masked_loss_(pred: Tensor, *args) -> tuple[Tensor, Tensor]:
    """The same with the gradient written into `pred`."""
    loss, _, scale = masked_loss(pred, *args, True, grad=pred)
    return loss, scale


@triton.jit(do_not_specialize=["step", "pieces"])
def _scale_rows(
    grad, factor, step, numbers, pieces, COMPUTE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row, piece = program // pieces, program % pieces
    number = tl.load(factor + row * step)
    if number == 1:
        return
    grad += row * numbers
    for block in range(piece, tl.cdiv(numbers, BLOCK), pieces):
        at = block * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(grad + at, mask=at < numbers, other=0.0).to(COMPUTE)
        store(grad + at, value * number.to(COMPUTE), at < numbers)


def scale_gradient_(grad: Tensor, factor: Tensor) -> None:
    """Programs read the factor from GPU memory, so the host need not wait for it, and return at once
    where it is 1, as it nearly always is."""
    rows = factor.numel()
    numbers = grad.numel() // max(rows, 1)
    pieces = min(cdiv(numbers, _TILE), max(_PROGRAMS // max(rows, 1), 1))
    if pieces:
        with on_device_of(grad):
            _scale_rows[(rows * pieces,)](
                grad, factor, factor.stride(0) if factor.dim() else 0, numbers, pieces,
                COMPUTE=compute_type(grad.dtype), BLOCK=_TILE, num_warps=4, **OPTIONS,
            )  # fmt: skip
