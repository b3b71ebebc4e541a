"""Masked losses: value and gradient of the prediction, for a full-size prediction and for tokens."""

import pytest
import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.harness import Row, compiled, forward_backward
from benchmarks.shapes import BATCHES, RATIO, SHAPES, VIT_B

OURS = {"l1": sk.masked_l1, "mse": sk.masked_mse, "smooth_l1": sk.masked_smooth_l1}
DTYPES = [torch.float32, torch.bfloat16]


def moved(shape, batch, dtype):
    """Masked pixels of prediction and target in; the whole gradient out."""
    pixels = batch * shape.channels * shape.size**2
    return int(pixels * (shape.masked * (dtype.itemsize + 4) + dtype.itemsize))


def measure(compare, loss, shape, batch, dtype, layout):
    side = shape.size // shape.stride
    if layout == "image":
        size = (batch, shape.channels, shape.size, shape.size)
    else:
        size = (batch, side * side, shape.channels * shape.stride**2)

    def inputs():
        pred = torch.randn(size).to(dtype).requires_grad_()
        target = torch.randn(batch, shape.channels, shape.size, shape.size)
        mask = sk.random_mask(batch, shape.grid, RATIO)
        return pred, target, mask, mask.mask.long()

    def ours(pred, target, mask, _):
        return OURS[loss](pred, target, mask)

    def published(pred, target, _, mask):
        if layout == "tokens":
            pred = peers.tokens_to_image(pred, shape.channels, shape.stride)
        return peers.masked_loss(pred.float(), target, mask, shape.unit, loss)

    row = Row(
        "masked_loss",
        f"{loss}, {layout}, {shape.name} x{batch} {str(dtype)[6:]}",
        "forward + backward",
        moved(shape, batch, dtype),
    )
    contenders = {
        "ours": forward_backward(ours, (0,)),
        "eager": forward_backward(published, (0,)),
        "compiled": forward_backward(compiled(published), (0,)),
    }
    compare(row, contenders, inputs, tolerance=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layout", ["image", "tokens"])
def test_masked_l1(compare, shape, batch, dtype, layout):
    measure(compare, "l1", shape, batch, dtype, layout)


@pytest.mark.parametrize("loss", ["mse", "smooth_l1"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["image", "tokens"])
def test_other_losses(compare, loss, dtype, layout):
    measure(compare, loss, VIT_B, BATCHES[-1], dtype, layout)
