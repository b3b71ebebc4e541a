"""Per-patch normalisation of the image, the target of MAE."""

from __future__ import annotations

from torch import Tensor

from simmim_kernels._numbers import to_int
from simmim_kernels.grid import whole_scale
from simmim_kernels.ops._channels import Channels, channel_stats, check_channel_stats
from simmim_kernels.ops._check import PIXELS, has_dims, is_tensor, same_device
from simmim_kernels.ops._define import define
from simmim_kernels.ops._target import fake_target, refuse_gradient
from simmim_kernels.target_norm import check_eps


def check(image: Tensor, patch: int, eps: float, mean: Tensor | None, std: Tensor | None) -> None:
    is_tensor("image", image, PIXELS)
    has_dims("image", image, {4: "(B, C, H, W)"})
    whole_scale("image height", image.shape[2], "patch", patch)
    whole_scale("image width", image.shape[3], "patch", patch)
    check_eps(eps)
    check_channel_stats(image, mean, std)
    same_device(image=image, mean=mean, std=std)


_normalize_patches = define(
    "normalize_patches(Tensor image, SymInt patch, float eps, Tensor? mean, Tensor? std) -> Tensor",
    module="normalize_patches",
    check=check,
    fake=fake_target,
)


def normalize_patches(
    image: Tensor, patch: int, eps: float = 1e-6, *, mean: Channels = None, std: Channels = None
) -> Tensor:
    """Normalise every patch by its own mean and variance, over its pixels and channels.

        out = (x - m) / sqrt(v + eps),  m = mean(patch),  v = sum((x - m)^2) / (n - 1)

    with `n = C * patch * patch`. Where `n` is 1 the variance of the sample is undefined; `v` is 0
    there, so `out` is 0, or NaN with `eps=0`. The image stays an image: nothing is rearranged.

    Args:
        image: `(B, C, H, W)`, any strides; uint8, uint16, int16 or a floating type. uint8 is
            divided by 255 first.
        patch: side of the square patches in pixels; divides `H` and `W`.
        eps: added to the variance.
        mean, std: one number a channel, `std` positive: sequences or float tensors `(C,)`, applied
            first. Both or neither.

    Returns:
        A tensor of `image`'s shape and type, float32 for integers; channels-last where `image` is.
        Sums are held in float64.

    Raises:
        TypeError: wrong dtypes.
        ValueError: a patch that does not divide the image, a negative `eps`, shapes that don't fit,
            or an `image` that requires a gradient: targets have none.
        RuntimeError: tensors on different devices.

    Source: `norm_pix_loss` in MAE's `models_mae.py`.
    """
    refuse_gradient(image)
    if mean is not None or std is not None:
        is_tensor("image", image, PIXELS)
        mean, std = channel_stats(image, mean, std)
    return _normalize_patches(image, to_int("patch", patch), check_eps(eps), mean, std)
