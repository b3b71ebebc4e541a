"""Mask tokens: forward and gradients of the tokens and of the mask token."""

import pytest
import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.harness import Row, compiled, forward_backward
from benchmarks.shapes import BATCHES, RATIO, SHAPES


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", BATCHES)
def test_mask_tokens(compare, shape, dtype, batch):
    length = shape.tokens**2

    def inputs():
        x = torch.randn(batch, length, shape.width).to(dtype).requires_grad_()
        token = torch.randn(1, 1, shape.width).to(dtype).requires_grad_()
        mask = sk.random_mask(batch, shape.grid, RATIO)
        return x, mask, token, mask.on_grid((shape.tokens,) * 2).mask.long()

    def ours(x, mask, token, _):
        return sk.mask_tokens(x, mask, token)

    def published(x, _, token, fine):
        return peers.mask_tokens(x, fine, token)

    def where(x, _, token, fine):
        return peers.mask_tokens_where(x, fine, token)

    # Forward: visible rows in, all rows out. Backward: all rows in, all rows out.
    size = batch * length * shape.width * dtype.itemsize
    row = Row(
        "mask_tokens",
        f"{shape.name} x{batch} {str(dtype)[6:]}",
        "forward + backward",
        int(size * (1 - shape.masked) + 3 * size),
    )
    contenders = {
        "ours": forward_backward(ours, (0, 2)),
        "eager": forward_backward(published, (0, 2)),
        "compiled": forward_backward(compiled(published), (0, 2)),
        "where, compiled": forward_backward(compiled(where), (0, 2)),
    }
    compare(row, contenders, inputs, tolerance=1e-4 if dtype == torch.float32 else 2e-2)
