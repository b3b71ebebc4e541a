"""Masking of pixels: the masked units of an image become one colour."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels._numbers import to_float
from simmim_kernels.backends._results import empty_image, target_dtype
from simmim_kernels.grid import whole_scale
from simmim_kernels.masks import PatchMask, mask_grid
from simmim_kernels.ops._channels import (
    Channels,
    channel_stats,
    check_channel_stats,
    check_channels,
)
from simmim_kernels.ops._check import FLOATS, PIXELS, has_dims, is_mask, is_tensor, same_device
from simmim_kernels.ops._define import apply, define, differentiate, first_order, needs_grad


def _check_units(name: str, image: Tensor, mask: Tensor) -> None:
    has_dims(name, image, {4: "(B, C, H, W)"})
    is_mask(mask, image.shape[0])
    whole_scale(f"{name} height", image.shape[2], "mask grid height", mask.shape[1])
    whole_scale(f"{name} width", image.shape[3], "mask grid width", mask.shape[2])
    same_device(**{name: image, "mask": mask})


def _check_forward(image, mask, fill, value, mean, std, dtype) -> None:
    is_tensor("image", image, PIXELS)
    _check_units("image", image, mask)
    channels = image.shape[1]
    if fill is not None:
        is_tensor("fill", fill, FLOATS)
        if fill.shape != (channels,):
            raise ValueError(
                f"fill has shape {tuple(fill.shape)}; allowed: a number, or ({channels},)"
            )
    check_channel_stats(image, mean, std)
    if dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; allowed: float32, float64, bfloat16, float16")
    same_device(image=image, fill=fill, mean=mean, std=std)


def _check_backward(grad, mask, std, image_dtype, fill_dtype) -> None:
    is_tensor("grad", grad, FLOATS)
    _check_units("grad", grad, mask)
    check_channels("std", std, grad.shape[1])
    same_device(grad=grad, std=std)


def _fake_backward(grad, mask, std, image_dtype, fill_dtype):
    image = empty_image(grad, image_dtype) if image_dtype else grad.new_empty((0,))
    return image, grad.new_empty((grad.shape[1] if fill_dtype else 0,), dtype=fill_dtype)


_forward = define(
    "mask_image_forward(Tensor image, Tensor mask, Tensor? fill, float value, Tensor? mean,"
    " Tensor? std, ScalarType dtype) -> Tensor",
    module="mask_image",
    check=_check_forward,
    fake=lambda image, mask, fill, value, mean, std, dtype: empty_image(image, dtype),
    gradient=lambda *args: apply(_MaskImage, *args),
)

# A dtype of None asks for no gradient of that input; its place is then an empty tensor.
_backward = define(
    "mask_image_backward(Tensor grad, Tensor mask, Tensor? std, ScalarType? image_dtype,"
    " ScalarType? fill_dtype) -> (Tensor, Tensor)",
    module="mask_image",
    check=_check_backward,
    fake=_fake_backward,
)


class _MaskImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, mask, fill, value, mean, std, dtype):
        ctx.save_for_backward(mask, std)
        ctx.image_dtype = image.dtype
        ctx.fill_dtype = None if fill is None else fill.dtype
        return _forward(image, mask, fill, value, mean, std, dtype)

    @first_order
    def backward(ctx, grad):
        mask, std = ctx.saved_tensors
        wants_image, _, wants_fill, *_ = ctx.needs_input_grad
        image_dtype = ctx.image_dtype if wants_image else None
        fill_dtype = ctx.fill_dtype if wants_fill else None
        d_image, d_fill = _backward(grad, mask, std, image_dtype, fill_dtype)
        return d_image if wants_image else None, None, d_fill if wants_fill else None, *(None,) * 4


def mask_image(
    image: Tensor,
    mask: PatchMask | Tensor,
    fill: float | Tensor = 0.0,
    *,
    mean: Channels = None,
    std: Channels = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Give the masked units of an image one colour, for encoders that see pixels.

        out = where(masked, fill, (value - mean) / std)

    where `value` is `image / 255` of a uint8 image and `image` itself of any other, and `mean` and
    `std` are left out where they are not given.

    It selects and does not multiply: a NaN or Inf in a masked pixel is gone, in the value and in
    every gradient. The image is never changed in place.

    Args:
        image: `(B, C, H, W)`, any strides; uint8, uint16, int16 or a floating type.
        mask: `PatchMask` or `bool (B, gh, gw)` on a grid of which the image is a whole multiple;
            the pixel grid is one.
        fill: the colour: a number, or a learnable tensor, `(C,)` or `()`. It is not normalised.
        mean, std: one number a channel, `std` positive; sequences or float tensors `(C,)`; both or
            neither.
        dtype: floating type of the result; default: that of `image`, float32 for integers. Autocast
            does not change it.

    Returns:
        A tensor of `image`'s shape, channels-last where `image` is, else contiguous.

    Gradients: for `image`, divided by `std`, zero where masked; for a tensor `fill`, the sum over the masked pixels
    of each channel, in float64 and in a fixed order.

    Raises:
        TypeError: wrong dtypes.
        ValueError: shapes that don't fit; one of `mean` and `std` without the other.
        RuntimeError: tensors on different devices; a second derivative.

    Source: SimMIM (Xie et al., CVPR 2022) masks tokens; masked pixels are what the same objective
    needs of a convolutional encoder.
    """
    is_tensor("image", image, PIXELS)
    if isinstance(fill, Tensor) and (fill.is_floating_point() or fill.dim()):
        colour, value = fill if fill.dim() else fill.expand(image.shape[1:2]), 0.0
    else:
        colour, value = None, to_float("fill", fill)
    mean, std = channel_stats(image, mean, std)
    if dtype is None:
        dtype = target_dtype(image)
    elif not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {type(dtype).__name__}")
    args = (image, mask_grid(mask), colour, value, mean, std, dtype)
    if needs_grad(image, colour):
        return differentiate(_MaskImage, *args)
    return _forward(*args)
