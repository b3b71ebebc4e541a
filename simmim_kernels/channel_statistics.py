"""Statistics of an image's channels that a module keeps exactly, whatever it is cast to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from simmim_kernels.ops._channels import check_pair, listed_channels


class ChannelStatistics(nn.Module):
    """A module with the buffers `mean` and `std`, `(C,)` or None, which are no part of its state.

    They go where the module goes. Whatever it is cast to (`.bfloat16()`, `.half()`, Lightning
    Fabric's true precisions), they are the given numbers in float32, and in float64 where it is float64.
    """

    mean: Tensor | None
    std: Tensor | None

    def _keep_statistics(
        self,
        mean: Sequence[float] | Tensor | None,
        std: Sequence[float] | Tensor | None,
        like: Tensor,
    ) -> None:
        """Sets the buffers, on the device of the parameter `like`; float64 if that is."""
        check_pair(mean, std)
        self._statistics = {}
        for name, values in (("mean", mean), ("std", std)):
            if values is not None:
                values = listed_channels(name, values)
                self._statistics[name] = values
                values = _tensor(values, like)
            self.register_buffer(name, values, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ChannelStatistics:
        super()._apply(fn, recurse)
        for name, values in self._statistics.items():
            setattr(self, name, _tensor(values, getattr(self, name)))
        return self


def _tensor(values: tuple[float, ...], like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor(values, dtype=dtype, device=like.device)
