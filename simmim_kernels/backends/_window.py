"""What running sums of window normalisation can hold."""

from __future__ import annotations

import math

from torch import Tensor


def running_limit(image: Tensor, eps: float) -> float:
    """The largest magnitude of a pixel of which float64 running sums leave no error beyond a
    thousandth of `eps` in a variance: about `2^-53 side x^2`, `side` the longer one of the image,
    whose sums these are. Sums of integers are exact up to 2^53: theirs is that of a stored number.
    Twin: `limit_` in csrc/cpu/window_norm.h."""
    height, width = image.shape[2:]
    if not image.is_floating_point():
        return math.sqrt(2.0**53 / (height * width))
    return 2.0**25 * math.sqrt(eps / max(height, width))
