"""Mixed precision: images stay exact; in float16 the loss is scaled, and an update whose gradient
overflows is skipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmim.errors import require

plugins = require("lightning_fabric.plugins")

#: what a loss scale below says: an overflow has nothing to do with scaling any more
LEAST_SCALE = 1.0


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
