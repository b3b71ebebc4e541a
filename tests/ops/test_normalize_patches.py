"""normalize_patches against float64, by the error of MAE's arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.budget import assert_within_budget
from tests.ops.integer_images import INTEGERS
from tests.ops.test_normalize_targets import floats, pixels

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
BYTES = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


def published(image, patch, eps=1e-6):
    """MAE's: patchify, normalise each row, put the patches back; in the type of `image`."""
    batch, channels, height, width = image.shape
    h, w = height // patch, width // patch
    rows = image.reshape(batch, channels, h, patch, w, patch)
    rows = torch.einsum("nchpwq->nhwpqc", rows).reshape(batch, h * w, patch**2 * channels)
    m, v = rows.mean(-1, keepdim=True), torch.zeros_like(rows[..., :1])
    if image.numel() and rows.shape[-1] > 1:  # undefined in the published form
        v = rows.var(-1, keepdim=True)
    rows = ((rows - m) / (v + eps) ** 0.5).reshape(batch, h, w, patch, patch, channels)
    return torch.einsum("nhwpqc->nchpwq", rows).reshape(image.shape)


def exact(image, patch, eps=1e-6):
    """The definition, patch by patch in extended precision."""
    out = np.empty(image.shape, np.longdouble)
    pixels = image.double().numpy().astype(np.longdouble)
    for y in range(0, image.shape[2], patch):
        for x in range(0, image.shape[3], patch):
            part = pixels[:, :, y : y + patch, x : x + patch]
            d = part - part.mean((1, 2, 3), keepdims=True)
            n = part[:1].size
            v = (d * d).sum((1, 2, 3), keepdims=True) / max(n - 1, 1)
            out[:, :, y : y + patch, x : x + patch] = d / np.sqrt(v + np.longdouble(eps))
    return torch.from_numpy(out.astype(np.float64))


@given(
    batch=st.integers(0, 2),
    channels=st.sampled_from([1, 3, 13]),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    patch=st.sampled_from([1, 2, 5, 16]),
    dtype=st.sampled_from([*FLOATS, *INTEGERS]),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced", "transposed", "expanded"]),
    statistics=st.booleans(),
    eps=st.sampled_from([1e-6, 0.5]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value(backend, batch, channels, grid, patch, dtype, layout, statistics, eps):
    height, width = grid[0] * patch, grid[1] * patch
    image = {
        "contiguous": lambda: pixels((batch, channels, height, width), dtype),
        "channels_last": lambda: pixels((batch, height, width, channels), dtype).permute(
            0, 3, 1, 2
        ),
        "sliced": lambda: pixels((batch, channels, 2 * height, 2 * width), dtype)[..., ::2, 1::2],
        "transposed": lambda: pixels((batch, channels, width, height), dtype).mT,
        "expanded": lambda: pixels((1, channels, height, width), dtype).expand(batch, -1, -1, -1),
    }[layout]()
    mean = [0.1 * (c + 1) for c in range(channels)] if statistics else None
    std = [0.2 + 0.1 * c for c in range(channels)] if statistics else None
    with sk.backend(backend):
        out = sk.normalize_patches(image, patch, eps, mean=mean, std=std)
    assert out.dtype == (torch.float32 if dtype in INTEGERS else dtype)
    x = floats(image, mean, std)
    assert_within_budget(out, published(x.to(out.dtype), patch, eps), exact(x, patch, eps))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("patch", [4, 16, 48])
def test_strides_change_no_bit(backend, dtype, patch):
    stored = pixels((2, 3, 2 * patch, 4 * patch), dtype)
    mean, std = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]) if dtype == torch.uint8 else (None, None)
    for image in (
        stored[..., ::2],
        stored[..., 1 : 1 + 2 * patch],
        stored[:1].expand(2, -1, -1, -1),
    ):
        with sk.backend(backend):
            found = sk.normalize_patches(image, patch, mean=mean, std=std)
            expected = sk.normalize_patches(image.contiguous(), patch, mean=mean, std=std)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 2.1, 1000.0])
def test_precision_on_flat_patches(backend, offset):
    image = offset + 0.001 * torch.randn(2, 3, 32, 48)
    truth = exact(image, 16)
    with sk.backend(backend):
        ours = (sk.normalize_patches(image, 16).double() - truth).abs().max().item()
    theirs = (published(image, 16).double() - truth).abs().max().item()
    print(f"{backend} offset {offset}: error {ours:.1e}, published float32 {theirs:.1e}")
    assert ours <= min(2e-6, 2 * theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_finite_stays_in_its_patch(backend):
    image = torch.randn(1, 2, 12, 12)
    image[0, 1, 5, 6] = float("nan")
    image[0, 0, 0, 11] = float("inf")
    held = torch.zeros(1, 2, 12, 12, dtype=torch.bool)
    held[..., 4:8, 4:8] = held[..., 0:4, 8:12] = True
    with sk.backend(backend):
        out = sk.normalize_patches(image, 4)
    assert torch.equal(out.isnan(), held)
    clean = torch.where(held, 0.0, image)  # no patch has pixels of both kinds
    assert_within_budget(out[~held], published(clean, 4)[~held], exact(clean, 4)[~held])


def test_a_gradient_is_refused():
    image = torch.randn(1, 1, 8, 8, requires_grad=True)
    with pytest.raises(ValueError, match="requires a gradient"):
        sk.normalize_patches(image, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, TypeError, "image has dtype int64"),
        ({"image": torch.zeros(3, 8, 8)}, ValueError, "image has shape"),
        ({"patch": 3}, ValueError, "image height 8 is not a whole multiple of the patch 3"),
        ({"patch": 0}, ValueError, "patch 0"),
        ({"image": torch.zeros(1, 3, 8, 6)}, ValueError, "image width 6"),
        ({"eps": -1.0}, ValueError, "eps is -1"),
        ({"std": (0.5,) * 3}, ValueError, "go together"),
        ({"image": BYTES, "mean": (0.5,), "std": (0.5,)}, ValueError, "mean has shape"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        sk.normalize_patches(**({"image": torch.zeros(1, 3, 8, 8), "patch": 4} | change))
