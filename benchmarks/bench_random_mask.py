"""Random masks with their index lists, against the published NumPy generator."""

import numpy as np
import pytest
import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.harness import Row
from benchmarks.shapes import RATIO


@pytest.mark.parametrize("grid", [6, 7, 14, 48])
def test_random_mask(compare, grid):
    batch = 256
    ids = torch.arange(batch)
    np.random.seed(0)
    row = Row("random_mask", f"{batch} masks of {grid}x{grid}", "mask and index lists", 0)
    contenders = {
        "ours": lambda: sk.random_mask(ids, (grid, grid), RATIO, seed=1),
        "NumPy generator": lambda: peers.random_mask(batch, grid, RATIO),
    }
    # Two generators draw different masks: their counts are what must agree.
    assert int(contenders["ours"]().mask.sum()) == int(contenders["NumPy generator"]().sum())
    compare(row, contenders, lambda: (), tolerance=None, rounds=100)
