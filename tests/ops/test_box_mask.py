"""box_mask: one rectangle of the right size, uniformly placed, the same bits everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.ops.numpy_masks import box_mask as numpy_box_mask


def assert_lists(made):
    for mask, masked, visible in zip(*made, strict=True):
        assert torch.equal(masked.long(), mask.flatten().nonzero()[:, 0])
        assert torch.equal(visible.long(), (~mask).flatten().nonzero()[:, 0])


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    grid=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_as_numpy(backend, ids, grid, ratio, seed, epoch):
    box = int(grid[0] * ratio), int(grid[1] * ratio)
    with sk.backend(backend):
        made = sk.box_mask(
            torch.tensor(ids, dtype=torch.int64), grid, ratio, seed=seed, epoch=epoch
        )
    assert made.mask.shape == (len(ids), *grid)
    assert made.masked.shape == (len(ids), box[0] * box[1])
    assert_lists(made)
    for row, sample in enumerate(ids):
        np.testing.assert_array_equal(
            made.mask[row], numpy_box_mask(sample, grid, box, seed, epoch)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_center(backend):
    torch.manual_seed(5)
    with sk.backend(backend):
        made = sk.box_mask(2, (6, 7), 0.5, center=True)
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(made.mask, expected.expand(2, -1, -1))
    assert_lists(made)
    drawn = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(torch.rand(()), drawn), "a centred box draws nothing"


def test_every_place_is_equally_likely():
    n, places = 40_000, 6 * 7
    made = sk.box_mask(n, (8, 10), 0.45, seed=3)
    corners = torch.bincount(made.masked[:, 0].long(), minlength=80).view(8, 10)
    assert corners[6:].sum() == corners[:, 7:].sum() == 0
    spread = (n / places * (1 - 1 / places)) ** 0.5
    assert (corners[:6, :7] - n / places).abs().max() < 5 * spread


def test_pixel_grid_gives_the_tutorials_box():
    made = sk.box_mask(3, (224, 224), 0.15, seed=0)
    side = int(224 * 0.15)
    assert made.masked.shape == (3, side * side)
    assert made.mask.any(2).sum(1).tolist() == made.mask.any(1).sum(1).tolist() == [side] * 3


def test_a_box_beyond_the_grid_is_refused_by_the_op_itself():
    with pytest.raises(ValueError, match="the box is 8 x 2"):
        torch.ops.simmim_kernels.box_mask(torch.arange(2), 7, 7, 8, 2, False, 0, 0)
