"""Masked losses whose target is normalised on the way, against the published normalisations."""

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from simmim_kernels.backends._loss_spec import LossSpec
from tests.backends import BACKENDS
from tests.ops.integer_images import INTEGERS
from tests.ops.loss_cases import (
    BETA,
    LAYOUTS,
    LOSSES,
    as_image,
    lay_out,
    normalised,
    ours,
    patch_target,
    problem,
    published,
    window_target,
)


def check_norm(
    kind, norm, layout, dtype, target_dtype, grid, unit, patch, reduction, normalized, make
):
    pred, target, mask, stats = problem(
        2, 3, grid, unit, patch, layout, dtype, target_dtype, normalized=normalized
    )
    wide = make(normalised(target, *stats.values(), dtype=torch.float64).double())
    pred = lay_out((torch.randn(target.shape) * 2).to(dtype), patch, layout, mask)
    leaf = pred.clone(memory_format=torch.preserve_format).requires_grad_()
    loss = ours(kind, leaf, target, mask, layout, target_norm=norm, reduction=reduction, **stats)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    exact_leaf = pred.double().requires_grad_()
    image = as_image(exact_leaf, target, patch, layout, mask)
    exact = published(kind, image, wide, mask.mask, reduction=reduction, beta=BETA)
    (exact_grad,) = torch.autograd.grad(exact.sum(), exact_leaf)
    # Targets are within 1e-5 of float64 (SPEC.md, section 4), and so is a mean of distances to them;
    # the slope of a squared distance is at most 2, and where L1 changes sign it changes by 2.
    count = (
        1
        if reduction != "sum"
        else mask.mask.sum() * (unit if layout != "units" else patch) ** 2 * 3
    )
    assert ((loss - exact).abs() <= 4e-5 * (count + exact.abs())).all()
    epsilon = torch.finfo(grad.dtype).eps * exact_grad.abs().max()
    wrong = (grad.double() - exact_grad).abs() > 4 * epsilon + 1e-5 * 4 * exact_grad.abs().max()
    assert wrong.sum() <= (2 if kind == "l1" else 0)


@given(
    kind=st.sampled_from(LOSSES),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    target_dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, *INTEGERS]),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.sampled_from([(8, 8), (8, 4), (16, 4)]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    eps=st.sampled_from([1e-6, 0.3]),
    window=st.sampled_from([3, 7, 47]),
    normalized=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_window(
    backend, kind, layout, dtype, target_dtype, grid, sizes, reduction, eps, window, normalized
):
    with sk.backend(backend):
        check_norm(
            *(kind, sk.WindowNorm(window, eps), layout, dtype, target_dtype, grid, *sizes),
            reduction,
            normalized,
            lambda image: window_target(image, window, eps),
        )


@given(
    kind=st.sampled_from(LOSSES),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    target_dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, *INTEGERS]),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.sampled_from([(8, 8), (8, 4), (16, 4)]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    eps=st.sampled_from([1e-6, 0.3]),
    normalized=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_patch(backend, kind, layout, dtype, target_dtype, grid, sizes, reduction, eps, normalized):
    unit, patch = sizes
    side = unit if layout in ("image", "channels_last") else patch
    with sk.backend(backend):
        check_norm(
            *(kind, sk.PatchNorm(eps), layout, dtype, target_dtype, grid, *sizes),
            reduction,
            normalized,
            lambda image: patch_target(image, side, eps),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", [sk.WindowNorm(47), sk.PatchNorm()], ids=["window", "patch"])
def test_fused_equals_normalising_first(layout, norm, dtype):
    """Float32 targets are the same bits, whether they are written or not; where a token is a patch,
    they are added up in the same order, too."""
    pred, target, mask, _ = problem(3, 3, (20, 3), 16, 8, layout, dtype, torch.float32)
    if isinstance(norm, sk.WindowNorm):
        goal = sk.normalize_targets(target, norm.window, norm.eps)
    else:
        side = 16 if layout in ("image", "channels_last") else 8
        goal = sk.normalize_patches(target, side, norm.eps)
    found = ours("mse", pred, target, mask, layout, target_norm=norm)
    expected = ours("mse", pred, goal, mask, layout)
    if isinstance(norm, sk.PatchNorm):
        assert torch.equal(found, expected)
    else:
        assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["cyx", "yxc"])
def test_patches_of_which_some_pixels_are_masked(backend, layout):
    """Beside patches that are masked or visible as a whole, which have a way of their own."""
    pred, target, _, _ = problem(4, 3, (1, 4), 16, 8, layout, torch.float32, torch.float32)
    mask = torch.rand(4, 16, 64) < torch.tensor([0.0, 0.5, 0.9, 1.0])[:, None, None]
    mask[1, :, :24], mask[1, :, 40:56], mask[2, :8, :8] = True, False, False
    leaf, exact_leaf = pred.requires_grad_(), pred.detach().double().requires_grad_()
    with sk.backend(backend):
        loss = ours("mse", leaf, target, mask, layout, target_norm=sk.PatchNorm())
        (grad,) = torch.autograd.grad(loss, leaf)
    goal = patch_target(target.double(), 8, 1e-6)
    exact = published("mse", as_image(exact_leaf, target, 8, layout, None), goal, mask)
    (exact_grad,) = torch.autograd.grad(exact, exact_leaf)
    assert abs(loss - exact) <= 1e-5 * exact
    assert (grad - exact_grad).abs().max() <= 1e-5 * exact_grad.abs().max()
    assert torch.equal(grad == 0, exact_grad == 0)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("triton", "cuda")])
def test_a_list_normalises_the_units_that_it_names(backend, monkeypatch):
    module = importlib.import_module(f"simmim_kernels.backends.{backend}.masked_loss")
    made = []
    for name in ("window_normalized", "patch_normalized"):
        normalized = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, run=normalized: made.append(run(*given)) or made[-1]
        )
    index = torch.tensor(((4, 0), (1, 5), (2, 3)), dtype=torch.int32)  # units of 2 x 3 grids
    flat = torch.tensor((11, -1, 0, 17, -1), dtype=torch.int32)
    target = torch.randn(3, 2, 16, 24)
    for listed, norm, side in ((index, "window", 5), (flat, "window", 5), (flat, "patch", 8)):
        units = (
            listed + 6 * torch.arange(3, dtype=torch.int32)[:, None] if listed is index else listed
        )
        scored = torch.zeros(18, dtype=torch.bool)
        scored[units[units >= 0].long()] = True
        pixels = scored.view(3, 1, 2, 3).repeat_interleave(8, 2).repeat_interleave(8, 3)
        pred = torch.randn(*listed.shape, 128)
        nothing = torch.zeros(3, 2, 3, dtype=torch.bool)
        spec = LossSpec("l1", 1.0, "cyx", 1e-5, "mean", norm, side, 1e-6)
        loss, *_ = module.masked_loss(pred, target, nothing, listed, None, None, spec, True)
        # Memory that nobody wrote is NaN here.
        assert loss.isfinite() and torch.equal(made[-1].isfinite(), pixels.expand(target.shape))


def test_bad_norms_are_named():
    pred, target, mask, _ = problem(1, 3, (2, 2), 8, 4, "cyx", torch.float32, torch.float32)
    with pytest.raises(TypeError, match="target_norm is int"):
        sk.masked_l1(pred, target, mask, target_norm=47)
    spec = LossSpec("l1", 1.0, "cyx", 1e-5, "mean", "patch", 5, 1e-6)
    arguments = (pred, target, mask.mask, None, None, None, *spec, False)
    with pytest.raises(ValueError, match="does not fit"):
        torch.ops.simmim_kernels.masked_loss(*arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_one_pixel_is_its_patch(backend):
    target, mask = torch.randn(2, 3, 8, 8), sk.random_mask(2, (2, 2), 0.5, seed=0)
    pred = torch.randn(2, 64, 3)
    with sk.backend(backend):
        loss = sk.masked_l1(pred, target, mask, target_norm=sk.PatchNorm())
    pixels = target.double().flatten(2).mT
    pixels = (pixels - pixels.mean(2, keepdim=True)) / (pixels.var(2, keepdim=True) + 1e-6).sqrt()
    hidden = mask.on_grid((8, 8)).mask.flatten(1)
    expected = (pred - pixels).abs()[hidden].mean()
    assert abs(loss.item() - expected.item()) < 1e-5


def test_units_that_are_no_squares_are_no_patches():
    target, mask = torch.randn(2, 3, 16, 12), sk.random_mask(2, (2, 2), 0.5)
    with pytest.raises(ValueError, match="units are 8 x 6 pixels"):
        sk.masked_l1(target, target, mask, target_norm=sk.PatchNorm())
