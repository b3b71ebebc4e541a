"""Head and loss on masked tokens only, against the dense head followed by the fused loss."""

import pytest
import torch
import torch.nn.functional as F

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.harness import Row, compiled, forward_backward
from benchmarks.shapes import BATCHES, RATIO, SHAPES


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", BATCHES)
def test_masked_linear(compare, shape, dtype, batch):
    side = shape.size // shape.stride
    width = shape.width * (8 if shape.name == "swin-b" else 1)  # the last stage of Swin is wider
    out = shape.channels * shape.stride**2
    size = (batch, shape.channels, shape.size, shape.size)

    def inputs():
        tokens = torch.randn(batch, side * side, width).to(dtype).requires_grad_()
        weight = (torch.randn(out, width) * width**-0.5).to(dtype).requires_grad_()
        bias = torch.randn(out).to(dtype).requires_grad_()
        mask = sk.random_mask(batch, shape.grid, RATIO)
        return tokens, weight, bias, torch.randn(size), mask, mask.mask.long()

    def ours(tokens, weight, bias, target, mask, _):
        return sk.masked_linear_l1(tokens, weight, bias, target, mask)

    def dense(tokens, weight, bias, target, mask, _):
        return sk.masked_l1(F.linear(tokens, weight, bias), target, mask)

    def published(tokens, weight, bias, target, _, mask):
        pred = peers.tokens_to_image(F.linear(tokens, weight, bias), shape.channels, shape.stride)
        return peers.masked_loss(pred.float(), target, mask, shape.unit, "l1")

    row = Row("masked_linear", f"{shape.name} x{batch} {str(dtype)[6:]}", "forward + backward", 0)
    contenders = {
        "ours": forward_backward(ours, (0, 1, 2)),
        "dense head + fused loss": forward_backward(dense, (0, 1, 2)),
        "eager": forward_backward(published, (0, 1, 2)),
        "compiled": forward_backward(compiled(published), (0, 1, 2)),
    }
    # An L1 gradient is a sign: where prediction and target all but meet, rounding decides it.
    compare(row, contenders, inputs, tolerance=None)
