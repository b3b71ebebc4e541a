"""The two attention paths of timm's blocks, which the application chooses from."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.rows.common import BOTH, Contest, Row, forward_backward, type_name
from benchmarks.rows.shapes import Setting

# batch (windows of Swin counted), heads, tokens, width of a head, whether a bias is added
SIZES = {
    "vit-ti 192 px": (16, 3, 145, 64, False),
    "vit-s 192 px": (16, 6, 145, 64, False),
    "vit-b 224 px, bias": (8, 12, 197, 64, True),
    "swin-b stage 1, bias": (576, 4, 36, 32, True),
    "swin-b stage 3, bias": (64, 16, 36, 32, True),
}
TINY = {"tiny, bias": (2, 2, 9, 8, True)}


def rows(setting: Setting) -> Iterator[Row]:
    if setting.on_gpu:
        return  # the application always takes the fused path there
    for dtype in setting.types:
        for name, size in (TINY if setting.tiny else SIZES).items():
            row = f"{name}, {type_name(dtype)}"
            yield Row("attention", row, BOTH, partial(build, *size, dtype))


def build(
    batch: int, heads: int, tokens: int, width: int, biased: bool, dtype: torch.dtype
) -> Contest:
    """Attention of queries, keys and values `(batch, heads, tokens, width)`, with a bias or without."""

    def leaf(*size):
        return torch.randn(size).to(dtype).requires_grad_()

    def inputs():
        bias = leaf(1, heads, tokens, tokens) if biased else None
        return *(leaf(batch, heads, tokens, width) for _ in range(3)), bias

    def products(q, k, v, bias):
        scores = (q * width**-0.5) @ k.transpose(-2, -1)
        return (scores if bias is None else scores + bias).softmax(-1) @ v

    def fused(q, k, v, bias):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    wanted = (0, 1, 2, 3) if biased else (0, 1, 2)
    contenders = {
        "ours": forward_backward(products, wanted),
        "sdpa": forward_backward(fused, wanted),
    }
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    return Contest(contenders, inputs, tolerance=tolerance, effort=0.36)
