"""The largest numbers that running sums of window normalisation can take."""

from __future__ import annotations

import math

from torch import Tensor


def running_limit(image: Tensor, eps: float) -> float:
    """The largest magnitude of a pixel for which the rounding of float64 running sums changes a
    variance by less than `eps / 1000`. The error is about `2^-53 * side * x^2`, where `side` is the
    longer side of the image. Of integer images, whose sums are exact up to 2^53, the limit is one of
    stored numbers. Twin: `limit_` in csrc/cpu/window_norm.h."""
    height, width = image.shape[2:]
    if not image.is_floating_point():
        return math.sqrt(2.0**53 / (height * width))
    return 2.0**25 * math.sqrt(eps / max(height, width))
