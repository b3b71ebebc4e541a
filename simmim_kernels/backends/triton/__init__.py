"""The ops in Triton, for every GPU that Triton compiles for."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

# Triton reads this when a kernel is defined; its interpreter then runs kernels on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

devices = ("cpu", "cuda") if INTERPRETED else ("cuda",)

if find_spec("triton") is None:
    unavailable = "Triton is not installed"
elif not INTERPRETED and not torch.cuda.is_available():
    unavailable = "PyTorch sees no GPU"
else:
    unavailable = None

# Pinned, because Triton 3.10 changes the default: results keep their bits from version to version.
OPTIONS = {"enable_fp_fusion": False}


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Makes the tensor's GPU the current one: Triton launches on the current device's stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int, most: int) -> int:
    """The smallest power of two that is at least `n`, at most `most`."""
    return min(most, 1 << max(n - 1, 0).bit_length())
