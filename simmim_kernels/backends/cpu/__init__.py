"""The ops in C++ (`csrc/cpu`): each function allocates its results and calls one kernel."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch  # first: it loads the OpenMP runtime that the compiled module shares
from torch import Tensor

devices = ("cpu",)

try:
    from simmim_kernels import _cpu as kernels

    kernels.connect(torch.Tensor)
    unavailable = None
except RuntimeError as error:
    kernels = None
    unavailable = str(error)
except AttributeError:
    kernels = None
    unavailable = "the compiled module was built from other sources: build it again"
except ImportError as error:
    kernels = None
    unavailable = f"the compiled module does not load: {error}"
    _info = Path(__file__).parents[2] / "_build_info.json"
    if _info.exists():
        _built = json.loads(_info.read_text()).get("_cpu", "")
        if _built.startswith("not built"):
            unavailable = _built

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """As many threads as PyTorch uses; one in a forked child, where the parent's OpenMP team is
    gone and waiting for it would never end."""
    return 1 if _forked else torch.get_num_threads()


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple([None if t is None else t.contiguous() for t in tensors])
