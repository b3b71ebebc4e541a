"""Training in float16: the loss is scaled, and an update whose gradient overflows is skipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmim.errors import require

plugins = require("lightning_fabric.plugins")

#: what a loss scale below says: an overflow has nothing to do with scaling any more
LEAST_SCALE = 1.0


class Float16(plugins.MixedPrecision):
    """Fabric's ``16-mixed``: on CPUs too, for which Fabric would take bfloat16 instead, and for fused
    optimisers, whose gradients Fabric would not unscale.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Attributes:
        skipped: ``float32 ()`` on the device: other than 0 where the newest update was skipped.
    """

    def __init__(self, device: str) -> None:
        super().__init__("16-mixed", device)
        self.skipped: Tensor | None = None

    def convert_input(self, data: Any) -> Any:
        """Images as they are: they are targets too, and may be larger than float16 can hold."""
        return data

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)

    def optimizer_step(self, optimizer: torch.optim.Optimizer, **kwargs: Any) -> Any:
        self.skipped = sum(self.scaler._found_inf_per_device(optimizer).values())
        return super().optimizer_step(optimizer, **kwargs)
