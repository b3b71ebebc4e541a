"""How often Triton compiles: numbers that change from call to call are no constants of a kernel."""

import pytest
import torch

from simmim_kernels.backends._loss_spec import LossSpec

pytest.importorskip("triton")
from simmim_kernels.backends.triton import (
    mask_image,
    masked_loss,
    normalize_patches,
    normalize_targets,
)
from tests.gpu.ahead_of_time import compiled_by
from tests.ops.loss_cases import LOSSES, numbers_of

IMAGE, MASK = torch.empty(2, 3, 32, 32), torch.zeros(2, 2, 2, dtype=torch.bool)
TOKENS = torch.empty(2, 16, 192)


def _loss(kind):
    def call(value):
        spec = LossSpec(kind, value or 1.0, "cyx", value, "mean", factor=value)
        masked_loss.masked_loss(TOKENS, IMAGE, MASK, None, None, None, spec, True)

    return call


CALLS = {
    "fill": lambda value: mask_image.mask_image_forward(
        IMAGE, MASK, None, value, None, None, torch.float32
    ),
    **{kind: _loss(kind) for kind in LOSSES if numbers_of(kind, 1.0)},
    "patches": lambda value: normalize_patches.normalize_patches(IMAGE, 8, value, None, None),
    "window": lambda value: normalize_targets.normalize_targets(IMAGE, 5, value, None, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CALLS)
def test_ten_numbers_compile_once(what):
    numbers = (0.0, 1.0, 2.0, -0.5, 1e-5, 1e-300, 0.1, 16.0, 3e38, 1e300)
    if what != "fill":
        numbers = map(abs, numbers)

    def call():
        for number in numbers:
            CALLS[what](number)

    kernels = compiled_by(call, "sm_90")
    assert len(kernels) >= 10
    assert len({id(kernel.asm) for kernel in kernels}) == len({k.name for k in kernels})
