"""Boxes of images of any sizes, resized to one size and put into a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simmim_kernels._numbers import to_bool, to_sides
from simmim_kernels.ops._check import FLOATS, PIXELS, has_dims, is_tensor, same_device
from simmim_kernels.ops._define import define, needs_grad

INTERPOLATIONS = ("bilinear", "bicubic")


def _check(boxes, images, flip, height, width, interpolation, antialias, dtype) -> None:
    is_tensor("boxes", boxes, (torch.int64,))
    batch = _check_images(images)
    if boxes.shape != (batch, 4):
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)}; allowed for {batch} images: ({batch}, 4), top, "
            "left, height, width"
        )
    if flip is not None:
        is_tensor("flip", flip, (torch.bool,))
        if flip.shape != (batch,):
            raise ValueError(f"flip has shape {tuple(flip.shape)}; allowed: ({batch},)")
    same_device(images=images[0], boxes=boxes, flip=flip)
    if height < 1 or width < 1 or height * width >= 1 << 31:
        raise ValueError(
            f"size is ({height}, {width}); allowed: positive numbers, fewer than 2^31 pixels"
        )
    if interpolation not in INTERPOLATIONS:
        allowed = " or ".join(INTERPOLATIONS)
        raise ValueError(f"interpolation is {interpolation!r}; allowed: {allowed}")
    own = images[0].dtype
    if dtype not in (own, *FLOATS):
        raise TypeError(f"dtype is {dtype}; allowed: that of the images, {own}, or a floating type")


def _check_images(images: list[Tensor]) -> int:
    """Checks a batch in a list of its own, or a list of images; how many they are."""
    if not images:
        raise ValueError("images is an empty list, of which the channels are not known")
    first = images[0]
    if len(images) == 1 and isinstance(first, Tensor) and first.dim() == 4:
        is_tensor("images", first, PIXELS)
        if first.shape[0] and not first.shape[2] * first.shape[3]:
            raise ValueError(f"images has shape {tuple(first.shape)}; allowed: at least one pixel")
        return first.shape[0]
    for number, image in enumerate(images):
        name = f"images[{number}]"
        is_tensor(name, image, PIXELS)
        has_dims(name, image, {3: "(C, H, W) in a list, or one batch (B, C, H, W)"})
        if image.dtype != first.dtype:
            raise TypeError(f"{name} has dtype {image.dtype}, but images[0] has {first.dtype}")
        if image.shape[0] != first.shape[0]:
            raise ValueError(
                f"{name} has {image.shape[0]} channels, but images[0] has {first.shape[0]}"
            )
        if not image.shape[1] * image.shape[2]:
            raise ValueError(f"{name} has shape {tuple(image.shape)}; allowed: at least one pixel")
        if image.device != first.device:
            raise RuntimeError(f"{name} is on {image.device}, but images[0] is on {first.device}")
    return len(images)


def _fake(boxes, images, flip, height, width, interpolation, antialias, dtype):
    return boxes.new_empty((boxes.shape[0], images[0].shape[-3], height, width), dtype=dtype)


_crop_resize = define(
    "crop_resize(Tensor boxes, Tensor[] images, Tensor? flip, SymInt height, SymInt width,"
    " str interpolation, bool antialias, ScalarType dtype) -> Tensor",
    module="crop_resize",
    check=_check,
    fake=_fake,
)


def crop_resize(
    images: Tensor | Sequence[Tensor],
    boxes: Tensor,
    size: tuple[int, int],
    *,
    flip: Tensor | None = None,
    interpolation: str = "bilinear",
    antialias: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Cut a box out of every image, resize it to `size`, and mirror it where asked.

    Each axis of a box of `n` pixels becomes `m` numbers, of which number `i` is

        out[i] = sum_j w[i,j] x[j] / sum_j w[i,j],   w[i,j] = k((j + 0.5 - (i + 0.5) n/m) / s)

    over the pixels `j` of the box alone, where `k` is the triangle (bilinear) or the cubic kernel with
    `a = -0.5` (bicubic) and `s = max(n/m, 1)`, as in Pillow and in torchvision's `resized_crop`. The
    definition computes in float64 and rounds once, half to even; a uint8 result is never more than
    one level away from that, another one as near as PyTorch's own in that type.

    Args:
        images: `(B, C, H, W)`, or a list of `B` tensors `(C, H, W)` of any sizes, of one type and
            number of channels; any strides, read where they lie; uint8, uint16, int16 or a floating
            type.
        boxes: `int64 (B, 4)`: top, left, height, width in pixels; those of `random_crops`, for
            instance.
        size: `(H, W)` of the result.
        flip: `bool (B,)`, which results are mirrored left to right.
        interpolation: `"bilinear"` or `"bicubic"`.
        antialias: without it `s = 1`, the cubic kernel has `a = -0.75` and pixels at the box's border
            go on beyond it, as in `torch.nn.functional.interpolate`.
        dtype: of the result: that of the images, which is the default, or a floating type, for which
            a uint8 image is divided by 255, as in every op. Autocast does not change it.

    Returns:
        `(B, C, *size)`, contiguous.

    Raises:
        TypeError: wrong or mixed types.
        ValueError: shapes that don't fit, mixed numbers of channels, an empty list; a box without
            pixels or beyond its image: on a GPU, where looking would be a synchronisation, such a box
            is cut to the image instead. Also images that require a gradient, of which there is none.
        RuntimeError: tensors on different devices.
    """
    if isinstance(images, Tensor):
        listed = [images]
        has_dims("images", images, {4: "(B, C, H, W) or a list of (C, H, W)"})
    elif isinstance(images, Sequence) and all(isinstance(image, Tensor) for image in images):
        listed = list(images)
        if len(listed) == 1:
            has_dims("images[0]", listed[0], {3: "(C, H, W)"})
    else:
        raise TypeError(f"images must be a tensor or a list of tensors, got {_described(images)}")
    if needs_grad(*listed):
        raise ValueError("images requires a gradient, and crop_resize has none: detach it first")
    height, width = to_sides("size", size)
    if not isinstance(interpolation, str):
        raise TypeError(f"interpolation must be a text, got {type(interpolation).__name__}")
    antialias = to_bool("antialias", antialias)
    if dtype is None:
        dtype = listed[0].dtype if listed else torch.uint8
    elif not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {type(dtype).__name__}")
    return _crop_resize(boxes, listed, flip, height, width, interpolation, antialias, dtype)


def _described(images: object) -> str:
    kind = type(images).__name__
    if not isinstance(images, Sequence) or isinstance(images, str):
        return kind
    return (
        f"{kind} that holds {next(type(i).__name__ for i in images if not isinstance(i, Tensor))}"
    )
