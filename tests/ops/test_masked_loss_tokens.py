"""Masked losses of target tokens `(B, L, N)`, against plain PyTorch in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from simmim_kernels.nn import MaskedMSELoss
from tests.backends import BACKENDS
from tests.budget import assert_within_budget
from tests.ops.loss_cases import BETA, LOSSES, loss_of_numbers, numbers_of

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NORM_EPS = 1e-3
WIDTHS = [1, 2, 7, 16, 108, 130, 1031]


def ours(kind, pred, target, mask, **options):
    return getattr(sk, f"masked_{kind}")(pred, target, mask, **numbers_of(kind, BETA), **options)


def hidden_tokens(mask, target):
    """The mask by token, `bool (B, L)`."""
    mask = mask.mask if isinstance(mask, sk.PatchMask) else mask
    scale = round((target.shape[1] / mask.shape[1:].numel()) ** 0.5)
    return mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1)


def normalized(target):
    mean = target.mean(-1, keepdim=True)
    var = target.var(-1, keepdim=True) if target.shape[-1] > 1 else torch.zeros_like(mean)
    return (target - mean) / torch.sqrt(var + NORM_EPS)


def plain(kind, pred, target, hidden, reduction, norm, eps, dtype):
    """MaskFeat's arithmetic: the loss of every number, those of visible tokens dropped, the mean."""
    pred, target = pred.to(dtype), target.to(dtype)
    target = normalized(target) if norm else target
    loss = loss_of_numbers(kind, pred, target)
    loss, count = loss.sum(-1) * hidden, hidden.to(dtype)
    if reduction == "sum":
        return loss.sum()
    dims = (1,) if reduction == "none" else (0, 1)
    return loss.sum(dims) / (count.sum(dims) + eps) / target.shape[-1]


def loss_and_grad(function, pred):
    pred = pred.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = function(pred)
    weight = torch.arange(1, loss.numel() + 1, dtype=loss.dtype).view(loss.shape)
    return loss, torch.autograd.grad(loss, pred, weight)[0]


def problem(batch, grid, scale, width, dtype, target_dtype, norm=False):
    """Prediction and target no closer than 0.02, so that rounding turns no sign of theirs."""
    mask = sk.random_mask(batch, grid, 0.6, seed=1)
    target = torch.randn(batch, grid[0] * grid[1] * scale**2, width).to(target_dtype)
    wanted = normalized(target.double()) if norm else target.double()
    away = torch.randn(target.shape, dtype=torch.float64)
    return (wanted + away + 0.1 * away.sign()).to(dtype), target, mask


def check(kind, pred, target, mask, norm=False, reduction="mean", eps=1e-5, rows=None):
    """`rows`: the int32 `(B, K)` tokens that are predicted alone."""
    hidden = hidden_tokens(mask, target)

    def spread(few, dtype):
        if rows is None:
            return few
        at = rows.long()[..., None].expand_as(few)
        return torch.zeros(target.shape, dtype=dtype).scatter(1, at, few.to(dtype))

    def reference(dtype):
        return lambda p: plain(kind, spread(p, dtype), target, hidden, reduction, norm, eps, dtype)

    options = {"reduction": reduction, "eps": eps}
    options |= {"target_norm": sk.PatchNorm(NORM_EPS)} if norm else {}
    found, grad = loss_and_grad(lambda p: ours(kind, p, target, mask, **options), pred)
    double = torch.float64 in (pred.dtype, target.dtype)
    low, low_grad = loss_and_grad(reference(torch.float64 if double else torch.float32), pred)
    exact, exact_grad = loss_and_grad(reference(torch.float64), pred.double())
    assert found.dtype == (torch.float64 if double else torch.float32)
    assert grad.dtype == pred.dtype and grad.shape == pred.shape
    assert_within_budget(found, low, exact, "loss")
    magnitude = None
    if norm:  # a difference of two rounded numbers, in float64 as in plain PyTorch
        wanted = normalized(target.double())
        if rows is not None:
            wanted = wanted.gather(1, rows.long()[..., None].expand_as(pred))
        size, difference = wanted.abs() + pred.double().abs(), pred.double() - wanted
        magnitude = exact_grad * size / difference
    assert_within_budget(grad, low_grad, exact_grad, "gradient", magnitude)
    if pred.dtype == torch.float32:
        assert ((found - exact).abs() <= 1e-6 * exact.abs()).all()


@given(
    kind=st.sampled_from(LOSSES),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    dtype=st.sampled_from(FLOATS),
    target_dtype=st.sampled_from(FLOATS),
    batch=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scale=st.integers(1, 2),
    width=st.sampled_from(WIDTHS),
    listed=st.booleans(),
    norm=st.booleans(),
    eps=st.sampled_from([0.0, 1e-5, 2.0]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradient(
    backend, kind, reduction, dtype, target_dtype, batch, grid, scale, width, listed, norm, eps
):
    pred, target, mask = problem(batch, grid, scale, width, dtype, target_dtype, norm)
    rows = None
    if listed:
        mask = mask.on_grid((grid[0] * scale, grid[1] * scale))
        rows = mask.masked
        pred = pred.gather(1, rows.long()[..., None].expand(-1, -1, width))
    with sk.backend(backend):
        check(kind, pred, target, mask, norm, reduction, eps, rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [False, True])
def test_tokens_of_any_length(backend, norm):
    for width in (1, 3, 1024, 1025, 4097, 20011):
        pred, target, mask = problem(1, (2, 2), 1, width, torch.float32, torch.bfloat16, norm)
        with sk.backend(backend):
            check("smooth_l1", pred, target, mask, norm)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", LOSSES)
def test_nan_in_visible_tokens_changes_nothing(backend, kind, norm):
    """With `PatchNorm` too: a token is normalised by its own numbers alone."""
    pred, target, mask = problem(2, (3, 2), 2, 12, torch.float32, torch.float32, norm)
    seen = ~hidden_tokens(mask, target)[..., None]
    options = {"target_norm": sk.PatchNorm()} if norm else {}
    dirty, masked = (t.masked_fill(seen, float("nan")) for t in (pred, target))
    with sk.backend(backend):
        clean = loss_and_grad(lambda p: ours(kind, p, target, mask, **options), pred)
        found = loss_and_grad(lambda p: ours(kind, p, masked, mask, **options), dirty)
    assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True))
    assert torch.isfinite(clean[1]).all() and not clean[1].masked_select(seen).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_mask_may_differ_in_count(backend):
    mask = torch.rand(4, 2, 3) < torch.tensor([0.0, 0.3, 0.9, 1.0])[:, None, None]
    pred, target, _ = problem(4, (2, 3), 3, 10, torch.float32, torch.float32)
    with sk.backend(backend):
        for reduction in ("mean", "none"):
            check("mse", pred, target, mask, reduction=reduction)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [False, True])
def test_equals_the_loss_of_the_image_that_the_tokens_are(backend, norm):
    """Tokens in MAE's order are the image's own patches."""
    image, mask = torch.rand(2, 3, 24, 16), sk.random_mask(2, (3, 2), 0.5, seed=3)
    tokens = image.unflatten(2, (3, 8)).unflatten(4, (2, 8)).permute(0, 2, 4, 3, 5, 1)
    tokens = tokens.flatten(3).flatten(1, 2)
    pred = torch.randn(tokens.shape)
    options = {"target_norm": sk.PatchNorm(), "eps": 0.0} if norm else {"eps": 0.0}
    with sk.backend(backend):
        found = loss_and_grad(lambda p: sk.masked_mse(p, tokens, mask, **options), pred)
        expected = loss_and_grad(
            lambda p: sk.masked_mse(p, image, mask, order="yxc", **options), pred
        )
    # Only the mean's denominator is written in other numbers, M tokens of N for M * p * p pixels of C.
    for ours_, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("listed", [False, True])
def test_gradcheck(backend, listed):
    pred, target, mask = problem(2, (2, 1), 1, 3, torch.float64, torch.float64)
    pred = pred[:, : mask.masked.shape[1]].contiguous() if listed else pred
    with sk.backend(backend):
        for kind in LOSSES:
            assert torch.autograd.gradcheck(
                lambda p, kind=kind: ours(kind, p, target, mask, reduction="none"),
                pred.requires_grad_(),
            )


def test_module():
    pred, target, mask = problem(2, (2, 3), 1, 5, torch.float32, torch.float32)
    module = MaskedMSELoss(target_norm=sk.PatchNorm())
    expected = sk.masked_mse(pred, target, mask, target_norm=sk.PatchNorm())
    assert torch.equal(module(pred, target, mask), expected)


STATS = {"mean": (0.5,) * 5, "std": (0.5,) * 5}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"pred": torch.zeros(2, 24, 4)}, ValueError, r"\(2, 24, 4\); allowed for target tokens"),
        ({"pred": torch.zeros(2, 23, 5)}, ValueError, r"\(2, 24, 5\)"),
        ({"pred": torch.zeros(2, 6, 20)}, ValueError, r"mask.on_grid\(\(h, w\)\)"),
        ({"pred": torch.zeros(2, 5, 4, 6)}, ValueError, "allowed for target tokens"),
        ({"pred": torch.zeros(1, 24, 5)}, ValueError, "allowed for target tokens"),
        (
            {"target": torch.zeros(2, 23, 5)},
            ValueError,
            r"tokens \(2, L, N\) with L = 2\*s \* 3\*s",
        ),
        ({"target": torch.zeros(2, 24, 0)}, ValueError, "N >= 1"),
        ({"target": torch.zeros(2, 24)}, ValueError, r"allowed: \(B, C, H, W\) or \(B, L, N\)"),
        (
            {"target": torch.zeros(3, 24, 5)},
            ValueError,
            r"\(3, 24, 5\); allowed under a mask of shape \(2, 2, 3\)",
        ),
        ({"target": torch.zeros(2, 24, 5).byte()}, TypeError, "target has dtype uint8; allowed"),
        ({"target": torch.zeros(2, 24, 5, requires_grad=True)}, ValueError, "requires grad"),
        (STATS, ValueError, "mean and std are given beside target tokens"),
        ({"target_norm": sk.WindowNorm(5)}, ValueError, "target_norm is WindowNorm beside"),
        ({"target_norm": "patch"}, TypeError, "target_norm is str"),
        ({"order": "xyc"}, ValueError, "xyc"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_errors(backend, change, error, words):
    pred, target, mask = problem(2, (2, 3), 2, 5, torch.float32, torch.float32)
    arguments = {"pred": pred, "target": target, "mask": mask} | change
    with sk.backend(backend), pytest.raises(error, match=words):
        sk.masked_l1(**arguments)
