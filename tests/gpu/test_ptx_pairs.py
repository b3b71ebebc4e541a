"""Patches whose lines hold whole pairs of pixels and no whole fours, as those of ViT-L/14 and ViT-H/14."""

from itertools import product

import pytest
import torch

import simmim_kernels as sk
from tests.gpu.ptx import counts
from tests.gpu.ptx.launches import TARGETS, running, why_not

pytestmark = pytest.mark.slow
PLANAR, INTERLEAVED = LAYOUTS = (torch.contiguous_format, torch.channels_last)
FLOAT, BFLOAT, BYTE = torch.float32, torch.bfloat16, torch.uint8
# Types of prediction and image, layout of the image, order of a token's numbers. CUDA runs all
# combinations; Triton, which compiles each of them, six in which any two values meet.
ALL = list(product((FLOAT, BFLOAT), (BYTE, FLOAT, BFLOAT), LAYOUTS, ("cyx", "yxc")))
PAIRS = [
    (FLOAT, BYTE, PLANAR, "cyx"),
    (FLOAT, FLOAT, INTERLEAVED, "yxc"),
    (FLOAT, BFLOAT, PLANAR, "yxc"),
    (BFLOAT, BYTE, INTERLEAVED, "yxc"),
    (BFLOAT, FLOAT, PLANAR, "cyx"),
    (BFLOAT, BFLOAT, INTERLEAVED, "cyx"),
]


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    if (reason := why_not(request.param)) is not None:
        pytest.skip(reason)
    return request.param


def loss_and_gradient(pred, image, mask, **options):
    x = pred.clone().requires_grad_()
    loss = sk.masked_smooth_l1(x, image, mask, **options)
    loss.backward()
    return loss.detach(), x.grad.float()


@pytest.mark.parametrize(
    ("backend", "dtype", "element", "layout", "order"),
    [("cuda", *case) for case in ALL] + [("triton", *case) for case in PAIRS],
    indirect=["backend"],
)
def test_losses(backend, dtype, element, layout, order):
    for patch, channels in ((14, 3), (6, 2)):
        size = 4 * patch
        image = (torch.rand(2, channels, size, size) * 255).to(element).to(memory_format=layout)
        pred = torch.randn(2, 16, channels * patch**2, dtype=dtype)
        stats = {"mean": (0.4,) * channels, "std": (0.3,) * channels}
        for mask in (
            sk.random_mask(2, (4, 4), 0.5, seed=1),
            sk.random_mask(2, (2, 2), 0.5, seed=2),
        ):
            for options in ({}, stats):
                expected = loss_and_gradient(pred, image, mask, order=order, **options)
                with running(backend, TARGETS[backend][1]) as run:
                    found = loss_and_gradient(pred, image, mask, order=order, **options)
                assert not run.faults
                torch.testing.assert_close(
                    found, expected, rtol=2e-5 if dtype.itemsize > 2 else 0.01, atol=1e-6
                )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("element", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
def test_normalised_patches(backend, element, layout):
    for patch, channels in ((14, 3), (6, 2), (10, 4)):
        image = (torch.rand(2, channels, 3 * patch, 2 * patch) * 255).to(element)
        image = image.to(memory_format=layout)
        expected = sk.normalize_patches(image, patch)
        with running(backend, TARGETS[backend][1]) as run:
            found = sk.normalize_patches(image, patch)
        assert not run.faults
        torch.testing.assert_close(found, expected)


def test_cuda_takes_few_instructions():
    """Of the kernels for any strides, 211 and 230 a number."""
    if (reason := why_not("cuda")) is not None:
        pytest.skip(reason)
    image, mask = torch.randn(1, 3, 196, 196), sk.random_mask(1, (14, 14), 0.75, seed=1)
    pred = torch.randn(1, 196, 588, dtype=torch.bfloat16, requires_grad=True)

    def call():
        sk.masked_mse(pred, image, mask, order="yxc", target_norm=sk.PatchNorm(14)).backward()

    for launch in counts.launches_of("cuda", TARGETS["cuda"][1], call, checks_races=False):
        assert counts.count(launch).instructions <= 40 * pred.numel()
