"""Per-patch normalisation in plain PyTorch, in float64 throughout."""

from __future__ import annotations

from torch import Tensor

from simmim_kernels.backends._results import memory_format, target_dtype
from simmim_kernels.backends.reference.normalize_targets import normalized_pixels


def normalize_patches(
    image: Tensor, patch: int, eps: float, mean: Tensor | None, std: Tensor | None
) -> Tensor:
    dtype, layout = target_dtype(image), memory_format(image)
    batch, channels, height, width = image.shape
    x = normalized_pixels(image, mean, std)
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    over = (1, 3, 5)  # channels and the patch's pixels
    n = channels * patch * patch
    x = x - x.mean(over, keepdim=True)
    v = (x * x).sum(over, keepdim=True) / max(n - 1, 1)
    out = (x / (v + eps).sqrt()).reshape(image.shape)
    return out.to(dtype).contiguous(memory_format=layout)
