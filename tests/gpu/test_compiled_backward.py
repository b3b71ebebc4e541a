"""Backward passes that scale a gradient where it lies: nothing is written while the factor is 1."""

import re

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_code

import simmim_kernels as sk
from tests.ops.loss_cases import problem

LOSS = sk.masked_l1


def compiled_backward(function, factor, *tensors):
    """The gradients of a compiled function's loss times `factor`, and Inductor's backward pass."""
    leaves = [t for t in tensors if t.requires_grad]

    def run():
        torch._dynamo.reset()
        loss = torch.compile(function, fullgraph=True)(*tensors)
        return torch.autograd.grad(loss * factor, leaves)

    grads, codes = run_and_get_code(run)
    return grads, codes[-1].partition("def call(")[2].partition("\nrunner")[0]


@pytest.fixture(autouse=True)
def fresh():
    """Inductor's cache on disk does not tell apart who owns a saved tensor."""
    with fresh_cache():
        yield


@pytest.fixture
def step():
    weight = torch.randn(48, 48, requires_grad=True)
    tokens, target = torch.randn(2, 16, 48), torch.randn(2, 3, 16, 16)
    mask = sk.random_mask(2, (2, 2), 0.5, seed=1)
    return lambda x, w, t: LOSS(x @ w, t, mask), (tokens, weight, target)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_compiled_gradient_is_scaled_in_its_own_memory(step, factor):
    function, tensors = step
    grads, code = compiled_backward(function, factor, *tensors)
    expected = torch.autograd.grad(function(*tensors) * factor, tensors[1])
    assert torch.allclose(grads[0], expected[0], rtol=1e-6)
    assert "scale_gradient_.default(getitem" in code
    assert not re.findall(r"(?:cpp|triton)\w*fused\w*\(", code)  # no pass of Inductor's
    assert len(re.findall(r"empty_strided\w*\(", code)) == 1  # the gradient of the weight


@pytest.mark.slow
@torch._functorch.config.patch(donated_buffer=False)
def test_memory_that_others_read_is_left_alone(step):
    function, (tokens, weight, target) = step
    torch._dynamo.reset()
    loss = torch.compile(function, fullgraph=True)(tokens, weight, target) * 3.0
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(loss, weight)[0], first)
    expected = torch.autograd.grad(function(tokens, weight, target) * 3.0, weight)[0]
    assert torch.allclose(first, expected, rtol=1e-6)


@pytest.mark.slow
def test_a_graph_that_is_kept_does_not_run_cached_code_of_one_that_was_not(step):
    """PyTorch asks whoever keeps a compiled graph to set `donated_buffer=False`, and its cache of
    compiled code on disk does not see that setting."""
    function, tensors = step
    expected = torch.autograd.grad(function(*tensors) * 3.0, tensors[1])[0]
    for kept in (False, True):
        torch._dynamo.reset()
        with torch._functorch.config.patch(donated_buffer=not kept):
            loss = torch.compile(function, fullgraph=True)(*tensors) * 3.0
            for _ in range(3 if kept else 1):
                (grad,) = torch.autograd.grad(loss, tensors[1], retain_graph=kept)
                assert torch.allclose(grad, expected, rtol=1e-6)


@pytest.mark.slow
def test_gradients_of_a_leaf_stay_after_the_next_step():
    pred, target, mask, _ = problem(2, 3, (2, 2), 8, 4, "cyx", torch.float32, torch.float32)
    pred.requires_grad_()
    compiled = torch.compile(lambda p: LOSS(p, target, mask), fullgraph=True)
    (first,) = torch.autograd.grad(compiled(pred) * 2.0, pred)
    kept = first.clone()
    (second,) = torch.autograd.grad(compiled(pred) * 2.0, pred)
    assert torch.equal(first, kept) and torch.equal(second, kept)


@pytest.mark.parametrize("dims", [(1, 0, 2), (0, 2, 1), (0, 3, 1, 2), (2, 3, 0, 1)])
def test_a_gradient_in_any_order_is_left_as_it_is_by_one(dims):
    """Whoever multiplies a signalling NaN by 1 makes it a quiet one."""
    from simmim_kernels.ops import _scaled_gradient

    bits = torch.full((2, 3, 4, 5)[: len(dims)], 0x7F800001, dtype=torch.int32)
    grad = bits.permute(dims).view(torch.float32)
    _scaled_gradient._scale_in_place(grad, torch.ones(()))
    assert (bits == 0x7F800001).all()
    numbers = torch.randn(bits.shape)
    expected = numbers.permute(dims) * 3.0
    _scaled_gradient._scale_in_place(numbers.permute(dims), torch.tensor(3.0))
    assert torch.equal(numbers.permute(dims), expected)
    rows = torch.arange(1.0, 1.0 + expected.shape[0])
    again = expected * rows.view(-1, *(1,) * (len(dims) - 1))
    _scaled_gradient._scale_in_place(numbers.permute(dims), rows)
    assert torch.equal(numbers.permute(dims), again)
