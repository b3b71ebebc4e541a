"""masked_patch_embed on each backend against the dense convolution in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.budget import assert_within_budget
from tests.ops.integer_images import INTEGERS, as_float, integers

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
PIXELS = [*DTYPES, *INTEGERS]


def fine(mask, h, w):
    mask = mask.mask if isinstance(mask, sk.PatchMask) else mask
    return mask.repeat_interleave(h // mask.shape[1], 1).repeat_interleave(w // mask.shape[2], 2)


def dense(image, weight, bias, mask, token, pos=None, mean=None, std=None, norm=None, terms=False):
    """The published arithmetic: normalise, convolve every patch, substitute, add positions. With
    `terms` the image enters by its absolute value, which gives the size of what is added up."""
    image = as_float(image, torch.float64 if weight.dtype == torch.float64 else torch.float32)
    if mean is not None:
        mean, std = mean.type_as(image)[:, None, None], std.type_as(image)[:, None, None]
        image = (image - mean) / std
    image = image.to(weight.dtype)
    x = F.conv2d(image.abs() if terms else image, weight, bias, stride=weight.shape[2:])
    h, w = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    x = x if norm is None else norm(x)
    x = torch.where(fine(mask, h, w).flatten(1)[..., None], token.reshape(-1), x)
    return x if pos is None else x + pos.reshape(h * w, -1)


def problem(batch, grid, scale, patch, channels, width, pixel, dtype, bias=True, pos=True):
    h, w = grid[0] * scale[0], grid[1] * scale[1]
    shape = (batch, channels, h * patch[0], w * patch[1])
    if pixel in INTEGERS:
        image = integers(shape, pixel)
    else:
        image = torch.randn(shape).to(pixel)
    weight = (
        torch.randn(width, channels, *patch).to(dtype) / (channels * patch[0] * patch[1]) ** 0.5
    )
    return {
        "image": image,
        "weight": weight,
        "bias": torch.randn(width).to(dtype) if bias else None,
        "token": torch.randn(1, 1, width).to(dtype),
        "pos": torch.randn(1, h * w, width).to(dtype) if pos else None,
    }


def run(function, inputs, mask, grad=None, **options):
    """The result, and the gradients of every input that can have one."""
    leaves = {
        k: v.detach().clone().requires_grad_(v.is_floating_point())
        for k, v in inputs.items()
        if v is not None
    }
    out = function(mask=mask, **(inputs | leaves), **options)
    wanted = {k: v for k, v in leaves.items() if v.requires_grad}
    grad = torch.ones_like(out) if grad is None else grad.to(out.dtype)
    grads = torch.autograd.grad(out, list(wanted.values()), grad, allow_unused=True)
    return out, dict(zip(wanted, grads, strict=True))


def plain_result(inputs, mask, grad, exact, **options):
    """What plain PyTorch gives in the inputs' type. In float64 there is no wider type to hold it
    to, so its error is that of float32, scaled by the ratio of the two epsilons."""
    if inputs["weight"].dtype != torch.float64:
        return run(dense, inputs, mask, grad, **options)
    single = {k: v.float() if k != "image" and v is not None else v for k, v in inputs.items()}
    out, grads = run(dense, single, mask, grad, **options)
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return (
        exact[0] + (out - exact[0]) * ratio,
        {k: exact[1][k] + (v - exact[1][k]) * ratio for k, v in grads.items()},
    )


def ours(image, weight, bias, mask, token, pos=None, **options):
    return sk.masked_patch_embed(image, weight, bias, mask, token, pos_embed=pos, **options)


@given(
    batch=st.integers(0, 3),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scale=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    patch=st.sampled_from([(4, 4), (2, 3), (16, 16), (1, 1), (1, 600)]),
    channels=st.sampled_from([1, 3, 13]),
    width=st.sampled_from([1, 8, 513]),
    pixel=st.sampled_from(PIXELS),
    dtype=st.sampled_from(DTYPES),
    normalised=st.booleans(),
    options=st.tuples(st.booleans(), st.booleans()),
    ratio=st.sampled_from([0.0, 0.4, 0.6, 1.0]),
    plain_mask=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradients(
    backend, batch, grid, scale, patch, channels, width, pixel, dtype, normalised, options, ratio,
    plain_mask,
):  # fmt: skip
    inputs = problem(batch, grid, scale, patch, channels, width, pixel, dtype, *options)
    mask = sk.random_mask(batch, grid, ratio, seed=1)
    statistics = {}
    if normalised:
        statistics = {"mean": torch.rand(channels), "std": torch.rand(channels) + 0.1}
    grad = torch.randn(batch, grid[0] * scale[0] * grid[1] * scale[1], width)
    with sk.backend(backend):
        out, grads = run(ours, inputs, mask.mask if plain_mask else mask, grad, **statistics)
    assert out.dtype == dtype
    wide = {
        k: v.double() if v is not None and v.is_floating_point() else v for k, v in inputs.items()
    }
    exact = run(dense, wide, mask, grad.to(dtype), **statistics)
    plain = plain_result(inputs, mask, grad, exact, **statistics)
    absolute = {k: v if v is None or k == "image" else v.abs() for k, v in wide.items()}
    size = run(dense, absolute, mask, grad.to(dtype).abs(), terms=True, **statistics)
    assert_within_budget(out, plain[0], exact[0], "out", size[0])
    for name, value in grads.items():
        assert value.dtype == inputs[name].dtype
        what = f"gradient of {name}"
        assert_within_budget(value, plain[1][name], exact[1][name], what, size[1][name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_masked_pixels_reaches_nothing(backend):
    inputs = problem(2, (2, 3), (2, 2), (4, 4), 3, 16, torch.float32, torch.float32)
    mask = sk.random_mask(2, (2, 3), 0.5, seed=2)
    hidden = fine(mask, 16, 24)[:, None]
    poisoned = inputs | {"image": inputs["image"].masked_fill(hidden, float("nan"))}
    with sk.backend(backend):
        clean, dirty = run(ours, inputs, mask), run(ours, poisoned, mask)
    assert torch.equal(clean[0], dirty[0])
    for name in clean[1]:
        assert torch.equal(clean[1][name], dirty[1][name])
    assert not dirty[1]["image"][hidden.expand_as(poisoned["image"])].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pixel", [torch.float32, torch.uint8])
@pytest.mark.parametrize("layout", ["channels_last", "expanded", "sliced", "transposed"])
def test_strided_images(backend, layout, pixel):
    inputs = problem(2, (2, 2), (2, 2), (4, 4), 3, 16, pixel, torch.float32)
    image = {
        "channels_last": lambda i: i.contiguous(memory_format=torch.channels_last),
        "expanded": lambda i: i[:1, :1].expand(2, 3, -1, -1),
        "sliced": lambda i: i.repeat(1, 1, 2, 2)[..., ::2, ::2],
        "transposed": lambda i: i.transpose(2, 3),
    }[layout](inputs["image"])
    mask = sk.random_mask(2, (2, 2), 0.5, seed=4)
    with sk.backend(backend):
        out = sk.masked_patch_embed(image, inputs["weight"], None, mask, inputs["token"])
        packed = sk.masked_patch_embed(
            image.contiguous(), inputs["weight"], None, mask, inputs["token"]
        )
    assert torch.equal(out, packed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plain_mask_may_differ_in_count(backend):
    inputs = problem(3, (2, 2), (2, 2), (4, 4), 3, 16, torch.float32, torch.float64)
    mask = torch.zeros(3, 2, 2, dtype=torch.bool)
    mask[1] = True
    mask[2, 0, 1] = True
    with sk.backend(backend):
        out, grads = run(ours, inputs, mask)
    expected, expected_grads = run(dense, inputs, mask)
    torch.testing.assert_close(out, expected)
    for name, value in grads.items():
        torch.testing.assert_close(value, expected_grads[name])


def test_surplus_rows_are_padding():
    from simmim_kernels.ops.masked_patch_embed import _gather
    from simmim_kernels.ops.place_tokens import _place, _take

    mask = sk.random_mask(2, (2, 2), 0.5, seed=0).mask
    image, token = torch.randn(2, 1, 4, 4), torch.randn(3)
    for backend in BACKENDS:
        with sk.backend(backend):
            rows = _gather(image, mask, None, None, 2, 2, 6, torch.float32)
            assert not rows[4:].any()
            assert rows[:4].any(1).all()
            wide = torch.cat((rows[:4, :3], torch.full((2, 3), float("nan"))))
            out = _place(wide, mask, token, None, 0, False, 2, 2, torch.float32)
            assert torch.equal(
                out, _place(rows[:4, :3], mask, token, None, 0, False, 2, 2, torch.float32)
            )
            taken, *_ = _take(out, mask, 0, False, 2, 2, 6, torch.float32, None, 0, None)
            assert not taken[4:].any()
            assert torch.equal(taken[:4], rows[:4, :3])


def test_index_lists_of_another_mask_are_refused():
    inputs = problem(2, (2, 2), (1, 1), (4, 4), 1, 4, torch.float32, torch.float32)
    mask = sk.random_mask(2, (2, 2), 0.5, seed=0)
    wrong = mask._replace(mask=torch.zeros_like(mask.mask))
    with pytest.raises(ValueError, match="index lists of a PatchMask must be those of its mask"):
        ours(mask=wrong, **inputs)


def test_norm_sees_visible_rows_alone():
    inputs = problem(2, (2, 2), (3, 3), (4, 4), 3, 16, torch.uint8, torch.float64)
    mask, norm = sk.random_mask(2, (2, 2), 0.5, seed=3), torch.nn.LayerNorm(16).double()
    seen = []
    norm.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    torch.testing.assert_close(
        ours(mask=mask, norm=norm, **inputs), dense(mask=mask, norm=norm, **inputs)
    )
    assert seen[0] == (36, 16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    inputs = problem(2, (2, 1), (1, 2), (2, 2), 2, 3, torch.float64, torch.float64)
    names = list(inputs)
    mask = sk.random_mask(2, (2, 1), 0.5, seed=1)
    with sk.backend(backend):
        assert torch.autograd.gradcheck(
            lambda *values: ours(mask=mask, **dict(zip(names, values, strict=True))),
            [inputs[name].requires_grad_() for name in names],
        )


@pytest.mark.slow
def test_compiles_under_autocast():
    inputs = problem(2, (2, 3), (2, 2), (4, 4), 3, 16, torch.uint8, torch.float32)
    mask = sk.random_mask(2, (2, 3), 0.5, seed=5)

    def step(mask):
        with torch.autocast("cpu", torch.bfloat16):
            return ours(mask=mask, **inputs)

    assert torch.equal(torch.compile(step, fullgraph=True)(mask), step(mask))


@pytest.mark.parametrize("pixel", [torch.float32, torch.uint8])
def test_autocast_multiplies_in_its_type_and_promotes_as_published(pixel):
    inputs = problem(2, (2, 2), (2, 2), (8, 8), 3, 32, pixel, torch.float32)
    mask = sk.random_mask(2, (2, 2), 0.5, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = run(ours, inputs, mask)
        plain, plain_grads = run(dense, inputs, mask)
        kept = ours(mask=mask, keep_dtype=True, **inputs)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    exact, exact_grads = run(dense, wide, mask)
    assert out.dtype == plain.dtype == torch.float32
    assert kept.dtype == torch.bfloat16
    bfloat_error = (plain - exact).abs().max()
    assert bfloat_error > 1e-4
    assert (out - exact).abs().max() <= 2 * bfloat_error
    for name, value in grads.items():
        error = (value - exact_grads[name]).abs().max()
        assert error <= 2 * (plain_grads[name] - exact_grads[name]).abs().max() + 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(mask=mask, **wide).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": torch.zeros(2, 3, 16, 16, dtype=torch.int64)}, TypeError, "image has dtype"),
        ({"image": torch.zeros(3, 16, 16)}, ValueError, "image has shape"),
        ({"image": torch.zeros(2, 3, 18, 16)}, ValueError, "image height 18.*patch height 4"),
        ({"weight": torch.zeros(8, 48)}, ValueError, "weight has shape"),
        ({"weight": torch.zeros(8, 4, 4, 4)}, ValueError, "weight takes 4 channels"),
        ({"weight": torch.zeros(8, 3, 16, 16)}, ValueError, "token grid height 1 .* height 2"),
        ({"bias": torch.zeros(7)}, ValueError, "bias has shape"),
        ({"bias": torch.zeros(8).double()}, TypeError, "bias has dtype float64"),
        ({"mask": torch.zeros(2, 2, 2)}, TypeError, "mask has dtype float32"),
        ({"mask": torch.zeros(3, 2, 2, dtype=torch.bool)}, ValueError, "batch size 3"),
        ({"token": torch.zeros(7)}, ValueError, "token has shape"),
        ({"pos_embed": torch.zeros(1, 15, 8)}, ValueError, "pos_embed has shape"),
        ({"mean": (0.5,) * 4, "std": (0.5,) * 3}, ValueError, "mean has shape"),
        ({"mean": torch.zeros(3)}, ValueError, "mean and std go together"),
        ({"mask": torch.zeros(2, 2, 2, dtype=torch.bool, device="meta")}, RuntimeError, "on meta"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {
        "image": torch.zeros(2, 3, 16, 16),
        "weight": torch.zeros(8, 3, 4, 4),
        "bias": torch.zeros(8),
        "mask": torch.zeros(2, 2, 2, dtype=torch.bool),
        "token": torch.zeros(8),
    } | change
    with pytest.raises(error, match=words):
        sk.masked_patch_embed(**arguments)
