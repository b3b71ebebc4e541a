"""Memory that tensors on the CPU have given back, kept for the next ones."""

from __future__ import annotations

import ctypes

# of <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 64 << 20


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the whole process, from this call on.

    glibc hands large blocks back to the system and asks for them anew, at a page fault for every
    4 KiB that is touched: many thousands in every step of a model on a CPU, which the next step pays
    again. With this, freed blocks stay with the process, whose memory therefore stays at its peak.
    Training a small ViT on a CPU was a tenth faster for it (by hand, benchmarks/NOTES.md), with the
    kernels of this library and without; results are the same bits. Call it once, before the first
    large tensor is made; a GPU's memory is not touched.

    Returns:
        whether the C library could be told: ``False`` where it is not glibc, and nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD))
    return all(mallopt(option, value) == 1 for option, value in wanted)
