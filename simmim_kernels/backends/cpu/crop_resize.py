"""Boxes of images resized into a batch: csrc/cpu/crop_resize.cpp."""

from __future__ import annotations

import torch

from simmim_kernels.backends._crops import check_boxes
from simmim_kernels.backends.cpu import kernels, threads


def crop_resize(boxes, images, flip, height, width, interpolation, antialias, dtype):
    # A copy, which nobody changes between the check and the kernel.
    boxes = boxes.clone(memory_format=torch.contiguous_format)
    check_boxes(boxes, images)
    shape = boxes.shape[0], images[0].shape[-3], height, width
    out = torch.empty(shape, dtype=dtype, device="cpu")
    flip = None if flip is None else flip.contiguous()
    cubic = interpolation == "bicubic"
    kernels.crop_resize(images, boxes, flip, cubic, antialias, out, threads())
    return out
