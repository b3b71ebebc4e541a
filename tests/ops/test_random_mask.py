"""random_mask: exact counts, the published Philox answers, the same bits everywhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from simmim_kernels.backends.reference._philox import philox
from tests.backends import BACKENDS
from tests.ops.numpy_masks import random_mask as numpy_random_mask
from tests.ops.numpy_masks import words

# Random123's kat_vectors: philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, words):
    got = philox([torch.tensor([c]) for c in counter], key)
    assert tuple(int(w) for w in got) == words


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_numpy_oracle_gives_the_published_answers(counter, key, words):
    from tests.ops.numpy_masks import philox as numpy_philox

    assert tuple(int(w) for w in numpy_philox(*counter, *key)) == words


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_as_numpy(backend, ids, grid, ratio, seed, epoch):
    with sk.backend(backend):
        made = sk.random_mask(
            torch.tensor(ids, dtype=torch.int64), grid, ratio, seed=seed, epoch=epoch
        )
    units = grid[0] * grid[1]
    count = int(np.ceil(units * ratio))
    expected = [numpy_random_mask(i, units, count, seed, epoch) for i in ids]
    assert made.mask.shape == (len(ids), *grid)
    assert made.masked.shape == (len(ids), count)
    for row, (mask, masked, visible) in enumerate(expected):
        np.testing.assert_array_equal(made.mask[row].flatten(), mask)
        np.testing.assert_array_equal(made.masked[row], masked)
        np.testing.assert_array_equal(made.visible[row], visible)


def test_count_is_the_published_ceiling():
    assert sk.random_mask(3, (10, 10), 0.55, seed=0).mask.flatten(1).sum(1).tolist() == [56] * 3
    assert sk.random_mask(3, (10, 10), 0.07, seed=0).mask.flatten(1).sum(1).tolist() == [8] * 3
    assert sk.random_mask(1, (6, 6), 0.6, seed=0).masked.shape == (1, 22)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_of_two_equal_scores_the_first_is_masked(backend):
    """50176 words of 32 bits collide in about every fourth sample; the count splits the pair."""
    units = 224 * 224
    for sample in range(40):
        scores = np.sort(words(sample, np.arange(units // 4), 3, 0).ravel())
        pairs = np.flatnonzero(scores[1:] == scores[:-1])
        if len(pairs):
            break
    count = int(pairs[0]) + 1
    with sk.backend(backend):
        ids = torch.tensor([sample])
        mask, masked, _ = torch.ops.simmim_kernels.random_mask(ids, 224, 224, count, 3, 0)
    expected, positions, _ = numpy_random_mask(sample, units, count, 3, 0)
    np.testing.assert_array_equal(mask[0].flatten(), expected)
    np.testing.assert_array_equal(masked[0], positions)


def test_every_unit_is_masked_equally_often():
    n, ratio = 20_000, 0.6
    made = sk.random_mask(n, (6, 6), ratio, seed=11)
    expected = math.ceil(36 * ratio) / 36
    spread = math.sqrt(expected * (1 - expected) / n)
    assert (made.mask.float().mean(0) - expected).abs().max() < 5 * spread


def test_finer_grid_keeps_the_mask_and_its_lists():
    made = sk.random_mask(5, (3, 4), 0.5, seed=2)
    fine = made.on_grid((6, 8))
    assert torch.equal(fine.mask[:, ::2, ::2], made.mask)
    assert torch.equal(fine.mask[:, 1::2, 1::2], made.mask)
    for b in range(5):
        flat = fine.mask[b].flatten()
        assert torch.equal(fine.masked[b].long(), flat.nonzero()[:, 0])
        assert torch.equal(fine.visible[b].long(), (~flat).nonzero()[:, 0])
    with pytest.raises(ValueError, match=r"7.*3"):
        made.on_grid((7, 8))
