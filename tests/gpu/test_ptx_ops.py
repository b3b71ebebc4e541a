"""Every op's kernels as nvcc and Triton compile them, run by the machine of tests/gpu/ptx: no
fault, and results as close to float64 as plain PyTorch's."""

import re

import pytest
import torch

from tests.gpu.host_build import CSRC
from tests.gpu.ptx.kernel import RISING, Order
from tests.gpu.ptx.launches import TARGETS, running, why_not
from tests.gpu.suite import modules_of
from tests.ops.calls import CALLS, arguments_of, check_against_the_reference, results
from tests.poison import poison_memory

pytestmark = pytest.mark.slow


ORDERS = (Order(RISING), Order(20, switches=True))


def cases():
    """Every call as it is compiled for an H100, in two orders of warps; as Triton compiles it for
    other GPUs, one call of each op in the order that switches."""
    for backend, targets in TARGETS.items():
        served = [name for name, call in CALLS.items() if {*call.modules} <= {*modules_of(backend)}]
        yield from ((backend, targets[1], name, ORDERS) for name in served)
        if backend == "triton":
            names = {CALLS[name].modules: name for name in reversed(served)}.values()
            others = (target for target in targets if target != targets[1])
            yield from ((backend, other, name, ORDERS[1:]) for other in others for name in names)


def test_cuda_sources_do_not_ask_which_gpu_they_are_compiled_for():
    """So that nvcc's PTX for an A100 is that for an H100; `make ptx` runs both."""
    sources = [path.read_text() for path in CSRC.rglob("*.*") if path.suffix in (".cu", ".h")]
    assert any("__CUDA_ARCH__" in source for source in sources)
    assert not re.findall(r"__CUDA_ARCH__ *[<>=!].*", "\n".join(sources))


@pytest.mark.parametrize(("backend", "target", "name", "orders"), list(cases()))
def test_compiled_kernels_have_no_fault_and_the_reference_result(
    backend, target, name, orders, monkeypatch
):
    if (reason := why_not(backend)) is not None:
        pytest.skip(reason)
    poison_memory(monkeypatch, backend)
    arguments, found = arguments_of(name), []
    for order in orders:
        with running(backend, target, order=order) as run:
            found.append(results(name, arguments))
        assert run.counts["launches"]
        assert not run.faults, "\n".join(map(str, run.faults))
    assert all(map(torch.equal, found[0], found[-1]))
    check_against_the_reference(name, found[0])
