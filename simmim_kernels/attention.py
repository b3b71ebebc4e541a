"""Attention by either of PyTorch's paths; which one is faster depends on device and type."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from simmim_kernels.fast_types import has_fast_bfloat16

# Found once: compiled code asks, too.
_FAST_16_BIT_CPU = has_fast_bfloat16("cpu")


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, scale: float, fused: bool
) -> Tensor:
    """`softmax(scale * q @ k^T + bias) @ v`.

    Args:
        q: queries `(B, heads, K, d)`.
        k, v: keys and values `(B, heads, N, d)`.
        bias: `(B, heads, K, N)` or what broadcasts to it, or None.
        scale: factor of the scores.
        fused: use `scaled_dot_product_attention`, otherwise matmul, softmax, matmul. On CPUs the
            latter is the faster where gradients are wanted for `bias`, or in a 16-bit type that the
            processor has instructions for.

    Returns:
        `(B, heads, K, d)` in `v`'s type.
    """
    # Without queries sdpa gives the bias no gradient at all, products one of zeros.
    if fused and (bias is None or q.shape[-2] > 0):
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v


def is_fused_faster(device: str, dtype: torch.dtype, biased: bool) -> bool:
    """Whether `scaled_dot_product_attention` is the faster path for forward and backward together.

    A table of what `benchmarks/rows/attention.py` measured, and no trial when a model starts: the two
    round differently, and a run that is resumed on the same processor must take the same path.

    Args:
        device: `"cpu"` or `"cuda"`.
        dtype: what the products run in.
        biased: whether a bias that wants a gradient is added to the scores.
    """
    if device != "cpu":
        return True
    # Its backward pass is the slow one for the gradient of a bias, and in 16-bit types; but products
    # in these are far slower still on a processor without instructions for them.
    if dtype in (torch.float32, torch.float64):
        return not biased
    return not _FAST_16_BIT_CPU
