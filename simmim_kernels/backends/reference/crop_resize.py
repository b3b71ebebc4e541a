"""Boxes of images resized to one size: the separable kernel in float64, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends._crops import check_boxes


def _kernel(t: Tensor, cubic: bool, antialias: bool) -> Tensor:
    """The triangle, or the cubic convolution kernel with a = -0.5, that of PyTorch's resize without
    antialiasing with a = -0.75."""
    t = t.abs()
    if not cubic:
        return (1 - t).clamp(min=0)
    a = -0.5 if antialias else -0.75
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * a
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))


def _taps(
    start: Tensor, length: Tensor, extent: int, out: int, cubic: bool, antialias: bool
) -> tuple[Tensor, Tensor]:
    """Which pixels of an axis each output is made of, and their weights, both `(out, K)`.

    Args:
        start, length: of the box, 0-dimensional.
        extent: pixels of the whole axis.
    """
    radius = 2 if cubic else 1
    scale = length.double() / out
    stretch = scale.clamp(min=1) if antialias else torch.ones_like(scale)
    center = (torch.arange(out, device=start.device).double() + 0.5) * scale - 0.5
    first = torch.ceil(center - radius * stretch).long()
    most = 2 * radius * max(extent / out if antialias else 1, 1)
    taps = first[:, None] + torch.arange(int(most) + 1, device=start.device)
    weight = _kernel((taps - center[:, None]) * (1 / stretch), cubic, antialias)
    if antialias:  # the box ends at its borders; without, its last pixels go on for ever
        weight = torch.where((taps >= 0) & (taps < length), weight, 0.0)
        weight = weight / weight.sum(1, keepdim=True)
    return start + torch.minimum(taps.clamp(min=0), length - 1), weight


def _resample(x: Tensor, taps: Tensor, weight: Tensor) -> Tensor:
    """`(C, out, W)` of `(C, H, W)`; what weighs nothing adds nothing, NaN and infinity too."""
    total = torch.zeros_like(x[:, :1])
    for k in range(taps.shape[1]):
        w = weight[:, k, None]
        total = total + torch.where(w == 0, 0.0, w * x[:, taps[:, k]])
    return total


def crop_resize(
    boxes: Tensor,
    images: list[Tensor],
    flip: Tensor | None,
    height: int,
    width: int,
    interpolation: str,
    antialias: bool,
    dtype: torch.dtype,
) -> Tensor:
    if boxes.device.type == "cpu":
        check_boxes(boxes, images)
    cubic, made = interpolation == "bicubic", []
    for sample, image in enumerate(images[0] if images[0].dim() == 4 else images):
        rows, columns = image.shape[1:]
        top, left, box_h, box_w = boxes[sample]
        top, left = top.clamp(0, rows - 1), left.clamp(0, columns - 1)
        box_h = torch.minimum(box_h.clamp(min=1), rows - top)
        box_w = torch.minimum(box_w.clamp(min=1), columns - left)
        out = _resample(image.double(), *_taps(top, box_h, rows, height, cubic, antialias))
        out = _resample(out.mT, *_taps(left, box_w, columns, width, cubic, antialias)).mT
        made.append(out if flip is None else torch.where(flip[sample], out.flip(-1), out))
    shape = len(boxes), images[0].shape[-3], height, width
    out = torch.stack(made) if made else boxes.new_empty(shape, dtype=torch.float64)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        out = out.round().clamp(limits.min, limits.max)
    elif images[0].dtype == torch.uint8:
        out = out / 255
    return out.to(dtype)
