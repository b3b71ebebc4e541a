"""What autograd may be asked for: batched gradients, second derivatives on any way to them, tensors
that hold zeros without memory, and selective checkpoints."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils import checkpoint as ckpt

import simmim_kernels as sk
from tests.backends import DEVICE
from tests.ops.calls import CALLS, arguments_of, outputs, results

DIFFERENTIABLE = [name for name, call in CALLS.items() if call.leaves]
LOSSES = [name for name in DIFFERENTIABLE if "masked_loss" in CALLS[name].modules]
TENSORS = [
    (name, key)
    for name in CALLS
    for key, value in arguments_of(name).items()
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_batched_gradients_are_those_of_each(name):
    call, arguments = CALLS[name], arguments_of(name)
    leaves = {key: arguments[key].detach().requires_grad_() for key in call.leaves}
    out = outputs(call.function(**arguments | leaves))[0]
    weights = torch.randn(3, *out.shape, device=DEVICE).to(out.dtype)
    grad = partial(torch.autograd.grad, out, tuple(leaves.values()), retain_graph=True)
    each = [torch.stack(grads) for grads in zip(*map(grad, weights), strict=True)]
    for found, expected in zip(grad(weights, is_grads_batched=True), each, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_no_way_leads_around_the_refused_second_derivative(name):
    """`torch.autograd.grad` runs only what lies on the way to its inputs, and a derivative of the
    layers before the loss, without the loss's own, would look like the whole one."""
    key, arguments = CALLS[name].leaves[0], arguments_of(name)
    x = arguments[key].detach().requires_grad_()
    loss = CALLS[name].function(**arguments | {key: F.gelu(x)}).sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(grad.sum(), x)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.functional.hvp(
            lambda value: CALLS[name].function(**arguments | {key: value}).sum(), x, x.detach()
        )


@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_zeros_without_memory(name, key):
    arguments = arguments_of(name)
    lazy = torch._efficientzerotensor(
        arguments[key].shape, dtype=arguments[key].dtype, device=DEVICE
    )
    found = outputs(CALLS[name].function(**arguments | {key: lazy}))
    expected = outputs(CALLS[name].function(**arguments | {key: torch.zeros_like(arguments[key])}))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_exported_programs_give_every_gradient(name, strict):
    """An exported program holds the ops, without the Functions around them."""
    call, arguments = CALLS[name], arguments_of(name)
    names = [key for key in arguments if key in call.leaves]

    class Model(torch.nn.Module):
        def forward(self, *leaves):
            return outputs(call.function(**arguments | dict(zip(names, leaves, strict=True))))[0]

    leaves = tuple(arguments[key].detach().requires_grad_() for key in names)
    program = torch.export.export(Model(), leaves, strict=strict).module()
    for ours, theirs in zip(
        torch.autograd.grad(program(*leaves).float().square().sum(), leaves),
        torch.autograd.grad(Model()(*leaves).float().square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    assert not program(*(leaf.detach() for leaf in leaves)).requires_grad


@pytest.mark.parametrize("name", [n for n in LOSSES if CALLS[n].products])
def test_a_product_that_a_selective_checkpoint_keeps_stays_as_it_is(name):
    """The gradient takes the prediction's memory only where nobody else has the prediction."""
    saved = {torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.linear.default}

    def policy(context, op, *args, **kwargs):
        choice = ckpt.CheckpointPolicy
        return choice.MUST_SAVE if op in saved else choice.PREFER_RECOMPUTE

    contexts = partial(ckpt.create_selective_checkpoint_contexts, policy)
    kept = partial(ckpt.checkpoint, CALLS[name].function, use_reentrant=False, context_fn=contexts)
    for ours, theirs in zip(
        results(name, arguments_of(name), kept), results(name, arguments_of(name)), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), [case for case in TENSORS if case[1] != "weight"])
def test_compiled_code_refuses_forward_mode(name, key):
    """A tangent that no kernel has would be one of zeros."""
    call, arguments = CALLS[name], arguments_of(name)
    value = arguments[key].detach()

    def tangent(value):
        def function(value):
            return outputs(call.function(**arguments | {key: value}))[0]

        return torch.func.jvp(function, (value,), (torch.ones_like(value),))[1]

    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative|torch\.func transforms"):
        torch.compile(tangent, backend="eager")(value)


def test_exported_programs_refuse_forward_mode():
    class Loss(torch.nn.Module):
        def forward(self, pred):
            return sk.masked_l1(pred, target, mask)

    mask = sk.random_mask(2, (2, 2), 0.5, seed=0, device=DEVICE)
    pred, target = torch.randn(2, 2, 1, 4, 4, device=DEVICE)
    program = torch.export.export(Loss(), (pred,)).module()
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(program, (pred,), (torch.ones_like(pred),))
