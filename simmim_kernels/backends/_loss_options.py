"""The names of a masked loss's options with the codes that the compiled kernels know: twins of the
enumerations in csrc/common/pixel_loss.h, csrc/cpu/masked_loss.cpp and csrc/cuda/loss_sums.h."""

from __future__ import annotations

KINDS = {"l1": 0, "mse": 1, "smooth_l1": 2}
REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}
NORMS = {"none": 0, "window": 1, "patch": 2}
ORDERS = {"cyx": 0, "yxc": 1}


def check_options(kind: str, order: str, reduction: str, norm: str) -> None:
    """`ValueError`, naming the option, for a name that no backend knows."""
    options = (
        ("kind", kind, KINDS),
        ("order", order, ORDERS),
        ("reduction", reduction, REDUCTIONS),
        ("norm", norm, NORMS),
    )
    for name, value, allowed in options:
        if value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"{name} is {value!r}; allowed: {names}")
