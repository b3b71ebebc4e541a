"""The ops in CUDA C++ (`csrc/cuda`), on PyTorch's current stream: each function allocates its
results and scratch, and calls one launcher."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from simmim_kernels.backends._compiled import load

devices = ("cuda",)
kernels, unavailable = load("_cuda")
if kernels is not None:
    # The tests also build these sources for the host, to run them on CPU tensors.
    devices = (kernels.device_type,)
    if kernels.device_type == "cuda" and not torch.cuda.is_available():
        unavailable = "PyTorch sees no GPU"


@cache
def why_not(index: int) -> str | None:
    """Why the kernels can't run on the GPU of that number; None where they can.

    Asked when its first tensor comes, and of no other GPU: asking creates a context there.
    """
    return kernels.why_not(index) or None


def stream(tensor: Tensor) -> int:
    """PyTorch's current stream on the GPU of `tensor`."""
    return torch._C._cuda_getCurrentRawStream(tensor.device.index) if tensor.is_cuda else 0
