"""Masked losses on each backend against float64, by the error of the published arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.budget import assert_within_budget
from tests.ops.integer_images import INTEGERS
from tests.ops.loss_cases import (
    BETA,
    LAYOUTS,
    LOSSES,
    as_image,
    lay_out,
    normalised,
    numbers_of,
    ours,
    problem,
    published,
)

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def loss_and_grad(function, pred, weight=None):
    pred = pred.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = function(pred)
    (grad,) = torch.autograd.grad(loss, pred, None if weight is None else weight.to(loss.dtype))
    return loss, grad


def check_against_published(kind, pred, target, mask, patch, layout, weight, stats, **options):
    def plain(pred, dtype):
        image = as_image(pred, target, patch, layout, mask)
        wanted = normalised(target, *stats.values(), dtype=dtype)
        wanted = wanted.double() if dtype == torch.float64 else wanted
        return published(kind, image, wanted, sk_mask(mask), **options)

    def sk_mask(mask):
        return mask.mask if isinstance(mask, sk.PatchMask) else mask

    loss, grad = loss_and_grad(
        lambda p: ours(kind, p, target, mask, layout, **stats, **options), pred, weight
    )
    low, low_grad = loss_and_grad(lambda p: plain(p, torch.float32), pred, weight)
    exact, exact_grad = loss_and_grad(lambda p: plain(p, torch.float64), pred.double(), weight)
    double = torch.float64 in (pred.dtype, target.dtype)
    assert loss.dtype == (torch.float64 if double else torch.float32)
    assert grad.dtype == pred.dtype and grad.shape == pred.shape
    assert_within_budget(loss, low, exact, "loss")
    assert_within_budget(grad, low_grad, exact_grad, "gradient")
    return loss, exact


@given(
    kind=st.sampled_from(LOSSES),
    layout=st.sampled_from(LAYOUTS),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    dtype=st.sampled_from(FLOATS),
    target_dtype=st.sampled_from([*FLOATS, *INTEGERS]),
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 13]),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.sampled_from([(8, 8), (8, 4), (8, 2), (4, 8), (2, 8), (1, 4), (6, 1), (16, 16)]),
    weighted=st.booleans(),
    normalized=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradient(
    backend, kind, layout, reduction, dtype, target_dtype, batch, channels, grid, sizes, weighted,
    normalized,
):  # fmt: skip
    unit, patch = sizes
    if unit < patch:  # a mask finer than the tokens
        grid = (grid[0] * (patch // unit), grid[1] * (patch // unit))
        layout = "cyx" if layout == "units" else layout
    pred, target, mask, stats = problem(
        batch, channels, grid, unit, patch, layout, dtype, target_dtype, normalized=normalized
    )
    weight = None
    if weighted or reduction == "none":
        weight = torch.rand(batch if reduction == "none" else ()) + 0.5
    with sk.backend(backend):
        loss, exact = check_against_published(
            kind, pred, target, mask, patch, layout, weight, stats, reduction=reduction
        )
    if dtype == torch.float32:
        assert ((loss - exact).abs() <= 1e-6 * exact.abs()).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LOSSES)
def test_nan_in_visible_pixels_changes_nothing(backend, kind, layout):
    pred, target, mask, _ = problem(2, 3, (3, 2), 8, 4, layout, torch.float32, torch.float32)
    image = as_image(pred, target, 4, layout, mask)
    scale = target.shape[2] // mask.mask.shape[1]
    seen = ~mask.mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)[:, None]
    dirty = lay_out(image.masked_fill(seen, float("nan")), 4, layout, mask)
    with sk.backend(backend):
        clean = loss_and_grad(lambda p: ours(kind, p, target, mask, layout), pred)
        masked = target.masked_fill(seen, float("nan"))
        found = loss_and_grad(lambda p: ours(kind, p, masked, mask, layout), dirty)
    assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True))
    assert torch.isfinite(clean[1]).all()
    assert (as_image(clean[1], target, 4, layout, mask).masked_select(seen) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["image", "cyx", "map"])
def test_difference_of_zero_has_gradient_zero(backend, layout):
    _, target, mask, _ = problem(2, 3, (2, 2), 8, 4, layout, torch.float32, torch.float32)
    with sk.backend(backend):
        for kind in LOSSES:
            loss, grad = loss_and_grad(
                lambda p, kind=kind: ours(kind, p, target, mask, layout),
                lay_out(target, 4, layout, mask),
            )
            assert loss == 0 and not grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_all_or_none_masked(backend, masked, reduction, eps):
    pred, target, _, _ = problem(2, 3, (2, 3), 4, 4, "cyx", torch.float32, torch.float32)
    mask = torch.full((2, 2, 3), masked)
    with sk.backend(backend):
        if masked:
            weight = torch.ones(2) if reduction == "none" else None
            check_against_published(
                "l1", pred, target, mask, 4, "cyx", weight, {}, reduction=reduction, eps=eps
            )
            return
        loss = sk.masked_l1(pred.requires_grad_(), target, mask, eps=eps, reduction=reduction)
        loss.sum().backward()
    assert not loss.any() and not pred.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["image", "cyx", "units"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_eps_is_added_to_the_count(backend, layout, kind, reduction):
    pred, target, mask, _ = problem(2, 3, (2, 3), 4, 2, layout, torch.float32, torch.float32)
    weight = torch.rand(2) + 0.5 if reduction == "none" else None
    with sk.backend(backend):
        check_against_published(
            kind, pred, target, mask, 2, layout, weight, {}, reduction=reduction, eps=2.0
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (0, 4, 48)])
def test_empty_batch(backend, reduction, shape):
    pred = torch.empty(shape, requires_grad=True)
    mask = torch.empty(0, 2, 2, dtype=torch.bool)
    with sk.backend(backend):
        loss = sk.masked_l1(pred, torch.empty(0, 3, 8, 8), mask, reduction=reduction)
        loss.sum().backward()
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert loss.sum() == 0 and pred.grad.shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", [1, 2, 8, 16])
def test_plain_mask_may_differ_in_count_and_be_on_the_pixel_grid(backend, unit):
    mask = torch.rand(4, 16 // unit, 32 // unit) < torch.tensor([0.0, 0.3, 0.9, 1.0])[:, None, None]
    for layout in ("image", "channels_last", "cyx", "yxc", "map"):
        pred, target, _, _ = problem(4, 3, (1, 2), 16, 8, layout, torch.float32, torch.float32)
        with sk.backend(backend):
            for reduction in ("mean", "none"):
                weight = torch.rand(4) if reduction == "none" else None
                check_against_published(
                    "mse", pred, target, mask, 8, layout, weight, {}, reduction=reduction
                )


STRIDED = {
    "expanded": lambda x: x[:1].expand_as(x),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "sliced": lambda x: torch.stack((x, torch.full_like(x, float("nan"))), -1)[..., 0],
    "batch_last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pred_strides", STRIDED)
@pytest.mark.parametrize("target_strides", STRIDED)
def test_strided_input(backend, layout, pred_strides, target_strides):
    pred, target, mask, _ = problem(2, 3, (2, 3), 8, 4, layout, torch.float32, torch.bfloat16)
    pred, target = STRIDED[pred_strides](pred), STRIDED[target_strides](target)
    with sk.backend(backend):
        check_against_published("smooth_l1", pred, target, mask, 4, layout, None, {})


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_may_be_tensors(backend):
    pred, target, mask, stats = problem(2, 3, (2, 2), 8, 4, "cyx", torch.float32, torch.uint8)
    tensors = {name: torch.tensor(value) for name, value in stats.items()}
    with sk.backend(backend):
        first = sk.masked_l1(pred, target, mask, **stats)
        assert torch.allclose(first, sk.masked_l1(pred, target, mask, **tensors), rtol=1e-6)
        check_against_published("l1", pred, target, mask, 4, "cyx", None, {})


@pytest.mark.parametrize("backend", BACKENDS)
def test_beta_of_zero_is_l1_and_of_any_size_is_right(backend):
    pred, target, mask, _ = problem(2, 1, (2, 2), 8, 4, "cyx", torch.float32, torch.float32)
    with sk.backend(backend):
        assert torch.equal(
            sk.masked_smooth_l1(pred, target, mask, beta=0), sk.masked_l1(pred, target, mask)
        )
        for beta in (1e-3, 1.0, 50.0):
            check_against_published("smooth_l1", pred, target, mask, 4, "cyx", None, {}, beta=beta)
    assert BETA not in (0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("delta", [1e-35, 1e-30, 1e-6, 1e-3, 0.7, 1.0, 3.0, 50.0, 1e6, 1e30])
@pytest.mark.parametrize("kind", [kind for kind in LOSSES if numbers_of(kind, BETA)])
def test_any_parameter_is_right(backend, dtype, delta, kind):
    # Multiplied as a gradient scaler does, so that float16 has something to hold.
    weight = torch.tensor(65536.0)
    pred, target, mask, _ = problem(2, 1, (2, 2), 8, 4, "cyx", dtype, torch.float32)
    for pixels in (target, torch.zeros_like(target)):
        with sk.backend(backend):
            check_against_published(
                kind, pred, pixels, mask, 4, "cyx", weight, {}, beta=delta, reduction="sum"
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_huber_of_extreme_delta_and_differences(backend):
    mask, zero = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 2, 2)
    for dtype, delta, size in (
        (torch.float32, 1e300, 2.0),
        (torch.float64, 1e300, 2.0),
        (torch.float64, 1e-300, 2.0),
        (torch.float32, 1e-35, 1e3),
        (torch.float32, 1e10, 1e-12),
        (torch.float32, 1e10, 1e27),
        (torch.float32, 1.0, 1e37),
        (torch.float32, 0.5, 1e37),
    ):
        pred = torch.full(zero.shape, -size, dtype=dtype, requires_grad=True)
        with sk.backend(backend):
            loss = sk.masked_huber(pred, zero, mask, delta=delta, eps=0.0)
            loss.backward()
        exact = pred.detach().double().requires_grad_()
        expected = torch.nn.functional.huber_loss(exact, zero.double(), delta=delta)
        expected.backward()
        epsilon = 8 * torch.finfo(dtype).eps
        assert torch.allclose(loss.double(), expected, rtol=epsilon, atol=0), (dtype, delta, size)
        assert torch.allclose(pred.grad.double(), exact.grad, rtol=epsilon, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LOSSES)
def test_infinity_and_nan_are_kept(backend, kind):
    mask, zero = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 2, 2)
    for number in (float("inf"), float("nan")):
        for parameter in (0.5, 2.0, 1e300):
            with sk.backend(backend):
                loss = ours(kind, zero + number, zero, mask, "image", beta=parameter)
            assert torch.equal(loss.isnan(), torch.tensor(number != number))
            assert not loss.isfinite()


def test_many_channels_do_not_fit_a_tile():
    for layout in ("cyx", "yxc", "channels_last"):
        pred, target, mask, _ = problem(1, 300, (2, 1), 8, 4, layout, torch.float32, torch.float32)
        check_against_published("l1", pred, target, mask, 4, layout, None, {})


@pytest.mark.slow
def test_large_tokens_and_long_rows():
    for layout in ("image", "cyx", "yxc", "map"):
        pred, target, mask, _ = problem(
            1, 1, (1, 2), 2048, 1024, layout, torch.float32, torch.uint8
        )
        loss, exact = check_against_published("l1", pred, target, mask, 1024, layout, None, {})
        assert abs(loss - exact) <= 1e-6 * exact
