"""The seed of random ops, and each mask strategy's own range of Philox counters."""

from __future__ import annotations

import torch

# First counter word of a strategy's first block; random_mask counts from 0 and stays below 2^29,
# uniform_mask has as many of its own, each other strategy 2^24. Twins: csrc/common/philox.h.
BOX_STREAM = 0x81000000
BLOCK_STREAM = 0x82000000
CROP_STREAM = 0x83000000
UNIFORM_STREAM = 0xA0000000


def resolve_seed(seed: int | None, device: torch.device | None = None) -> int:
    """`seed` as an unsigned 64-bit number; where it is None, one drawn from PyTorch's default CPU
    generator. Made when the op runs, so that compiled code gets a new one at every call.

    Args:
        device: where the mask is made.

    Raises `RuntimeError` while a CUDA graph is captured, which would replay this one seed.
    """
    if seed is None:
        if torch.cuda.is_initialized() and _is_capturing(device):
            raise RuntimeError(
                "seed is None while a CUDA graph is captured, and every replay would repeat one mask; "
                "pass seed=, or make the mask outside the graph and copy it into a tensor of the graph"
            )
        seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_().item())
    return seed & 0xFFFFFFFFFFFFFFFF


def _is_capturing(device: torch.device | None) -> bool:
    """Whether the current stream of that GPU (by default the current GPU) is being captured. Only GPUs
    that are in use are asked, because asking creates a context."""
    if device is None or device.type != "cuda":
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
