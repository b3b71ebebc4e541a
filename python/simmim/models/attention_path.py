"""Which of PyTorch's two attention paths an encoder takes: chosen from measurements, and logged.

timm's attention layers run either ``scaled_dot_product_attention`` ("sdpa") or plain products,
softmax, products ("products"). Both compute the same; which is faster depends on the device, the
type and whether a bias is added. The table below holds what ``benchmarks/rows/attention.py``
measured. It is a table and not a trial at start-up, because the two round differently: a resumed
run must take the path of the run that it continues.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from simmim_kernels.attention import is_fused_faster

Path = Literal["sdpa", "products"]


def faster_path(device: str, dtype: torch.dtype, biased: bool) -> Path:
    """The faster path for forward and backward.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        dtype: what the products run in, under autocast the autocast type.
        biased: whether a relative-position bias is added to the scores.
    """
    return "sdpa" if is_fused_faster(device, dtype, biased) else "products"


def choose_attention(
    model: nn.Module, wanted: Literal["auto", "sdpa", "products"], device: str, precision: str
) -> str:
    """Set the path of every attention layer; returns the line that the log shows.

    Args:
        model: with timm's attention layers, or without any.
        wanted: a path, or ``"auto"`` for the faster one.
        device: ``"cpu"`` or ``"cuda"``.
        precision: Fabric's name, for instance ``"bf16-mixed"``.
    """
    types = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    dtype = types.get(precision, torch.float32)
    path = faster_path(device, dtype, is_biased(model)) if wanted == "auto" else wanted
    count = set_attention(model, path)
    if not count:
        return "attention: no layer has the choice"
    why = f"faster for {precision} on {device}" if wanted == "auto" else "as --attention says"
    return f"attention: {path} in {count} layers, {why}"


def is_biased(model: nn.Module) -> bool:
    """Whether any attention layer adds a relative-position bias: BEiT's and Swin's do."""
    return any(
        "relative_position_bias_table" in name.rpartition(".")[2]
        for name, _ in model.named_parameters()
    )


def set_attention(model: nn.Module, path: Path) -> int:
    """Let every attention layer that has the choice take ``path``; returns how many there are.

    SwinV2's cosine attention has no choice: it always runs products.
    """
    layers = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for layer in layers:
        layer.fused_attn = path == "sdpa"
    return len(layers)
