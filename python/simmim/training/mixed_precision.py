"""Mixed precision: images stay exact; in float16 the loss is scaled, and an update whose gradient
overflows is skipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmim.errors import require
from simmim_kernels.fast_types import has_fast_bfloat16

plugins = require("lightning_fabric.plugins")

#: what a loss scale below says: an overflow has nothing to do with scaling any more
LEAST_SCALE = 1.0


def choose_precision(wanted: str, device: str) -> tuple[str, str]:
    """Fabric's name of the precision to train in, and a line for the log, or none.

    Args:
        wanted: that name, or ``"auto"``: bfloat16 where its products are fast, else float16 on GPUs and
            float32 on CPUs.
        device: ``"cpu"`` or ``"cuda"``.
    """
    fast = has_fast_bfloat16(device)
    if wanted == "auto":
        chosen = "bf16-mixed" if fast else "16-mixed" if device == "cuda" else "32-true"
        has = "has" if fast else "has no"
        return chosen, f"precision: {chosen}, as this {device} {has} fast products in bfloat16"
    if wanted == "bf16-mixed" and not fast:
        return wanted, f"precision: {wanted} is slow on this {device}; --precision auto avoids it"
    return wanted, ""


class MixedPrecision(plugins.MixedPrecision):
    """Fabric's ``bf16-mixed`` and ``16-mixed``, the latter on CPUs too, for which Fabric would take
    bfloat16 instead, and for fused optimisers, whose gradients Fabric would not unscale.

    Attributes:
        skipped: ``float32 ()`` on the device: other than 0 where the newest update was skipped; ``None``
            without a scaled loss.
    """

    def __init__(self, precision: str, device: str) -> None:
        super().__init__(precision, device)
        self.skipped: Tensor | None = None

    def convert_input(self, data: Any) -> Any:
        """Images as they are, not rounded before they are normalised: the kernels do that in float32."""
        return data

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def optimizer_step(self, optimizer: torch.optim.Optimizer, **kwargs: Any) -> Any:
        if self.scaler is not None:
            self.skipped = sum(self.scaler._found_inf_per_device(optimizer).values())
        return super().optimizer_step(optimizer, **kwargs)
