"""block_mask: exactly K units in rectangles as BEiT draws them, the same bits everywhere."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from simmim_kernels.backends._block import ROOT_ASPECT
from tests.backends import BACKENDS
from tests.ops.numpy_masks import aspect_ratio, block, words
from tests.ops.numpy_masks import block_mask as numpy_block_mask
from tests.ops.test_box_mask import assert_lists


def test_the_table_holds_the_roots_of_log_uniform_aspect_ratios():
    exact = [65536 * aspect_ratio(a).sqrt() for a in range(64)]
    assert [int(value.to_integral_value()) for value in exact] == list(ROOT_ASPECT)
    # No value lies so near to a half that another libm could round it to the other side.
    assert min(abs(value % 1 - Decimal("0.5")) for value in exact) > Decimal("1e-4")


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_as_numpy(backend, ids, grid, ratio, seed, epoch):
    count = int(np.ceil(grid[0] * grid[1] * ratio))
    with sk.backend(backend):
        made = sk.block_mask(
            torch.tensor(ids, dtype=torch.int64), grid, ratio, seed=seed, epoch=epoch
        )
    assert made.mask.shape == (len(ids), *grid)
    assert made.masked.shape == (len(ids), count)
    assert_lists(made)
    for row, sample in enumerate(ids):
        expected, _ = numpy_block_mask(sample, grid, count, seed, epoch)
        np.testing.assert_array_equal(made.mask[row], expected)


@pytest.mark.parametrize("grid", [(224, 224), (48, 48), (1, 300), (400, 2)])
def test_large_and_narrow_grids(grid):
    made = sk.block_mask(2, grid, 0.6, seed=4)
    count = math.ceil(grid[0] * grid[1] * 0.6)
    assert_lists(made)
    for sample in range(2):
        np.testing.assert_array_equal(
            made.mask[sample], numpy_block_mask(sample, grid, count, 4, 0)[0]
        )


def test_rectangles_of_beits_grid_are_beits():
    """At least 16 units, aspect ratio in [0.3, 1/0.3], every row and column reached."""
    grid, reached, ratios = (14, 14), np.zeros((14, 14), bool), []
    for attempt in range(4000):
        word = words(0, [0x82000000 + attempt], 0, 0)[0]
        rectangle = block(word, 78, grid)
        if rectangle is not None:
            top, left, h, w = rectangle
            assert h * w >= 16
            assert 0.3 <= h / w <= 1 / 0.3
            reached[top : top + h, left : left + w] = True
            ratios.append(math.log(h / w))
    assert reached.all()
    assert len(ratios) > 3000
    assert abs(np.mean(ratios)) < 5 * np.std(ratios) / len(ratios) ** 0.5


@pytest.mark.parametrize("ratio", [0.4, 0.6])
def test_the_usual_ratios_need_few_attempts_and_never_the_last_resort(ratio):
    count = math.ceil(196 * ratio)
    attempts = [numpy_block_mask(i, (14, 14), count, 0, 0)[1] for i in range(300)]
    assert max(attempts) < 100


def test_masks_are_blocks():
    """Far fewer borders between masked and visible units than random masks have."""

    def borders(mask):
        return (mask[:, 1:] ^ mask[:, :-1]).sum() + (mask[..., 1:] ^ mask[..., :-1]).sum()

    blocks = sk.block_mask(200, (14, 14), 0.4, seed=0).mask
    scattered = sk.random_mask(200, (14, 14), 0.4, seed=0).mask
    assert borders(blocks) < 0.5 * borders(scattered)
