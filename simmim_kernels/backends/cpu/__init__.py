"""The ops in C++ (`csrc/cpu`): each function allocates its results and calls one kernel."""

from __future__ import annotations

import os

import torch

from simmim_kernels.backends._compiled import load

devices = ("cpu",)
kernels, unavailable = load("_cpu")

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """As many threads as PyTorch uses; one in a forked child, where the parent's OpenMP team is
    gone and waiting for it would never end."""
    return 1 if _forked else torch.get_num_threads()
