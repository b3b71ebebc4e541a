"""Masks made in data-loader workers, and under every instruction set this machine has."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import simmim_kernels as sk
from tests.ops import numpy_masks

GRID, SEED, EPOCH, SAMPLES = (14, 14), 5, 2, 12
STRATEGIES = {
    "random": lambda ids: sk.random_mask(ids, GRID, 0.6, seed=SEED, epoch=EPOCH),
    "block": lambda ids: sk.block_mask(ids, GRID, 0.4, seed=SEED, epoch=EPOCH),
    "box": lambda ids: sk.box_mask(ids, GRID, 0.4, seed=SEED, epoch=EPOCH),
    "uniform": lambda ids: sk.uniform_mask(ids, GRID, 0.5, seed=SEED, epoch=EPOCH),
}
EXPECTED = {
    "random": lambda i: numpy_masks.random_mask(i, 196, 118, SEED, EPOCH)[0].reshape(GRID),
    "block": lambda i: numpy_masks.block_mask(i, GRID, 79, SEED, EPOCH)[0],
    "box": lambda i: numpy_masks.box_mask(i, GRID, (5, 5), SEED, EPOCH),
    "uniform": lambda i: numpy_masks.uniform_mask(i, GRID, 2, SEED, EPOCH),
}


class Masks(Dataset):
    """One sample's masks of every strategy, made where the sample is loaded."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        made = {name: make(torch.tensor([index])) for name, make in STRATEGIES.items()}
        return {name: type(m)(*(part[0] for part in m)) for name, m in made.items()}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_make_the_masks_of_the_main_process(workers):
    # Work in the parent starts its team of threads; a forked worker has none.
    sk.random_mask(4000, GRID, 0.6, seed=0)
    loader = DataLoader(
        Masks(),
        batch_size=4,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    batches = list(loader)
    for name, expected in EXPECTED.items():
        made = [batch[name] for batch in batches]
        assert all(type(batch) is sk.PatchMask for batch in made)
        mask = torch.cat([batch.mask for batch in made])
        np.testing.assert_array_equal(mask, [expected(i) for i in range(SAMPLES)])
        whole = STRATEGIES[name](SAMPLES)
        for part in ("masked", "visible"):
            gathered = torch.cat([getattr(batch, part) for batch in made])
            assert torch.equal(gathered, getattr(whole, part))
