"""The two attention paths of timm's blocks, forward + backward, which the application chooses from."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness import Row, forward_backward

# batch (windows of Swin counted), heads, tokens, width of a head, whether a bias is added
SHAPES = {
    "vit-ti 192 px": (16, 3, 145, 64, False),
    "vit-s 192 px": (16, 6, 145, 64, False),
    "vit-b 224 px, bias": (8, 12, 197, 64, True),
    "swin-b stage 1, bias": (576, 4, 36, 32, True),
    "swin-b stage 3, bias": (64, 16, 36, 32, True),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_attention(compare, shape, dtype):
    batch, heads, tokens, width, biased = SHAPES[shape]
    size = (batch, heads, tokens, width)

    def inputs():
        bias = torch.randn(1, heads, tokens, tokens).to(dtype).requires_grad_() if biased else None
        return *(torch.randn(size).to(dtype).requires_grad_() for _ in range(3)), bias

    def products(q, k, v, bias):
        scores = (q * width**-0.5) @ k.transpose(-2, -1)
        return (scores if bias is None else scores + bias).softmax(-1) @ v

    def fused(q, k, v, bias):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    wanted = (0, 1, 2, 3) if biased else (0, 1, 2)
    row = Row("attention", f"{shape}, {str(dtype)[6:]}", "forward + backward", 0)
    contenders = {
        "ours": forward_backward(products, wanted),
        "sdpa": forward_backward(fused, wanted),
    }
    compare(row, contenders, inputs, tolerance=1e-3 if dtype == torch.float32 else 5e-2, rounds=9)
