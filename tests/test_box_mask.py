"""box_mask: one rectangle of the right size, uniformly placed, the same bits everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.numpy_masks import box_mask as numpy_box_mask


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


def test_a_sample_keeps_its_mask_in_any_batch():
    whole = sk.box_mask(300, (14, 14), 0.4, seed=7, epoch=3)
    ids = torch.randperm(300)
    assert torch.equal(sk.box_mask(ids, (14, 14), 0.4, seed=7, epoch=3).mask, whole.mask[ids])
    assert not torch.equal(sk.box_mask(300, (14, 14), 0.4, seed=7, epoch=4).mask, whole.mask)
    assert not torch.equal(sk.box_mask(300, (14, 14), 0.4, seed=8, epoch=3).mask, whole.mask)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_number_of_threads(threads):
    expected = sk.box_mask(2000, (14, 14), 0.6, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(20):
            made = sk.box_mask(2000, (14, 14), 0.6, seed=1)
            assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_seed_none_follows_manual_seed():
    torch.manual_seed(3)
    first = sk.box_mask(40, (7, 7), 0.3), sk.box_mask(40, (7, 7), 0.3)
    torch.manual_seed(3)
    again = sk.box_mask(40, (7, 7), 0.3), sk.box_mask(40, (7, 7), 0.3)
    assert torch.equal(first[0].mask, again[0].mask)
    assert torch.equal(first[1].mask, again[1].mask)
    assert not torch.equal(first[0].mask, first[1].mask)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2), (7, 7), 0.6), TypeError, "n_or_ids has dtype float32"),
        ((torch.zeros(2, 2, dtype=torch.int64), (7, 7), 0.6), ValueError, "n_or_ids has shape"),
        ((-1, (7, 7), 0.6), ValueError, "n_or_ids is -1"),
        ((2, (0, 7), 0.6), ValueError, "grid is 0 x 7"),
        ((2, (7, 7), 1.5), ValueError, "ratio is 1.5"),
        ((2, (7, 7), float("nan")), ValueError, "ratio is nan"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        sk.box_mask(*arguments, seed=0)


def test_a_box_beyond_the_grid_is_refused_by_the_op_itself():
    with pytest.raises(ValueError, match="the box is 8 x 2"):
        torch.ops.simmim_kernels.box_mask(torch.arange(2), 7, 7, 8, 2, False, 0, 0)


def test_compiles_in_one_graph():
    def step(ids):
        return sk.box_mask(ids, (7, 7), 0.6, seed=5)

    ids = torch.arange(6)
    for dynamic in (False, True):
        made = torch.compile(step, fullgraph=True, dynamic=dynamic)(ids)
        assert all(torch.equal(a, b) for a, b in zip(made, step(ids), strict=True))


def test_opcheck():
    torch.library.opcheck(
        torch.ops.simmim_kernels.box_mask.default, (torch.arange(3), 4, 5, 2, 3, False, 9, 1)
    )
