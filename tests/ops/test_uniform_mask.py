"""uniform_mask: as many masked units in every 2 x 2, the same bits everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.ops.numpy_masks import uniform_mask as numpy_uniform_mask
from tests.ops.test_box_mask import assert_lists


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    half=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    hidden=st.integers(0, 4),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_as_numpy(backend, ids, half, hidden, seed, epoch):
    grid = 2 * half[0], 2 * half[1]
    with sk.backend(backend):
        made = sk.uniform_mask(
            torch.tensor(ids, dtype=torch.int64), grid, hidden / 4, seed=seed, epoch=epoch
        )
    assert made.mask.shape == (len(ids), *grid)
    assert made.masked.shape == (len(ids), half[0] * half[1] * hidden)
    assert_lists(made)
    for row, sample in enumerate(ids):
        np.testing.assert_array_equal(
            made.mask[row], numpy_uniform_mask(sample, grid, hidden, seed, epoch)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_grid_is_made_piece_by_piece(backend):
    with sk.backend(backend):
        made = sk.uniform_mask(2, (64, 70), seed=1)
    assert_lists(made)
    cells = made.mask.view(2, 32, 2, 35, 2).sum((2, 4))
    assert (cells == 3).all()


def test_the_visible_units_are_a_small_image():
    made = sk.uniform_mask(3, (6, 8), seed=2)
    assert (made.visible.view(3, 3, 4) // 16 == torch.arange(3)[:, None]).all()


def test_every_choice_is_equally_likely():
    made = sk.uniform_mask(20_000, (2, 4), seed=3)
    visible = (~made.mask).double().mean(0)
    assert (visible - 0.25).abs().max() < 5 * (0.25 * 0.75 / 20_000) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, (3, 4)), "grid is 3 x 4; allowed: even"),
        ((2, (4, 5)), "grid is 4 x 5; allowed: even"),
        ((2, (4, 4), 0.6), "ratio is 0.6; allowed: 0, 0.25, 0.5, 0.75, 1"),
        ((2, (4, 4), 1.25), "ratio is 1.25"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        sk.uniform_mask(*arguments, seed=0)
