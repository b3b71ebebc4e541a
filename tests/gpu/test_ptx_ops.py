"""Every op's kernels as nvcc and Triton compile them, run by the machine of tests/gpu/ptx: no fault,
and results as close to float64 as plain PyTorch's."""

import pytest
import torch
from torch.utils import _pytree as pytree

import simmim_kernels as sk
from simmim_kernels import backends
from tests.budget import assert_within_budget
from tests.gpu.ptx.launches import TARGETS, running, why_not
from tests.ops.calls import CALLS, arguments_of, results
from tests.poison import poison_memory

pytestmark = pytest.mark.slow

# Faults that the machine finds in kernels and that are not mended yet. It must become empty.
KNOWN_FAULTS = {
    (
        "triton",
        "block_mask",
    ): "grids of at most 32 units: one warp stores marks that others may read",
}


def wide(value):
    """The same call in float64: what is a floating-point number or type becomes one."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return value


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("backend", "target"), [(name, target) for name in TARGETS for target in TARGETS[name]]
)
def test_compiled_kernels_have_no_fault_and_the_reference_result(
    backend, target, name, monkeypatch, request
):
    if reason := KNOWN_FAULTS.get((backend, name)):
        request.applymarker(pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True))
    if (reason := why_not(backend)) is not None:
        pytest.skip(reason)
    poison_memory(monkeypatch, backend)
    arguments = arguments_of(name)
    with running(backend, target) as run:
        for room in CALLS[name].rooms:
            if (reason := backends.why_not(backend, room, "cpu")) is not None:
                pytest.skip(reason)
        found = results(name, arguments)
    assert run.counts["launches"]
    assert not run.faults, "\n".join(map(str, run.faults))
    with sk.backend("reference"):
        plain = results(name, arguments)
        exact = results(name, pytree.tree_map(wide, arguments), grad_dtype=plain[0].dtype)
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        if ours.is_floating_point():
            assert_within_budget(ours, theirs, right, name)
        else:
            assert torch.equal(ours, theirs)
