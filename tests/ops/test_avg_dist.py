"""avg_dist against distances measured pair by pair, and against the paper's table."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS


def pair_by_pair(mask, unit):
    """Every masked pixel against every visible one."""
    total = count = 0
    for sample in mask.numpy():
        pixels = sample.repeat(unit, 0).repeat(unit, 1)
        masked, visible = np.argwhere(pixels), np.argwhere(~pixels)
        if len(masked) and not len(visible):
            return math.inf
        for y, x in masked:
            total += math.sqrt(((visible - (y, x)) ** 2).sum(1).min())
        count += len(masked)
    return total / count if count else 0.0


@given(
    batch=st.integers(0, 3),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    unit=st.integers(1, 4),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_distances_pair_by_pair(backend, batch, grid, unit, ratio, seed):
    mask = torch.rand(batch, *grid, generator=torch.Generator().manual_seed(seed)) < ratio
    with sk.backend(backend):
        ours = sk.avg_dist(mask, unit)
    # A sum of n rounded square roots is within n half-ulps of exact in any order.
    pixels = max(mask.numel() * unit * unit, 1)
    assert ours == pytest.approx(pair_by_pair(mask, unit), rel=pixels * 2.0**-52)


@pytest.mark.parametrize(
    ("unit", "ratio", "published"),
    [
        (32, 0.6, 15.2),
        (16, 0.6, 7.2),
        (8, 0.8, 6.1),
        (4, 0.9, 5.0),
        (64, 0.5, 29.8),
        (32, 0.3, 9.6),
        (16, 0.9, 20.2),
        (8, 0.4, 2.8),
    ],
)
def test_known_values_at_192_pixels(unit, ratio, published):
    grid = (192 // unit, 192 // unit)
    made = sk.random_mask(40_000 // grid[0] ** 2 + 20, grid, ratio, seed=1)
    assert sk.avg_dist(made, unit) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_and_everything_masked(backend):
    nothing = torch.zeros(2, 3, 4, dtype=torch.bool)
    one_full = nothing.clone()
    one_full[1] = True
    with sk.backend(backend):
        assert sk.avg_dist(nothing, 5) == 0.0
        assert sk.avg_dist(nothing[:0], 5) == 0.0
        assert sk.avg_dist(one_full, 5) == math.inf


def test_non_contiguous_masks():
    mask = torch.rand(3, 8, 6) < 0.6
    assert sk.avg_dist(mask.transpose(1, 2), 3) == sk.avg_dist(mask.transpose(1, 2).contiguous(), 3)
    assert sk.avg_dist(mask.transpose(1, 2), 3) == pytest.approx(
        pair_by_pair(mask.transpose(1, 2), 3)
    )


@pytest.mark.parametrize(
    ("mask", "unit", "error", "words"),
    [
        (torch.zeros(2, 3, 3), 4, TypeError, "mask has dtype float32"),
        (torch.zeros(3, 3, dtype=torch.bool), 4, ValueError, "mask has shape"),
        (torch.zeros(2, 0, 3, dtype=torch.bool), 4, ValueError, "empty grid"),
        (torch.zeros(2, 3, 3, dtype=torch.bool), 0, ValueError, "unit is 0"),
        (torch.zeros(2, 3, 3, dtype=torch.bool), -1, ValueError, "unit is -1"),
        (torch.zeros(2, 3, 3, dtype=torch.bool), 1 << 40, ValueError, "unit is"),
    ],
)
def test_bad_arguments_are_named(mask, unit, error, words):
    with pytest.raises(error, match=words):
        sk.avg_dist(mask, unit)
