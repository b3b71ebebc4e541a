"""Patch embedding of visible patches alone, from bytes: forward and gradients of the parameters."""

import pytest
import torch
from torch.nn import functional as F

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.harness import Row, compiled, forward_backward
from benchmarks.shapes import BATCHES, RATIO, SHAPES

MEAN, STD = torch.full((13,), 0.45), torch.full((13,), 0.23)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", BATCHES)
def test_masked_patch_embed(compare, shape, dtype, batch):
    patch, channels = shape.size // shape.tokens, shape.channels
    mean, std = MEAN[:channels], STD[:channels]

    def inputs():
        size = (batch, channels, shape.size, shape.size)
        image = torch.randint(0, 256, size, dtype=torch.uint8)
        weight = torch.randn(shape.width, channels, patch, patch) / patch
        bias, token = torch.randn(shape.width), torch.randn(1, 1, shape.width)
        mask = sk.random_mask(batch, shape.grid, RATIO)
        parameters = [t.to(dtype).requires_grad_() for t in (weight, bias, token)]
        return image, *parameters, mask, mask.on_grid((shape.tokens,) * 2).mask.long()

    def ours(image, weight, bias, token, mask, _):
        return sk.masked_patch_embed(image, weight, bias, mask, token, mean=mean, std=std)

    def normalised(image):
        return ((image / 255 - mean[:, None, None]) / std[:, None, None]).to(dtype)

    def published(image, weight, bias, token, _, fine):
        x = F.conv2d(normalised(image), weight, bias, stride=patch)
        return peers.mask_tokens(x.flatten(2).transpose(1, 2), fine, token)

    def linear(image, weight, bias, token, _, fine):
        side = shape.tokens
        x = normalised(image).reshape(batch, channels, side, patch, side, patch)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, side * side, -1)
        return peers.mask_tokens_where(F.linear(x, weight.flatten(1), bias), fine, token)

    row = Row(
        "masked_patch_embed",
        f"{shape.name} x{batch} {str(dtype)[6:]}",
        "forward + backward",
        0,
    )
    contenders = {
        "ours": forward_backward(ours, (1, 2, 3)),
        "eager": forward_backward(published, (1, 2, 3)),
        "compiled": forward_backward(compiled(published), (1, 2, 3)),
        "linear, compiled": forward_backward(compiled(linear), (1, 2, 3)),
    }
    compare(row, contenders, inputs, tolerance=1e-4 if dtype == torch.float32 else 2e-2)
