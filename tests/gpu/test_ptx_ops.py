"""Every op's kernels as nvcc and Triton compile them, run by the machine of tests/gpu/ptx: no
fault, and results as close to float64 as plain PyTorch's."""

import pytest
import torch
from torch.utils import _pytree as pytree

import simmim_kernels as sk
from tests.budget import assert_within_budget
from tests.gpu.ptx.kernel import RISING, Order
from tests.gpu.ptx.launches import TARGETS, running, why_not
from tests.gpu.suite import modules_of
from tests.ops.calls import CALLS, arguments_of, results
from tests.poison import poison_memory

pytestmark = pytest.mark.slow


def wide(value):
    """The same call in float64: what is a floating-point number or type becomes one."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return value


CASES = [
    (backend, target, name)
    for backend, targets in TARGETS.items()
    for target in targets
    for name, call in CALLS.items()
    if {*call.modules} <= {*modules_of(backend)}
]
ORDERS = (Order(RISING), Order(20, switches=True))


@pytest.mark.parametrize(("backend", "target", "name"), CASES)
def test_compiled_kernels_have_no_fault_and_the_reference_result(
    backend, target, name, monkeypatch
):
    if (reason := why_not(backend)) is not None:
        pytest.skip(reason)
    poison_memory(monkeypatch, backend)
    arguments, found = arguments_of(name), []
    for order in ORDERS:
        with running(backend, target, order=order) as run:
            found.append(results(name, arguments))
        assert run.counts["launches"]
        assert not run.faults, "\n".join(map(str, run.faults))
    with sk.backend("reference"):
        plain = results(name, arguments)
        exact = results(name, pytree.tree_map(wide, arguments), grad_dtype=plain[0].dtype)
    for ours, again, theirs, right in zip(*found, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, again)
        if ours.is_floating_point():
            assert_within_budget(ours, theirs, right, name)
        else:
            assert torch.equal(ours, theirs)
