"""mask_image on each backend against float64, by the error of plain PyTorch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.budget import assert_within_budget
from tests.ops.integer_images import INTEGERS, as_float, integers

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def plain(image, mask, fill, mean=None, std=None, dtype=None, compute=torch.float32):
    """`where` over the blown-up mask, in the type `compute`."""
    mask = mask.mask if isinstance(mask, sk.PatchMask) else mask
    unit_h, unit_w = image.shape[2] // mask.shape[1], image.shape[3] // mask.shape[2]
    pixels = mask.repeat_interleave(unit_h, 1).repeat_interleave(unit_w, 2)[:, None]
    image = as_float(image, compute)
    if mean is not None:
        mean, std = (torch.as_tensor(t, dtype=compute)[:, None, None] for t in (mean, std))
        image = (image - mean) / std
    if isinstance(fill, torch.Tensor):
        fill = fill[:, None, None]
    out = torch.where(pixels, fill, image)
    return out if dtype is None else out.to(dtype)


def picture(batch, channels, height, width, dtype, layout="contiguous"):
    shape = (batch, channels, height, width)
    if layout == "sliced":
        shape = (batch, channels, 2 * height, 2 * width)
    if layout == "expanded":
        shape = (1, channels, height, width)
    if dtype in INTEGERS:
        image = integers(shape, dtype)
    else:
        image = torch.randn(shape).to(dtype)
    if layout == "channels_last":
        return image.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return image[:, :, ::2, ::2]
    if layout == "expanded":
        return image.expand(batch, -1, -1, -1)
    if layout == "transposed":
        return image.transpose(2, 3).contiguous().transpose(2, 3)
    return image


LAYOUTS = ["contiguous", "channels_last", "sliced", "expanded", "transposed"]


@given(
    batch=st.integers(0, 3),
    channels=st.sampled_from([1, 3, 13, 600]),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    unit=st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 5, 16, 33])),
    dtype=st.sampled_from([*FLOATS, *INTEGERS]),
    out=st.sampled_from([None, *FLOATS]),
    layout=st.sampled_from(LAYOUTS),
    fill=st.sampled_from([0.0, -1.5, "tensor"]),
    normalized=st.booleans(),
    ratio=st.floats(0, 1),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradients(
    backend, batch, channels, grid, unit, dtype, out, layout, fill, normalized, ratio
):
    image = picture(batch, channels, grid[0] * unit[0], grid[1] * unit[1], dtype, layout)
    mask = sk.random_mask(batch, grid, ratio, seed=2)
    statistics = {}
    if normalized:
        statistics = {"mean": torch.rand(channels).tolist()}
        statistics["std"] = (torch.rand(channels) + 0.1).tolist()
    result = out or (torch.float32 if dtype in INTEGERS else dtype)
    inputs = [image] if dtype not in INTEGERS else []
    if fill == "tensor":
        fill = torch.randn(channels)
        inputs.append(fill)
    wide = [t.double().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() if t.is_leaf else t.detach().requires_grad_() for t in inputs]
    tensors = list(inputs)
    image = tensors.pop(0) if dtype not in INTEGERS else image
    fill = tensors.pop(0) if tensors else fill
    with sk.backend(backend):
        ours = sk.mask_image(image, mask, fill, dtype=out, **statistics)
    assert ours.dtype == result
    channels_last = layout == "channels_last" and not image.is_contiguous()
    assert ours.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    compute = torch.float64 if torch.float64 in (dtype, result) else torch.float32
    usual = plain(image, mask, fill, **statistics, dtype=result, compute=compute)
    tensors = list(wide)
    wide_image = tensors.pop(0) if dtype not in INTEGERS else image
    wide_fill = tensors.pop(0) if tensors else fill
    exact = plain(wide_image, mask, wide_fill, **statistics, compute=torch.float64)
    assert_within_budget(ours, usual, exact, "out")
    if dtype == result and dtype not in INTEGERS and not normalized:
        assert torch.equal(ours, usual)
    if not inputs:
        return
    grad = torch.randn(ours.shape).to(result)
    with sk.backend(backend):
        grads = torch.autograd.grad(ours, inputs, grad)
    usual_grads = torch.autograd.grad(usual, inputs, grad)
    exact_grads = torch.autograd.grad(exact, wide, grad.double())
    for mine, theirs, true in zip(grads, usual_grads, exact_grads, strict=True):
        assert_within_budget(mine, theirs, true, "gradient")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", [1, 32])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_in_a_masked_pixel_is_gone(backend, unit, layout):
    image = picture(2, 3, 64, 64, torch.float32, layout)
    mask = sk.random_mask(2, (64 // unit, 64 // unit), 0.6, seed=1)
    masked = mask.on_grid((64, 64)).mask[:, None]
    bad = image.masked_fill(masked, float("nan"))
    fill = torch.randn(3, requires_grad=True)
    # A NaN in the gradient of a visible pixel stays out of the fill's gradient, too.
    grad = torch.randn(image.shape).masked_fill(~masked, float("nan"))
    with sk.backend(backend):
        out = sk.mask_image(bad, mask, fill)
        (d_fill,) = torch.autograd.grad(out, fill, grad)
    assert torch.equal(out, plain(image, mask, fill))
    exact = grad.double().nan_to_num(nan=0.0).sum((0, 2, 3))
    assert_within_budget(d_fill, grad.nan_to_num(nan=0.0).sum((0, 2, 3)), exact)


def test_the_image_is_not_changed_and_the_mask_may_differ_in_count():
    image = picture(3, 2, 8, 12, torch.float32)
    before = image.clone()
    mask = torch.zeros(3, 2, 3, dtype=torch.bool)
    mask[1] = True
    mask[2, 0, 1] = True
    assert torch.equal(sk.mask_image(image, mask, 7.0), plain(before, mask, 7.0))
    assert torch.equal(image, before)


def test_every_byte_becomes_its_fraction():
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    nothing = torch.zeros(1, 1, 1, dtype=torch.bool)
    out = sk.mask_image(image, nothing)
    exact = torch.arange(256).double().view(1, 1, 16, 16) / 255
    assert_within_budget(out, exact.float(), exact)
    assert out[0, 0, 0, 0] == 0.0
    assert out[0, 0, 15, 15] == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", [1, 2, 20])
def test_gradcheck(backend, unit):
    image = torch.randn(2, 3, 20, 20, dtype=torch.float64)[:, :, : 2 * unit, : 2 * unit]
    image = image.detach().requires_grad_()
    fill = torch.randn(3, dtype=torch.float64, requires_grad=True)
    mask = sk.random_mask(2, (image.shape[2] // unit, image.shape[3] // unit), 0.5, seed=3)
    with sk.backend(backend):
        assert torch.autograd.gradcheck(
            lambda i, f: sk.mask_image(i, mask, f), (image, fill), fast_mode=True
        )


def test_export_autocast_and_default_device():
    class Model(torch.nn.Module):
        def forward(self, image, mask):
            return sk.mask_image(image, mask, 0.5, dtype=torch.bfloat16)

    image, mask = picture(2, 3, 16, 16, torch.uint8), sk.random_mask(2, (2, 2), 0.5, seed=0).mask
    expected = plain(image, mask, 0.5, dtype=torch.bfloat16)
    assert torch.equal(torch.export.export(Model(), (image, mask)).module()(image, mask), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert sk.mask_image(image, mask).dtype == torch.float32
    with torch.device("meta"):
        assert torch.equal(Model()(image, mask), expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": None}, TypeError, "image must be a tensor"),
        ({"image": torch.zeros(2, 3, 8, 8, dtype=torch.int32)}, TypeError, "image has dtype int32"),
        ({"image": torch.zeros(2, 8, 8)}, ValueError, "image has shape"),
        ({"image": torch.zeros(2, 3, 9, 8)}, ValueError, "image height 9"),
        ({"image": torch.zeros(2, 3, 8, 9)}, ValueError, "image width 9"),
        ({"mask": torch.zeros(2, 2, 2)}, TypeError, "mask has dtype float32"),
        ({"mask": torch.zeros(3, 2, 2, dtype=torch.bool)}, ValueError, "batch size 3"),
        ({"mask": torch.zeros(2, 0, 2, dtype=torch.bool)}, ValueError, "empty grid"),
        ({"fill": torch.zeros(2)}, ValueError, "fill has shape"),
        ({"fill": torch.zeros(3, dtype=torch.int64)}, TypeError, "fill has dtype int64"),
        ({"fill": torch.zeros(3, device="meta")}, RuntimeError, "fill is on meta"),
        ({"mean": [0.0] * 3}, ValueError, "give both or neither"),
        (
            {
                "mean": [0.0] * 2,
                "std": [1.0] * 2,
                "image": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            },
            ValueError,
            r"mean has shape \(2,\)",
        ),
        ({"mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]}, ValueError, "std is"),
        ({"dtype": torch.int32}, TypeError, "dtype is torch.int32"),
        ({"dtype": "float32"}, TypeError, "dtype must be a torch.dtype, got str"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {
        "image": torch.zeros(2, 3, 8, 8),
        "mask": torch.zeros(2, 2, 2, dtype=torch.bool),
    } | change
    with pytest.raises(error, match=words):
        sk.mask_image(**arguments)
