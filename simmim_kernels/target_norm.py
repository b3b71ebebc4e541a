"""What `normalize_targets` and `normalize_patches` share with the masked losses, which normalise
their target in the same ways: `target_norm=WindowNorm()` or `PatchNorm()`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simmim_kernels._numbers import is_number, is_whole


def check_window(window: int) -> None:
    """`ValueError` unless `window` is an odd number of pixels, 1 or more."""
    is_whole("window", window)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; allowed: an odd number of pixels, 1 or more")


def check_eps(eps: float) -> None:
    """`ValueError` unless `eps` is finite and not negative."""
    is_number("eps", eps)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps is {eps}; allowed: finite, 0 or more")


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
        check_window(self.window)
        check_eps(self.eps)


@dataclass(frozen=True)
class PatchNorm:
    """Per-patch normalisation of the target, as `normalize_patches` does it.

    Attributes:
        eps: added to the variance.
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_eps(self.eps)


TargetNorm = WindowNorm | PatchNorm | None
