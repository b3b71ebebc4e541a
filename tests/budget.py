"""The error rule of every comparison: at most twice the error of plain PyTorch in the same type."""

from __future__ import annotations

import torch
from torch import Tensor

ULPS = 4  # of the largest magnitude: what is allowed where plain PyTorch happens to be exact


def assert_within_budget(
    ours: Tensor,
    plain: Tensor,
    exact: Tensor,
    what: str = "result",
    magnitude: Tensor | None = None,
) -> None:
    """Hold `ours` to the float64 `exact`, by the error that `plain` PyTorch makes in `ours`' type.

    All three are compared element by element; infinities and NaN must stand in the same places.
    `magnitude` is the size of the numbers that are added up where their sum may be far smaller: for
    a matrix product, that of the absolute values. The default is `exact` itself.
    """
    assert ours.shape == exact.shape, f"{what}: shape {ours.shape}, expected {exact.shape}"
    epsilon = torch.finfo(ours.dtype).eps
    ours, plain, exact = (tensor.detach().double() for tensor in (ours, plain, exact))
    finite = torch.isfinite(exact)
    assert torch.equal(ours[~finite].nan_to_num(), exact[~finite].nan_to_num()), (
        f"{what}: not finite"
    )
    if not finite.any():
        return
    error = (ours - exact)[finite].abs().max()
    allowed = 2 * (plain - exact)[finite].abs().nan_to_num(nan=0.0).max()
    allowed += ULPS * epsilon * (exact if magnitude is None else magnitude)[finite].abs().max()
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"
