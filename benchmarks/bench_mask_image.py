"""Mask image: a uint8 batch normalised and masked in one pass, for encoders that see pixels."""

import pytest
import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.harness import Row, compiled
from benchmarks.shapes import BATCHES, RATIO, SHAPES


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("batch", BATCHES)
def test_mask_image(compare, shape, batch):
    mean, std = torch.rand(shape.channels), torch.rand(shape.channels) + 0.1
    size = (batch, shape.channels, shape.size, shape.size)

    def inputs():
        image = torch.randint(0, 256, size, dtype=torch.uint8)
        mask = sk.random_mask(batch, shape.grid, RATIO)
        return image, mask, mask.mask.long()

    def published(image, _, mask):
        return peers.mask_image(image, mask.bool(), shape.unit, mean, std)

    pixels = batch * shape.channels * shape.size**2
    row = Row(
        "mask_image",
        f"{shape.name} x{batch} uint8 to float32",
        "forward",
        int(pixels * (1 - shape.masked) + pixels * 4),
    )
    contenders = {
        "ours": lambda image, mask, _: sk.mask_image(image, mask, mean=mean, std=std),
        "eager": published,
        "compiled": compiled(published),
    }
    compare(row, contenders, inputs, tolerance=1e-5)
