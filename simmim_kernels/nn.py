"""Module forms of the ops that hold a parameter or configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from simmim_kernels._numbers import to_bool, to_float, to_int
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._channels import check_pair, listed_channels
from simmim_kernels.ops.mask_tokens import mask_tokens
from simmim_kernels.ops.masked_loss import masked_huber, masked_l1, masked_mse, masked_smooth_l1
from simmim_kernels.target_norm import TargetNorm

__all__ = ["MaskToken", "MaskedHuberLoss", "MaskedL1Loss", "MaskedMSELoss", "MaskedSmoothL1Loss"]


class MaskToken(nn.Module):
    """The learnable token that `mask_tokens` puts in the place of every masked patch.

    Args:
        width: features `D` of a token.
        prefix_tokens: class or register tokens in front of the patches, never masked.
        keep_dtype: return the type of `x` instead of the promoted one.

    Attributes:
        token: parameter `(1, 1, D)`, normal with deviation 0.02 cut at twice that.
    """

    def __init__(
        self,
        width: int,
        *,
        prefix_tokens: int = 0,
        keep_dtype: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.prefix_tokens = to_int("prefix_tokens", prefix_tokens)
        self.keep_dtype = to_bool("keep_dtype", keep_dtype)
        self.token = nn.Parameter(
            torch.empty((1, 1, to_int("width", width)), device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.token, std=0.02, a=-0.04, b=0.04)

    def forward(
        self, x: Tensor, mask: PatchMask | Tensor, pos_embed: Tensor | None = None
    ) -> Tensor:
        """`mask_tokens(x, mask, self.token, pos_embed=pos_embed)`."""
        return mask_tokens(
            x,
            mask,
            self.token,
            pos_embed=pos_embed,
            prefix_tokens=self.prefix_tokens,
            keep_dtype=self.keep_dtype,
        )

    def extra_repr(self) -> str:
        text = f"{self.token.shape[-1]}"
        text += f", prefix_tokens={self.prefix_tokens}" if self.prefix_tokens else ""
        return text + (", keep_dtype=True" if self.keep_dtype else "")


class _MaskedLoss(nn.Module):
    """What the masked losses have in common; arguments are those of `masked_l1`."""

    function: Callable[..., Tensor]
    parameters_of_loss: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        order: str = "cyx",
        target_norm: TargetNorm = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        eps: float = 1e-5,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.order, self.eps, self.reduction = order, to_float("eps", eps), reduction
        self.target_norm = target_norm
        check_pair(mean, std)
        # Numbers and no buffers: a cast of the module leaves them alone.
        self.mean = None if mean is None else listed_channels("mean", mean)
        self.std = None if std is None else listed_channels("std", std)

    def forward(self, pred: Tensor, target: Tensor, mask: PatchMask | Tensor) -> Tensor:
        return type(self).function(pred, target, mask, **self.options())

    def options(self) -> dict[str, object]:
        """The keyword arguments of the function."""
        names = ("order", "target_norm", "mean", "std", "eps", "reduction")
        return {name: getattr(self, name) for name in (*self.parameters_of_loss, *names)}

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.options().items() if v is not None)


class MaskedL1Loss(_MaskedLoss):
    """`masked_l1` with its configuration."""

    function = masked_l1


class MaskedMSELoss(_MaskedLoss):
    """`masked_mse` with its configuration."""

    function = masked_mse


class MaskedSmoothL1Loss(_MaskedLoss):
    """`masked_smooth_l1` with its configuration.

    Args:
        beta: where the parabola ends, >= 0.
    """

    function, parameters_of_loss = masked_smooth_l1, ("beta",)

    def __init__(self, *, beta: float = 1.0, **options) -> None:
        super().__init__(**options)
        self.beta = to_float("beta", beta)


class MaskedHuberLoss(_MaskedLoss):
    """`masked_huber` with its configuration.

    Args:
        delta: where the parabola ends, > 0.
    """

    function, parameters_of_loss = masked_huber, ("delta",)

    def __init__(self, *, delta: float = 1.0, **options) -> None:
        super().__init__(**options)
        self.delta = to_float("delta", delta)
