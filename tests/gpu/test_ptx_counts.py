"""What the machine counts of this project's launches."""

import pytest
import torch

import simmim_kernels as sk
from tests.gpu.ptx.counts import (
    blocks_per_multiprocessor,
    count_call,
    launches_of,
    resources_of,
)
from tests.gpu.ptx.launches import TARGETS, why_not

pytestmark = pytest.mark.slow


@pytest.fixture(params=TARGETS)
def backend(request):
    if (reason := why_not(request.param)) is not None:
        pytest.skip(reason)
    return request.param


def test_every_launch_of_a_call_is_counted(backend):
    x, token = torch.randn(2, 36, 256), torch.randn(256)
    mask = sk.random_mask(2, (6, 6), 0.5, seed=1)
    (found,) = count_call(backend, TARGETS[backend][1], lambda: sk.mask_tokens(x, mask, token))
    rows = x.numel() * 4 // 32
    # Every row is written; half of them are read, the token once or more, and the mask.
    assert rows * 1.5 <= found.distinct_sectors <= rows * 1.6 + 40
    assert found.distinct_sectors <= found.least_sectors <= found.sectors
    assert found.requests >= found.least_sectors / 16  # of 16 bytes a lane
    assert found.instructions > x.numel()
    assert found.wavefronts >= found.least_wavefronts


def test_what_a_kernel_takes_of_a_multiprocessor(backend):
    image = torch.randn(1, 3, 32, 32)
    (launch,) = launches_of(backend, TARGETS[backend][1], lambda: sk.normalize_targets(image, 5))
    resources = resources_of(launch.kernel, backend)
    assert 16 <= resources.registers <= 255 and resources.spilled == 0
    blocks = blocks_per_multiprocessor(launch, resources.registers)
    assert 1 <= blocks <= 32
    assert blocks * launch.threads <= 2048
    assert blocks * launch.threads * resources.registers <= 65536
