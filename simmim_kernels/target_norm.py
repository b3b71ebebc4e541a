"""What `normalize_targets` and `normalize_patches` share with the masked losses, which normalise
their target in the same ways: `target_norm=WindowNorm()` or `PatchNorm()`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simmim_kernels._numbers import to_float, to_int


def check_window(window: int) -> int:
    """`window` as a Python integer; `ValueError` unless it is an odd number of pixels, 1 or more."""
    window = to_int("window", window)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; allowed: an odd number of pixels, 1 or more")
    return window


def check_eps(eps: float) -> float:
    """`eps` as a Python float; `ValueError` unless it is finite and not negative."""
    eps = to_float("eps", eps)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps is {eps}; allowed: finite, 0 or more")
    return eps


@dataclass(frozen=True)
class WindowNorm:
    """Sliding-window normalisation of the target, as `normalize_targets` does it.

    Attributes:
        window: side of the square in pixels, odd.
        eps: added to the variance.
    """

    window: int = 47
    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", check_window(self.window))
        object.__setattr__(self, "eps", check_eps(self.eps))


@dataclass(frozen=True)
class PatchNorm:
    """Per-patch normalisation of the target, as `normalize_patches` does it.

    Attributes:
        eps: added to the variance.
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_eps(self.eps))


TargetNorm = WindowNorm | PatchNorm | None
