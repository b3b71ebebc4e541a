"""Head and loss on masked tokens, against the dense head and the published loss in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from simmim_kernels.backends._loss_spec import LossSpec
from tests.backends import BACKENDS
from tests.budget import assert_within_budget
from tests.ops.loss_cases import (
    BETA,
    LOSSES,
    MEAN,
    STD,
    as_image,
    normalised,
    numbers_of,
    patch_target,
    published,
    window_target,
)


def head_loss(kind, *args, **options):
    return getattr(sk, f"masked_linear_{kind}")(*args, **numbers_of(kind, BETA), **options)


def head_problem(batch, channels, grid, unit, patch, width, dtype, bias=True):
    h, w = grid[0] * unit // patch, grid[1] * unit // patch
    tokens = torch.randn(batch, h * w, width).to(dtype)
    weight = torch.randn(channels * patch * patch, width).to(dtype)
    offset = torch.randn(channels * patch * patch).to(dtype) if bias else None
    target = torch.randn(batch, channels, grid[0] * unit, grid[1] * unit)
    return tokens, weight, offset, target, sk.random_mask(batch, grid, 0.6, seed=2)


def dense(kind, tokens, weight, bias, target, mask, order, reduction="mean", eps=1e-5):
    """The published computation: every token, every pixel."""
    patch = int((weight.shape[0] // target.shape[1]) ** 0.5)
    image = as_image(F.linear(tokens, weight, bias), target, patch, order)
    mask = mask.mask if isinstance(mask, sk.PatchMask) else mask
    return published(kind, image, target, mask, eps, reduction)


def with_gradients(function, *inputs):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    loss = function(*leaves)
    weight = torch.arange(1, loss.numel() + 1, dtype=loss.dtype).view(loss.shape)
    return loss, *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None], weight)


def check_case(kind, tokens, weight, bias, target, mask, order="cyx", reduction="mean", **stats):
    found = with_gradients(
        lambda t, w, b: head_loss(
            kind, t, w, b, target, mask, order=order, reduction=reduction, **stats
        ),
        tokens,
        weight,
        bias,
    )
    plain = with_gradients(
        lambda t, w, b: dense(kind, t, w, b, normalised(target, **stats), mask, order, reduction),
        *(tokens, weight, bias),
    )
    wide = normalised(target.double(), **stats, dtype=torch.float64)
    exact = with_gradients(
        lambda t, w, b: dense(kind, t, w, b, wide, mask, order, reduction),
        *(None if x is None else x.double() for x in (tokens, weight, bias)),
    )
    names = ("loss", "gradient of tokens", "gradient of weight", "gradient of bias")
    for name, ours, low, high in zip(names, found, plain, exact, strict=False):
        assert_within_budget(ours, low, high, name)


@given(
    kind=st.sampled_from(LOSSES[1:]),  # the sign of L1 turns on a rounding
    order=st.sampled_from(["cyx", "yxc"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 13]),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.sampled_from([(4, 4), (4, 2), (8, 2)]),
    bias=st.booleans(),
    normalized=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradients(
    backend, kind, order, reduction, dtype, batch, channels, grid, sizes, bias, normalized
):
    problem = head_problem(batch, channels, grid, *sizes, 8, dtype, bias)
    stats = {"mean": [0.4] * channels, "std": [0.3] * channels} if normalized else {}
    with sk.backend(backend):
        check_case(kind, *problem, order=order, reduction=reduction, **stats)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [0.0, 0.4, 1.0])
def test_plain_mask_may_differ_in_count(backend, masked):
    tokens, weight, bias, target, _ = head_problem(3, 3, (3, 2), 8, 4, 8, torch.float32)
    mask = torch.rand(3, 3, 2) < masked
    with sk.backend(backend):
        for reduction in ("mean", "none"):
            check_case("mse", tokens, weight, bias, target, mask, reduction=reduction)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    tokens, weight, bias, target, mask = head_problem(0, 3, (2, 2), 4, 4, 8, torch.float32)
    with sk.backend(backend):
        found = with_gradients(
            lambda *head: sk.masked_linear_l1(*head, target, mask), tokens, weight, bias
        )
    assert [tuple(x.shape) for x in found] == [(), (0, 4, 8), (48, 8), (48,)]
    assert not any(x.any() for x in found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("order", ["cyx", "yxc"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "norm", [None, sk.WindowNorm(5, 0.3), sk.PatchNorm(0.3)], ids=["plain", "window", "patch"]
)
def test_equals_the_loss_of_the_dense_head(backend, kind, order, reduction, norm):
    *head, _, mask = head_problem(2, 3, (2, 3), 8, 4, 16, torch.float64)
    target = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    pixels = normalised(target, MEAN, STD, torch.float64)
    if isinstance(norm, sk.WindowNorm):
        pixels = window_target(pixels, norm.window, norm.eps)
    elif norm is not None:
        pixels = patch_target(pixels, 4, norm.eps)
    options = {"order": order, "reduction": reduction, "eps": 2.0}
    with sk.backend(backend):
        found = with_gradients(
            lambda *h: head_loss(
                kind, *h, target, mask, target_norm=norm, mean=MEAN, std=STD, **options
            ),
            *head,
        )
    expected = with_gradients(lambda *h: dense(kind, *h, pixels, mask, **options), *head)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_nan_in_visible_tokens_and_pixels_changes_nothing():
    tokens, weight, bias, target, mask = head_problem(2, 3, (2, 3), 8, 4, 8, torch.float32)
    seen = mask.on_grid((4, 6)).visible.long()
    dirty = tokens.scatter(1, seen[..., None].expand(-1, -1, 8), float("nan"))
    pixels = mask.mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    clean = with_gradients(lambda *h: sk.masked_linear_l1(*h, target, mask), tokens, weight, bias)
    target = target.masked_fill(~pixels, float("nan"))
    found = with_gradients(lambda *h: sk.masked_linear_l1(*h, target, mask), dirty, weight, bias)
    assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True))


def test_padding_rows_reach_nothing():
    *_, target, mask = head_problem(2, 3, (2, 2), 4, 4, 8, torch.float32)
    ops, numbers = torch.ops.simmim_kernels, 48
    found = []
    for backend in BACKENDS:
        for count in (6, 8):
            with sk.backend(backend):
                index = ops.masked_positions(mask.mask, 2, 2, count)
                pred = torch.full((count, numbers), float("nan"))
                pred[:6] = torch.arange(numbers) / numbers
                loss, grad, _ = ops.masked_loss(
                    *(pred, target, mask.mask, index, None, None),
                    *LossSpec("mse", 1.0, "cyx", 1e-5, "mean"),
                    True,
                )
            assert (grad[6:] == 0).all()
            found.append((loss, grad[:6]))
    assert all(torch.allclose(loss, found[0][0], rtol=1e-6) for loss, _ in found)
    assert all(torch.allclose(grad, found[0][1], rtol=1e-6) for _, grad in found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_gradcheck(backend, kind):
    tokens, weight, bias, target, mask = head_problem(2, 1, (2, 1), 4, 2, 3, torch.float64)
    leaves = [x.requires_grad_() for x in (tokens, weight, bias)]
    with sk.backend(backend):
        assert torch.autograd.gradcheck(lambda *head: head_loss(kind, *head, target, mask), leaves)


@pytest.mark.parametrize("argument", ["weight", "bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_that_do_not_meet_are_named(argument, dtype):
    tokens, weight, bias, target, mask = head_problem(2, 3, (2, 2), 8, 4, 8, torch.float32)
    head = {"weight": weight, "bias": bias}
    head[argument] = head[argument].to(dtype)
    with pytest.raises(TypeError, match=f"{argument} has dtype .*; allowed: float32"):
        sk.masked_linear_l1(tokens, head["weight"], head["bias"], target, mask)


def test_autocast_runs_the_product_in_its_type():
    tokens, weight, bias, target, mask = head_problem(2, 3, (2, 2), 8, 4, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, *grads = with_gradients(
            lambda *head: sk.masked_linear_mse(*head, target, mask), tokens, weight, bias
        )
    assert loss.dtype == torch.float32 and all(g.dtype == torch.float32 for g in grads)
    low = sk.masked_linear_mse(tokens.bfloat16(), weight.bfloat16(), bias.bfloat16(), target, mask)
    assert torch.equal(loss, low)


def test_opcheck():
    mask = sk.random_mask(2, (2, 2), 0.5, seed=0).mask
    for count in (16, 20):
        torch.library.opcheck(
            torch.ops.simmim_kernels.masked_positions.default, (mask, 4, 4, count)
        )


def test_bad_arguments_are_named():
    tokens, weight, bias, target, mask = head_problem(2, 3, (2, 2), 8, 4, 8, torch.float32)
    cases = [
        ((tokens[0], weight, bias, target, mask), ValueError, "tokens has shape"),
        ((tokens[:, 1:], weight, bias, target, mask), ValueError, "tokens has shape"),
        ((tokens, weight[1:], bias, target, mask), ValueError, "weight has shape"),
        ((tokens, weight, bias[1:], target, mask), ValueError, "bias has shape"),
        ((tokens, weight, bias, target[0], mask), ValueError, "target has shape"),
        ((tokens, weight, bias, target.long(), mask), TypeError, "target has dtype"),
        ((tokens, weight, bias, target, mask.mask.float()), TypeError, "mask has dtype"),
        (
            (tokens, weight, bias, target, torch.zeros(2, 8, 8, dtype=torch.bool)),
            ValueError,
            "token grid height 4",
        ),
    ]
    for arguments, error, words in cases:
        with pytest.raises(error, match=words):
            sk.masked_linear_l1(*arguments)
    with pytest.raises(ValueError, match="count is 3"):
        torch.ops.simmim_kernels.masked_positions(mask.mask, 2, 2, 3)


def test_gradient_takes_the_place_of_the_prediction(monkeypatch):
    products, saved = [], []

    def linear(*args):
        products.append(linear_of_torch(*args))
        return products[-1]

    linear_of_torch = F.linear
    monkeypatch.setattr(F, "linear", linear)
    tokens, weight, bias, target, mask = head_problem(2, 3, (3, 3), 8, 4, 5, torch.float32)
    tokens.requires_grad_()
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with keep:
        loss = sk.masked_linear_l1(tokens, weight, bias, target, mask)
    memory = products[0].untyped_storage().data_ptr()
    assert memory in {t.untyped_storage().data_ptr() for t in saved}
    loss.backward()
    assert tokens.grad is not None
