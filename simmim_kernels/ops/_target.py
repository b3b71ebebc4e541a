"""What the ops that make a target share."""

from __future__ import annotations

from torch import Tensor

from simmim_kernels.backends._results import empty_image, target_dtype
from simmim_kernels.ops._define import needs_grad


def fake_target(image: Tensor, *_: object) -> Tensor:
    return empty_image(image, target_dtype(image))


def refuse_gradient(image: Tensor) -> None:
    if isinstance(image, Tensor) and needs_grad(image):
        raise ValueError(
            "image requires a gradient, but a target has none; pass image.detach() or use "
            "torch.no_grad()"
        )
