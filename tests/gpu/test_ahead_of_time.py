"""Every Triton kernel compiled for the GPUs it is meant for, at the shapes that matter: nothing
spills, and what moves much data moves it 16 bytes at a time."""

import importlib
from types import SimpleNamespace

import pytest

from tests.gpu import launches
from tests.gpu.suite import modules_of

pytest.importorskip("triton")
from simmim_kernels.backends import triton as package
from tests.gpu.ahead_of_time import TARGETS, compiled_by

pytestmark = pytest.mark.slow

# These read little: masks, lists, partial sums; or a few numbers of a row in each thread.
NARROW = {
    "_random_mask",
    "_uniform_mask",
    "_box_mask",
    "_block_mask",
    "_token_places",
    "_distances",
    "_add_rows",
    "_random_crops",
    "_crop_resize",
}
NARROW |= {"count", "mark", "scales", "finish", "_normalize_window"}
NARROW |= {"_normalize_patches bytes", "_mask_channels_last"}
# A thread loads as many bytes as numbers make a store of 16 bytes.
NARROW |= {"_mask_image bytes"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("module", modules_of("triton"))
def test_compiles_without_spills_and_loads_wide(module, target):
    backend = SimpleNamespace(**{module: importlib.import_module(f"{package.__name__}.{module}")})
    calls = list(getattr(launches, module)(backend).items())
    if target != "sm_90":  # the other targets share the calls
        others = [name for name in TARGETS if name != "sm_90"]
        calls = calls[others.index(target) % len(calls) :: len(others)]
    for what, call in calls:
        kernels = compiled_by(call, target)
        assert kernels, f"{what} launches nothing"
        for kernel in kernels:
            assert kernel.spilled() == 0, f"{what}: {kernel.name} spills {kernel.spilled()}"
            if not NARROW & {kernel.name, f"{kernel.name} {what}"}:
                assert kernel.loads_wide(), f"{what}: {kernel.name} has no 16-byte load"
