"""A barrier that is taken out of a compiled kernel is missed."""

import inspect

import pytest

from tests.gpu.ptx import mutate
from tests.gpu.ptx.launches import TARGETS, running, why_not
from tests.ops.calls import arguments_of, results

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "grid"), [("random_mask", (40, 40)), ("masked_l1 tokens", (6, 6))]
)
@pytest.mark.parametrize("backend", TARGETS)
def test_every_barrier_is_missed(backend, name, grid):
    if (reason := why_not(backend)) is not None:
        pytest.skip(reason)
    arguments = arguments_of(name, 2, grid)
    tried = mutate.remove_all([lambda: results(name, arguments)], backend, TARGETS[backend][1])
    assert tried
    assert not mutate.missed(tried)


def test_the_gradient_in_place_of_the_prediction_needs_its_barrier():
    """A listed row of few numbers is held by several warps, one of which stores the gradient."""
    if (reason := why_not("triton")) is not None:
        pytest.skip(reason)
    name = "masked_linear_l1"
    arguments = arguments_of(name)
    barriers, _ = mutate.reached_by(lambda: results(name, arguments), "triton", "sm_90")
    (barrier,) = [b for b in barriers if b.source == ("loss_pass", "loss_pass")]
    with mutate.removed(barrier), running("triton", "sm_90") as run:
        results(name, arguments)
    assert any(f.kernel == "loss_pass" and "after write" in f.kind for f in run.faults)
    assert {f.kernel for f in run.faults} == {"loss_pass"}
    with running("triton", "sm_90") as run:
        results(name, arguments)
    assert not run.faults


def test_lines_are_found_under_paths_of_another_environment():
    """As Triton's cache has them that an environment filled which is gone."""
    if (reason := why_not("triton")) is not None:
        pytest.skip(reason)
    from triton.language import standard

    from simmim_kernels.backends.triton import block_mask

    for module, function, place in (
        (standard, standard.cdiv.fn, "gone/site-packages/triton/language/standard.py"),
        (block_mask, block_mask._block_mask.fn, "gone/backends/triton/block_mask.py"),
    ):
        lines, first = inspect.getsourcelines(function)
        assert module.__file__.endswith(place.partition("triton/")[2])
        assert mutate._function_at(f"/{place}", first + len(lines) - 1) == function.__name__
