"""What running sums of window normalisation can hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def running_limit(image: Tensor, eps: float) -> float:
    """The largest magnitude of a pixel of which float64 running sums leave no error beyond a
    thousandth of `eps` in a variance: about `2^-53 side x^2`, `side` the longer one of the image,
    whose sums these are. Sums of bytes are exact. Twin: `limit_` in csrc/cpu/window_norm.h."""
    if image.dtype == torch.uint8:
        return 255.0
    return 2.0**25 * math.sqrt(eps / max(image.shape[2:]))
