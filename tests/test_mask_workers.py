"""Masks made in data-loader workers, and under every instruction set this machine has."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import simmim_kernels as sk
from tests import numpy_masks

GRID, SEED, EPOCH, SAMPLES = (14, 14), 5, 2, 12
STRATEGIES = {
    "random": lambda ids: sk.random_mask(ids, GRID, 0.6, seed=SEED, epoch=EPOCH),
    "block": lambda ids: sk.block_mask(ids, GRID, 0.4, seed=SEED, epoch=EPOCH),
    "box": lambda ids: sk.box_mask(ids, GRID, 0.4, seed=SEED, epoch=EPOCH),
}
EXPECTED = {
    "random": lambda i: numpy_masks.random_mask(i, 196, 118, SEED, EPOCH)[0].reshape(GRID),
    "block": lambda i: numpy_masks.block_mask(i, GRID, 79, SEED, EPOCH)[0],
    "box": lambda i: numpy_masks.box_mask(i, GRID, (5, 5), SEED, EPOCH),
}


class Masks(Dataset):
    """One sample's masks of every strategy, made where the sample is loaded."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        made = {name: make(torch.tensor([index])) for name, make in STRATEGIES.items()}
        return {name: type(m)(*(part[0] for part in m)) for name, m in made.items()}


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


CODE = """
import numpy as np
import torch
import simmim_kernels as sk
from simmim_kernels.backends.cpu import kernels
from tests.test_avg_dist import pair_by_pair
from tests.test_mask_workers import EXPECTED, SAMPLES, STRATEGIES
for name, expected in EXPECTED.items():
    made = STRATEGIES[name](SAMPLES)
    np.testing.assert_array_equal(made.mask, [expected(i) for i in range(SAMPLES)])
    for sample in range(SAMPLES):
        flat = expected(sample).ravel()
        np.testing.assert_array_equal(made.masked[sample], np.flatnonzero(flat))
        np.testing.assert_array_equal(made.visible[sample], np.flatnonzero(~flat))
mask = torch.rand(3, 4, 5) < 0.6
np.testing.assert_allclose(sk.avg_dist(mask, 3), pair_by_pair(mask, 3), rtol=1e-13)
print(kernels.isa)
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_oracles_bits(isa):
    ran = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "SIMMIM_KERNELS_ISA": isa, "SIMMIM_KERNELS_BACKEND": "cpu"},
        cwd=os.path.dirname(os.path.dirname(__file__)),
        capture_output=True,
        text=True,
    )
    if "is not available on this processor" in ran.stderr:
        pytest.skip(f"{isa} is not available here")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [isa]


def test_a_default_device_set_elsewhere_changes_nothing():
    """Memory that a kernel writes must be the CPU's, whatever `torch.empty` would make."""
    ids = torch.arange(SAMPLES)
    expected = {name: make(ids) for name, make in STRATEGIES.items()}
    with torch.device("meta"):
        made = {name: make(ids) for name, make in STRATEGIES.items()}
    for name in STRATEGIES:
        assert all(torch.equal(a, b) for a, b in zip(made[name], expected[name], strict=True))
