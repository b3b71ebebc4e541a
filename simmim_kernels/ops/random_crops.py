"""Random boxes of images: a pure function of (seed, epoch, sample id) and the image's size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simmim_kernels._numbers import to_float, to_sides
from simmim_kernels.ops._check import has_dims, is_tensor, same_device
from simmim_kernels.ops._define import define
from simmim_kernels.ops._sampling import TAGS, checked_epoch, signed_seed


def _check(ids, sizes, least_scale, most_scale, least_ratio, most_ratio, flip, seed, epoch) -> None:
    is_tensor("ids", ids, (torch.int64,))
    has_dims("ids", ids, {1: "(B,)"})
    is_tensor("sizes", sizes, (torch.int64,))
    if sizes.shape != (ids.shape[0], 2):
        raise ValueError(
            f"sizes has shape {tuple(sizes.shape)}; allowed: (H, W), or ({ids.shape[0]}, 2) for "
            f"{ids.shape[0]} ids"
        )
    same_device(ids=ids, sizes=sizes)
    _check_range("scale", least_scale, most_scale)
    _check_range("ratio", least_ratio, most_ratio)
    if not 0 <= flip <= 1:
        raise ValueError(f"flip is {flip}; allowed: a probability, 0 to 1")
    checked_epoch(epoch)


def _check_range(name: str, least: float, most: float) -> None:
    if not 0 < least <= most < math.inf:
        raise ValueError(f"{name} is ({least}, {most}); allowed: two positive numbers that rise")


def _fake(ids, sizes, least_scale, most_scale, least_ratio, most_ratio, flip, seed, epoch):
    return (ids.new_empty((ids.shape[0], 4)), ids.new_empty((ids.shape[0],), dtype=torch.bool))


_random_crops = define(
    "random_crops(Tensor ids, Tensor sizes, float least_scale, float most_scale, float least_ratio,"
    " float most_ratio, float flip, SymInt? seed, SymInt epoch) -> (Tensor boxes, Tensor flips)",
    module="random_crops",
    check=_check,
    fake=_fake,
    tags=TAGS,
)


def random_crops(
    ids: Tensor,
    sizes: Tensor | tuple[int, int],
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float] | None,
    *,
    flip: float = 0.5,
    seed: int | None = None,
    epoch: int = 0,
) -> tuple[Tensor, Tensor]:
    """A random box of every image, and whether it is mirrored, for `crop_resize`.

    The Inception crop of torchvision's `RandomResizedCrop`: the box's share of the image's area is
    uniform in `scale`, the logarithm of its width over its height uniform in that of `ratio`, its
    place uniform; both sides are rounded to pixels. Of ten such draws the first that fits is taken;
    where none does, the largest central box whose ratio is allowed.

    Draw `k` takes the four words of the Philox4x32-10 block with key `(seed_lo, seed_hi)` and counter
    `(0x83000000 + k, epoch, id_lo, id_hi)` for area, ratio, top and left; `k = 10` decides on
    mirroring. The box is therefore the same for every batch size, order of samples, number of workers
    or ranks, and the same bits on every backend.

    Args:
        ids: `int64 (B,)`, the samples' numbers in the data set.
        sizes: `int64 (B, 2)`, rows and columns of every image, or one `(H, W)` for all.
        size: `(H, W)` that the boxes will be resized to: it gives the ratio where `ratio` is None.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width over height. None: that of `size`, so that nothing is
            stretched; with `scale=(1, 1)` that is the largest central box of this shape.
        flip: probability of mirroring.
        seed: any 64-bit number; `None` draws one from PyTorch's default CPU generator.
        epoch: `0 .. 2^32 - 1`; another epoch gives other boxes.

    Returns:
        boxes: `int64 (B, 4)`: top, left, height, width, in pixels.
        flips: `bool (B,)`.

    Raises:
        TypeError: ids or sizes that are not int64; other numbers of the wrong type.
        ValueError: a size, scale, ratio, probability, seed or epoch out of range. A size on a GPU is
            not looked at but brought into the range.
        RuntimeError: ids and sizes on different devices; no seed while a CUDA graph is captured.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015; torchvision's parameters.
    """
    is_tensor("ids", ids, (torch.int64,))
    has_dims("ids", ids, {1: "(B,)"})
    height, width = to_sides("size", size)
    if height < 1 or width < 1:
        raise ValueError(f"size is ({height}, {width}); allowed: two positive whole numbers")
    if not isinstance(sizes, Tensor):
        try:
            rows, columns = to_sides("sizes", sizes)
        except TypeError as error:
            raise TypeError(f"{error}; sizes of several images are a tensor int64 (B, 2)") from None
        if not (0 < rows < 1 << 31 and 0 < columns < 1 << 31):
            raise ValueError(f"sizes is ({rows}, {columns}); allowed: 1 to 2^31 - 1 each")
        sizes = torch.stack((ids.new_full(ids.shape, rows), ids.new_full(ids.shape, columns)), 1)
    scale = _range("scale", scale)
    ratio = (width / height,) * 2 if ratio is None else _range("ratio", ratio)
    seed, epoch = signed_seed(seed), checked_epoch(epoch)
    return _random_crops(ids, sizes, *scale, *ratio, to_float("flip", flip), seed, epoch)


def _range(name: str, value: object) -> tuple[float, float]:
    try:
        least, most = value if not isinstance(value, str | bytes) else ()
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; allowed: two numbers") from None
    return to_float(name, least), to_float(name, most)
