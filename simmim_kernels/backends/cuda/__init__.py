"""The ops in CUDA C++ (`csrc/cuda`), on PyTorch's current stream: each function allocates its
results and scratch, and calls one launcher."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def _not_built(error: ImportError) -> str:
    record = Path(__file__).parents[2] / "_build_info.json"
    built = json.loads(record.read_text()).get("_cuda", "") if record.exists() else ""
    if built.startswith("not built"):
        return built
    return f"the compiled module does not load: {error}"


devices = ("cuda",)
try:
    from simmim_kernels import _cuda as kernels

    kernels.connect(torch.Tensor)
    # The tests also build these sources for the host, to run them on CPU tensors.
    devices = (kernels.device_type,)
    missing = kernels.device_type == "cuda" and not torch.cuda.is_available()
    unavailable = "PyTorch sees no GPU" if missing else None
except RuntimeError as error:
    kernels = None
    unavailable = str(error)
except AttributeError:
    kernels = None
    unavailable = "the compiled module was built from other sources: build it again"
except ImportError as error:
    kernels = None
    unavailable = _not_built(error)


@cache
def why_not(index: int) -> str | None:
    """Why the kernels can't run on the GPU of that number; None where they can.

    Asked when its first tensor comes, and of no other GPU: asking creates a context there.
    """
    return kernels.why_not(index) or None


def stream(tensor: Tensor) -> int:
    """PyTorch's current stream on the GPU of `tensor`."""
    return torch._C._cuda_getCurrentRawStream(tensor.device.index) if tensor.is_cuda else 0


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple([None if t is None else t.contiguous() for t in tensors])
