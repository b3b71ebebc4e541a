"""Which element types a device multiplies fast."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are faster than in float32, which on CPUs takes instructions for them
    (`benchmarks/rows/precision.py`, and "bfloat16 on CPUs" in `benchmarks/NOTES.md`)."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # ATEN_CPU_CAPABILITY may forbid what the processor has
    allowed = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return allowed and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
