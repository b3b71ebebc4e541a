"""The options of a masked loss; the compiled kernels' twin is csrc/common/loss_spec.h."""

from __future__ import annotations

from typing import NamedTuple

from simmim_kernels.backends._pixel_loss import PIXEL_LOSSES

KINDS = tuple(PIXEL_LOSSES)
ORDERS = ("cyx", "yxc")
REDUCTIONS = ("mean", "sum", "none")
NORMS = ("none", "window", "patch")


class LossSpec(NamedTuple):
    """Which loss, and how it is averaged. Travels as one value through every layer.

    Attributes:
        kind: one of `KINDS`.
        beta: the loss's parameter, whatever its public name: where smooth L1 and Huber turn from a
            parabola into a line. 1.0 where the loss has none.
        order: how a token's numbers follow each other, one of `ORDERS`.
        eps: added to the number of masked pixels.
        reduction: one of `REDUCTIONS`.
        norm: how the target is normalised, one of `NORMS`.
        norm_side: of the window or the patch, in pixels.
        norm_eps: added to the variance.
        factor: what the loss is multiplied by.
    """

    kind: str
    beta: float
    order: str
    eps: float
    reduction: str
    norm: str = "none"
    norm_side: int = 0
    norm_eps: float = 0.0
    factor: float = 1.0


def check_names(spec: LossSpec) -> None:
    """`ValueError`, naming the option, for a name that no backend knows."""
    options = (
        ("kind", spec.kind, KINDS),
        ("order", spec.order, ORDERS),
        ("reduction", spec.reduction, REDUCTIONS),
        ("norm", spec.norm, NORMS),
    )
    for name, value, allowed in options:
        if value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"{name} is {value!r}; allowed: {names}")
