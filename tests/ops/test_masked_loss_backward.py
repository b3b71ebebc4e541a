"""The backward pass of the masked losses: factors, hooks, accumulation, what is refused."""

import importlib

import pytest
import torch

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.ops.digests import all_halves
from tests.ops.loss_cases import numbers_of, ours, problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_twice(dtype, factor, reduction):
    pred, target, mask, _ = problem(2, 3, (2, 2), 8, 4, "cyx", dtype, torch.float32)
    pred.requires_grad_()
    weight = torch.full((2,) if reduction == "none" else (), factor)
    loss = sk.masked_mse(pred, target, mask, reduction=reduction)
    (first,) = torch.autograd.grad(loss, pred, weight, retain_graph=True)
    kept = first.clone()
    first.fill_(7.0)  # what the caller does with it must not reach the graph
    (second,) = torch.autograd.grad(loss, pred, weight, retain_graph=True)
    (third,) = torch.autograd.grad(loss, pred, weight)
    assert torch.equal(second, kept) and torch.equal(third, kept)
    (expected,) = torch.autograd.grad(
        sk.masked_mse(pred, target, mask, reduction=reduction), pred, torch.ones_like(weight)
    )
    assert torch.allclose(kept.float(), expected.float() * factor, rtol=0.02, atol=1e-6)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, pred, weight)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_what_a_hook_has_saved_stays_as_it_is(factor):
    pred, target, mask, _ = problem(2, 3, (2, 2), 8, 4, "cyx", torch.float32, torch.float32)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return len(saved) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda place: saved[place]):
        loss = sk.masked_mse(pred.requires_grad_(), target, mask)
    before = [tensor.clone() for tensor in saved]
    (loss * factor).backward()
    pred.grad.zero_()
    assert before and all(torch.equal(a, b) for a, b in zip(saved, before, strict=True))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "cpu"])
def test_a_kernel_scales_what_it_need_not_read(backend):
    """Backward passes on a GPU, where the host may not look at the factor."""
    module = importlib.import_module(f"simmim_kernels.backends.{backend}.masked_loss")
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
    signalling = {torch.float32: 0x7F800001, torch.bfloat16: 0x7F81, torch.float16: 0x7C01}
    shapes = ((1, 1), (), (1,)), ((3, 70), (), (3,)), ((2, 1, 9001), (), (2,)), ((0, 4), (), (0,))
    for dtype in (*bits, torch.float64):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for shape, *factors in shapes:
            for factor in factors:
                grad = torch.randn(shape).to(dtype)
                factor = torch.randn(factor)
                rows = factor.view(-1, *(1,) * (len(shape) - 1)) if factor.dim() else factor
                expected = (grad.to(wide) * rows.to(wide)).to(dtype)
                module.scale_gradient_(grad, factor)
                assert torch.equal(grad, expected)
        same = torch.randn(3, 2, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
        expected = same.to(wide).mul(2.0).to(dtype)
        module.scale_gradient_(same, torch.full((1,), 2.0).expand(3))
        assert torch.equal(same, expected)
    for dtype, whole in bits.items():
        # Whoever multiplies a signalling NaN by 1 makes it a quiet one.
        grad = torch.full((2, 5000), signalling[dtype], dtype=whole).view(dtype)
        module.scale_gradient_(grad, torch.tensor((1.0, 0.5)))
        if backend != "reference":
            assert (grad[0].view(whole) == signalling[dtype]).all()
        assert grad.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 150, 200), (2000, 3, 8, 8), (2, 3, 8, 8)])
def test_a_factor_for_each_sample(dtype, kept, shape):
    """Of gradients that are scaled in one piece, and in pieces of a sample and of many."""
    pred = torch.randn(shape).to(dtype, memory_format=torch.channels_last).requires_grad_()
    target, mask = torch.randn(shape), torch.rand(shape[0], 2, 2) < 0.6
    loss = sk.masked_mse(pred, target, mask, reduction="none")
    factor = torch.rand(shape[0]).to(loss.dtype)
    (ones,) = torch.autograd.grad(loss, pred, torch.ones_like(factor), retain_graph=True)
    (grad,) = torch.autograd.grad(loss, pred, factor, retain_graph=kept)
    expected = (ones * factor.view(-1, 1, 1, 1)).to(dtype)
    if dtype == torch.float16:  # its gradient lacks the division until now
        assert torch.allclose(grad, expected, rtol=2e-3, atol=1e-7)
    else:
        assert torch.equal(grad, expected)
    assert grad.stride() == expected.stride()


def test_gradients_accumulate():
    pred, target, mask, _ = problem(2, 3, (2, 2), 8, 4, "cyx", torch.float32, torch.float32)
    pred.requires_grad_()
    for _ in range(2):
        sk.masked_l1(pred, target, mask).backward()
    twice = pred.grad.clone()
    pred.grad = None
    loss = sk.masked_l1(pred, target, mask)
    (loss + loss).backward()
    assert torch.equal(pred.grad, twice)


def test_a_leaf_takes_the_saved_gradient_itself():
    pred, target, mask, _ = problem(2, 3, (2, 2), 8, 4, "cyx", torch.float32, torch.float32)
    loss = sk.masked_l1(pred.requires_grad_(), target, mask)
    memory = loss.grad_fn.saved_tensors[0].data_ptr()
    loss.backward()
    assert pred.grad.data_ptr() == memory


def test_gradients_of_float16_survive_a_scaler():
    pred, target, mask, _ = problem(8, 3, (7, 7), 32, 16, "cyx", torch.float16, torch.float32)
    pred.requires_grad_()
    (sk.masked_l1(pred, target, mask) * 65536).backward()
    masked = mask.mask.sum() * 32 * 32 * 3
    expected = (65536 / masked).half()
    assert torch.equal(pred.grad.abs().unique(), torch.stack((torch.zeros(()).half(), expected)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target", [torch.uint16, torch.int16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("kind", "number"), [("mse", None), ("huber", 1e5), ("smooth_l1", 1e6)])
def test_gradients_of_float16_hold_any_difference_of_16_bits(
    kind, number, reduction, target, backend
):
    """A slope may lie beyond float16 where the gradient, divided by the pixels, does not."""
    limits = torch.iinfo(target) if target != torch.float16 else torch.finfo(target)
    numbers = torch.tensor([limits.min, limits.max], dtype=torch.float64)
    wanted = numbers.view(2, 1, 1, 1).expand(2, 3, 8, 8).to(target)
    pred = torch.tensor([65504.0, -65504.0] * 4).half().expand(2, 3, 8, 8)
    mask, extra = torch.ones(2, 2, 2, dtype=torch.bool), numbers_of(kind, number)
    grads = []
    for leaf, goal, runs in (
        (pred.clone(), wanted, backend),
        (pred.double(), wanted.double(), "reference"),
    ):
        leaf.requires_grad_()
        with sk.backend(runs):
            loss = ours(kind, leaf, goal, mask, "cyx", reduction=reduction, **extra)
            loss.sum().backward()
        grads.append(leaf.grad.double())
    # rounded twice, once by half the least number there is
    torch.testing.assert_close(*grads, rtol=1.01 * torch.finfo(torch.float16).eps, atol=2**-25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_prediction_of_16_bits_has_plain_pytorchs_gradient(backend, dtype):
    """Rounded once, bit for bit: subnormal, large and infinite ones, and NaN where that has NaN."""
    pred = all_halves().view(dtype).requires_grad_()
    target = torch.linspace(-3, 3, pred.numel()).view(pred.shape)
    with sk.backend(backend):
        mask = torch.ones(1, 4, 4, dtype=torch.bool)
        loss = sk.masked_mse(pred, target, mask, reduction="sum")
    plain = (pred.float() - target).square().sum()
    grads = [torch.autograd.grad(result, pred)[0] for result in (loss, plain)]
    found, expected = (grad.view(torch.int16)[~grad.isnan()] for grad in grads)
    assert torch.equal(*(grad.isnan() for grad in grads)) and torch.equal(found, expected)
