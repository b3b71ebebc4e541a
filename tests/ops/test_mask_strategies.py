"""What all mask strategies promise: pure functions of (seed, epoch, sample id), checked arguments."""

import pytest
import torch

import simmim_kernels as sk

STRATEGIES = [sk.random_mask, sk.block_mask, sk.box_mask]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.__name__)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_strategy
def test_a_sample_keeps_its_mask_in_any_batch(strategy):
    whole = strategy(300, (14, 14), 0.4, seed=7, epoch=3)
    ids = torch.randperm(300)
    for some in (ids, ids[:1]):
        assert torch.equal(strategy(some, (14, 14), 0.4, seed=7, epoch=3).mask, whole.mask[some])
    assert not torch.equal(strategy(300, (14, 14), 0.4, seed=7, epoch=4).mask, whole.mask)
    assert not torch.equal(strategy(300, (14, 14), 0.4, seed=8, epoch=3).mask, whole.mask)


@every_strategy
def test_seed_none_follows_manual_seed(strategy):
    torch.manual_seed(3)
    first, second = (strategy(40, (7, 7), 0.3) for _ in range(2))
    torch.manual_seed(3)
    assert same(strategy(40, (7, 7), 0.3), first)
    assert same(strategy(40, (7, 7), 0.3), second)
    assert not torch.equal(first.mask, second.mask)


@every_strategy
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2), (7, 7), 0.6), TypeError, "n_or_ids has dtype float32"),
        ((torch.zeros(2, 2, dtype=torch.int64), (7, 7), 0.6), ValueError, "n_or_ids has shape"),
        ((-1, (7, 7), 0.6), ValueError, "n_or_ids is -1"),
        ((2, (0, 7), 0.6), ValueError, "grid is 0 x 7"),
        ((2, (7, 0), 0.6), ValueError, "grid is 7 x 0"),
        ((2, (1 << 16, 1 << 16), 0.0), ValueError, "grid is 65536 x 65536"),
        ((2, (7, 7), 1.5), ValueError, "ratio is 1.5"),
        ((2, (7, 7), -0.5), ValueError, "ratio is -0.5"),
        ((2, (7, 7), float("nan")), ValueError, "ratio is nan"),
    ],
)
def test_bad_arguments_are_named(strategy, arguments, error, words):
    with pytest.raises(error, match=words):
        strategy(*arguments, seed=0)


@every_strategy
def test_bad_seed_and_epoch_are_named(strategy):
    with pytest.raises(ValueError, match="epoch is -1"):
        strategy(1, (2, 2), 0.5, seed=0, epoch=-1)
    with pytest.raises(ValueError, match="seed is"):
        strategy(1, (2, 2), 0.5, seed=1 << 64)


@pytest.mark.slow
@every_strategy
def test_compiles_in_one_graph(strategy):
    def step(ids):
        return strategy(ids, (7, 7), 0.6, seed=5)

    ids = torch.arange(6)
    for dynamic in (False, True):
        torch._dynamo.reset()
        made = torch.compile(step, fullgraph=True, dynamic=dynamic)(ids)
        assert same(made, step(ids))


@every_strategy
def test_masks_of_a_number_of_samples_are_made_on_the_default_device(strategy):
    ids = torch.arange(2)
    with torch.device("meta"):
        assert strategy(2, (4, 4), 0.5).mask.is_meta
        assert not strategy(2, (4, 4), 0.5, device="cpu").mask.is_meta
        assert not strategy(ids, (4, 4), 0.5).mask.is_meta
