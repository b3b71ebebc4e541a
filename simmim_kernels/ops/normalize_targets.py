"""Sliding-window normalisation of the image, the target of SimMIM with SwinV2."""

from __future__ import annotations

from torch import Tensor

from simmim_kernels.ops._channels import Channels, channel_stats, check_channel_stats
from simmim_kernels.ops._check import PIXELS, has_dims, is_tensor, same_device
from simmim_kernels.ops._define import define
from simmim_kernels.ops._target import fake_target, refuse_gradient
from simmim_kernels.target_norm import check_eps, check_window

_WIDEST = (1 << 31) - 1  # no image is as large, and a window gains nothing past its ends


def check(image: Tensor, window: int, eps: float, mean: Tensor | None, std: Tensor | None) -> None:
    is_tensor("image", image, PIXELS)
    has_dims("image", image, {4: "(B, C, H, W)"})
    check_window(window)
    check_eps(eps)
    check_channel_stats(image, mean, std)
    same_device(image=image, mean=mean, std=std)


_normalize_targets = define(
    "normalize_targets(Tensor image, SymInt window, float eps, Tensor? mean, Tensor? std) -> Tensor",
    module="normalize_targets",
    check=check,
    fake=fake_target,
)


def normalize_targets(
    image: Tensor,
    window: int = 47,
    eps: float = 1e-6,
    *,
    mean: Channels = None,
    std: Channels = None,
) -> Tensor:
    """Normalise every pixel by the mean and variance of the square around it.

        m = E[x],  v = max(0, (E[x^2] - m^2) * n / (n - 1)),  out = (x - m) / sqrt(v + eps)

    per channel, where E runs over the `window x window` square around the pixel, cut at the image
    border, and `n` is the number of pixels in the cut square. Where `n` is 1 (window 1, or an image
    of one pixel) the variance of the sample is undefined (0 * inf in the published arithmetic);
    `v` is 0 there, so `out` is 0, or NaN with `eps=0`.

    The cost per pixel does not depend on `window`. Sums are held in float64, so that flat regions,
    where E[x^2] - m^2 cancels, keep their digits, beside numbers of any size too: where an image
    holds fractions beyond `2^25 sqrt(eps / side)` (2200 for 224 pixels), CPUs keep sums in two parts
    at three to four times the cost, and GPUs add such numbers one by one, at a cost that grows with the
    window. A NaN or Inf makes NaN of the pixels whose square holds it and leaves all others as they
    are.

    Args:
        image: `(B, C, H, W)`, any strides; uint8, uint16, int16 or a floating type. uint8 is
            divided by 255 first.
        window: side of the square in pixels, odd; may be larger than the image.
        eps: added to the variance.
        mean, std: one number a channel, `std` positive: sequences or float tensors `(C,)`, applied
            first. Both or neither.

    Returns:
        A tensor of `image`'s shape and type, float32 for integers; channels-last where `image` is.

    Raises:
        TypeError: wrong dtypes.
        ValueError: an even window, a negative `eps`, shapes that don't fit, or an `image` that
            requires a gradient: targets have none.
        RuntimeError: tensors on different devices.

    Source: `norm_targets` in Swin-Transformer's `models/simmim.py`.
    """
    refuse_gradient(image)
    if mean is not None or std is not None:
        is_tensor("image", image, PIXELS)
        mean, std = channel_stats(image, mean, std)
    window = min(check_window(window), _WIDEST)
    return _normalize_targets(image, window, check_eps(eps), mean, std)
