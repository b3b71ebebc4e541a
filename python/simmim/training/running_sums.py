"""Loss and gradient norm summed over updates, on the device, read only when they are needed."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningSums:
    """RunningSums since the last row of the training log.

    Attributes:
        count: updates that were summed.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.norm = torch.zeros_like(self.loss)
        self.count = 0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Add those of one update, without waiting for the device."""
        self.loss += loss
        self.norm += norm
        self.count += 1

    def stack(self) -> Tensor:
        """Both sums, ``float64 (2,)``."""
        return torch.stack([self.loss, self.norm])

    def clear(self) -> None:
        """Begin the next row."""
        self.restore(0.0, 0.0, 0)

    def restore(self, loss: float, norm: float, count: int) -> None:
        """Continue from sums that were saved."""
        self.loss.fill_(loss)
        self.norm.fill_(norm)
        self.count = count
