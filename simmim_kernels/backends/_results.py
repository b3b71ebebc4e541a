"""Makes kernels' inputs contiguous and allocates their results."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._loss_spec import LossSpec


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple([None if t is None else t.contiguous() for t in tensors])


def memory_format(image: Tensor) -> torch.memory_format:
    """The memory format of an image-shaped result: channels-last where `image` is, else contiguous."""
    if image.is_contiguous() or not image.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def target_dtype(image: Tensor) -> torch.dtype:
    """The floating type of results for `image`: its own, or float32 for integers."""
    return image.dtype if image.dtype.is_floating_point else torch.float32


def empty_image(image: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty result for `image`, of its device, shape and memory format."""
    layout = memory_format(image)
    return torch.empty(image.shape, dtype=dtype, device=image.device, memory_format=layout)


def empty_lists(
    ids: Tensor, grid_h: int, grid_w: int, count: int, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty masks with `count` masked units a sample, `bool (B, grid_h, grid_w)`, and their index lists,
    `int32 (B, count)` and `(B, grid_h * grid_w - count)`."""
    batch, units, device = ids.shape[0], grid_h * grid_w, ids.device
    return (
        torch.empty((batch, grid_h, grid_w), dtype=torch.bool, device=device),
        torch.empty((batch, count), dtype=torch.int32, device=device),
        torch.empty((batch, units - count), dtype=torch.int32, device=device),
    )


def empty_gradients(
    grad: Tensor, *wanted: tuple[tuple[int, ...], torch.dtype | None]
) -> tuple[Tensor, ...]:
    """Empty gradients on the device of `grad`, each of a shape and type; one without a type is not
    wanted and gets no elements."""
    return tuple(
        [
            torch.empty(shape if dtype else 0, dtype=dtype or grad.dtype, device=grad.device)
            for shape, dtype in wanted
        ]
    )


def wanted(gradients: tuple[Tensor, ...], *dtypes: torch.dtype | None) -> list[Tensor | None]:
    """What of `empty_gradients` is wanted, None in the place of what is not."""
    return [t if dtype else None for t, dtype in zip(gradients, dtypes, strict=True)]


def empty_loss(
    pred: Tensor,
    target: Tensor,
    index: Tensor | None,
    spec: LossSpec,
    with_grad: bool,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty results of `masked_loss`: the loss, the gradient of `pred` (`grad` where that is given), and
    the scale that a float16 gradient is still to be multiplied by. Without `with_grad` the last two
    have no elements."""
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    shape, device = (target.shape[0],) if spec.reduction == "none" else (), pred.device
    if not with_grad:
        grad = torch.empty(0, dtype=pred.dtype, device=device)
    elif grad is None and index is None:
        grad = torch.empty_like(pred)
    elif grad is None:
        grad = torch.empty(pred.shape, dtype=pred.dtype, device=device)
    unscaled = with_grad and pred.dtype == torch.float16
    scale = torch.empty(shape if unscaled else 0, dtype=dtype, device=device)
    return torch.empty(shape, dtype=dtype, device=device), grad, scale


def as_rows(
    pred: Tensor, grad: Tensor | None, index: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """A prediction and its gradient as the compiled losses take them: rows where units are listed."""
    if index is None:
        return pred, grad
    rows = pred.reshape(-1, pred.shape[-1])
    return rows, None if grad is None else grad.view(rows.shape)
