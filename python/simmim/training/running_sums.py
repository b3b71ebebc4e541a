"""Loss and gradient norm summed over updates, on the device, read only when they are needed."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningSums:
    """RunningSums since the last row of the training log.

    Attributes:
        count: updates that were summed, skipped ones among them until they are taken out.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.norm = torch.zeros_like(self.loss)
        self.skipped = torch.zeros_like(self.loss)
        self.count = 0

    def add(self, loss: Tensor, norm: Tensor, skipped: Tensor | None = None) -> None:
        """Add those of one update, without waiting for the device.

        Args:
            skipped: other than 0 where the update was skipped, so that its numbers do not count.
        """
        if skipped is not None:
            loss, norm = (value.masked_fill(skipped > 0, 0) for value in (loss, norm))
            self.skipped += skipped > 0
        self.loss += loss
        self.norm += norm
        self.count += 1

    def stack(self) -> Tensor:
        """Both sums and the number of skipped updates, ``float64 (3,)``."""
        return torch.stack([self.loss, self.norm, self.skipped])

    def take_out(self, skipped: int) -> None:
        """Count these updates no longer: those that ``stack`` said were skipped."""
        self.count -= skipped
        self.skipped.zero_()

    def clear(self) -> None:
        """Begin the next row."""
        self.restore(0.0, 0.0, 0)

    def restore(self, loss: float, norm: float, count: int) -> None:
        """Continue from sums that were saved."""
        self.loss.fill_(loss)
        self.norm.fill_(norm)
        self.count = count
