"""Sliding-window target normalisation at window 47, against the published form and its rewrites."""

import pytest
import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.harness import Row, compiled
from benchmarks.shapes import BATCHES, SHAPES

WINDOW = 47
REWRITES = {
    "banded products": peers.normalize_targets_banded,
    "cumulative sums": peers.normalize_targets_cumulative,
    "separable pools": peers.normalize_targets_separable,
}


def row_and_inputs(shape, batch):
    size = (batch, shape.channels, shape.size, shape.size)
    moved = 2 * 4 * batch * shape.channels * shape.size**2
    row = Row("normalize_targets", f"{shape.name} x{batch} float32", "forward", moved)
    return row, lambda: (torch.randn(size),)


def ours(image):
    return sk.normalize_targets(image, WINDOW)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_against_the_published_form(compare, shape):
    row, inputs = row_and_inputs(shape, 2)
    contenders = {"ours": ours, "published": lambda x: peers.normalize_targets(x, WINDOW)}
    compare(row, contenders, inputs, rounds=5)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("batch", BATCHES)
def test_against_the_best_rewrites(compare, shape, batch):
    row, inputs = row_and_inputs(shape, batch)
    contenders = {"ours": ours}
    for name, make in REWRITES.items():
        contenders[f"{name}, compiled"] = compiled(make(WINDOW, shape.size, shape.size))
    compare(row, contenders, inputs, rounds=9)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("batch", BATCHES)
def test_fused_into_the_loss(compare, shape, batch):
    """The loss with window targets beside normalize_targets alone: at most 10 % slower."""
    size = (batch, shape.channels, shape.size, shape.size)

    def inputs():
        mask = sk.random_mask(batch, shape.grid, 0.6)
        return torch.randn(size, requires_grad=True), torch.randn(size), mask

    def fused(pred, image, mask):
        loss = sk.masked_l1(pred, image, mask, target_norm=sk.WindowNorm(WINDOW))
        return torch.autograd.grad(loss, pred)

    def apart(pred, image, mask):
        loss = sk.masked_l1(pred, sk.normalize_targets(image, WINDOW), mask)
        return torch.autograd.grad(loss, pred)

    row = Row("window_loss", f"{shape.name} x{batch} float32", "forward + backward", 0)
    contenders = {
        "ours": fused,
        "normalize_targets alone": lambda pred, image, mask: ours(image),
        "normalize_targets, then the loss": apart,
    }
    compare(row, contenders, inputs, tolerance=None)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_large_numbers(compare, shape):
    """Fractions beyond what plain running sums can hold, whole numbers of that size, small ones."""
    size = (BATCHES[0], shape.channels, shape.size, shape.size)

    def inputs():
        counts = torch.randint(0, 65536, size).float()
        return 1e4 * torch.randn(size), counts, torch.randn(size)

    row = Row("large_numbers", f"{shape.name} x{BATCHES[0]} float32", "forward", 0)
    contenders = {
        "ours": lambda fractions, counts, small: ours(fractions),
        "whole numbers": lambda fractions, counts, small: ours(counts),
        "small numbers": lambda fractions, counts, small: ours(small),
    }
    compare(row, contenders, inputs, tolerance=None)
