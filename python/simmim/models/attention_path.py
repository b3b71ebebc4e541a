"""Choice of PyTorch's attention path for an encoder, from measurements.

timm's attention layers run either ``scaled_dot_product_attention`` ("sdpa") or plain products,
softmax, products ("products"). Both compute the same; which is faster depends on the device, the
type and whether a bias is added: ``simmim_kernels.attention`` knows what was measured.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from simmim_kernels.attention import is_fused_faster

Path = Literal["sdpa", "products"]


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
    path = wanted
    if wanted == "auto":
        path = "sdpa" if is_fused_faster(device, dtype, is_biased(model)) else "products"
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
