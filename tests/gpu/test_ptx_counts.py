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


# Kernels that move most of their bytes in less than 16 a lane. It must become empty.
NARROW = {
    ("cuda", "normalize_window"): "one number a load",
    ("triton", "_normalize_window"): "one number a load",
}


def step(function, *tensors):
    leaves = [t for t in tensors if t.requires_grad]
    out = function(*tensors)
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def streams():
    """Calls of the ops that stream, at widths of ViT-B, in two types."""
    mask, image = sk.random_mask(1, (7, 7), 0.6, seed=1), torch.randn(1, 3, 112, 112)
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(1, 49, 768, dtype=dtype, requires_grad=True)
        token = torch.randn(768, dtype=dtype, requires_grad=True)
        yield lambda x=x, token=token: step(lambda x, t: sk.mask_tokens(x, mask, t), x, token)
        yield lambda x=x: step(lambda x: sk.masked_l1(x, image, mask), x)
        image_like = torch.randn(1, 3, 112, 112, dtype=dtype, requires_grad=True)
        yield lambda x=image_like: step(lambda x: sk.masked_l1(x, image, mask), x)
    # strides that are multiples of 4, which Triton does not look for
    x = torch.randn(1, 3, 196, 196, requires_grad=True)
    yield lambda x=x: step(lambda x: sk.masked_l1(x, x.detach() + 1, mask), x)
    histograms = torch.randn(1, 108, 14, 14).to(memory_format=torch.channels_last)
    x = torch.randn(1, 196, 108, requires_grad=True)
    yield lambda x=x: step(lambda x: sk.masked_mse(x, histograms, mask), x)
    yield lambda: sk.normalize_patches(image, 16)
    yield lambda: sk.normalize_targets(image, 47)


def test_what_streams_moves_whole_sectors_16_bytes_a_lane(backend):
    narrow, streaming = set(), set()
    for call in streams():
        for found in count_call(backend, TARGETS[backend][1], call):
            if found.bytes > 64 << 10:
                kernel = backend, found.kernel.partition("<")[0]
                streaming.add(kernel)
                assert found.sectors <= 1.1 * found.least_sectors, found
                if found.wide_bytes < 0.8 * found.bytes:
                    narrow.add(kernel)
    assert len(streaming) == 5
    assert narrow == {kernel for kernel in NARROW if kernel[0] == backend}
