"""restore_tokens and visible_patch_embed: the two ends of MAE's encoder, against its own arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.budget import assert_within_budget

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def published(x, mask, token, pos, prefix):
    """MAE's: mask tokens appended, then everything unshuffled by an index."""
    order = torch.cat((mask.visible, mask.masked), 1).long()
    restore = order.argsort(1)
    tokens = token.reshape(1, 1, -1).expand(len(x), mask.masked.shape[1], -1)
    patches = torch.cat((x[:, prefix:], tokens), 1)
    patches = patches.gather(1, restore[..., None].expand(-1, -1, x.shape[2]))
    x = torch.cat((x[:, :prefix].to(patches.dtype), patches), 1)
    if pos is None:
        return x
    pos = pos.reshape(1, -1, x.shape[2])
    return x + F.pad(pos, (0, 0, x.shape[1] - pos.shape[1], 0))


@given(
    batch=st.integers(0, 3),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    width=st.sampled_from([1, 8, 40, 600]),
    prefix=st.integers(0, 3),
    position=st.sampled_from(["none", "patches", "all"]),
    dtype=st.sampled_from(DTYPES),
    token_dtype=st.sampled_from([None, torch.float32]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced"]),
    ratio=st.floats(0, 1),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_restored_tokens_and_gradients(
    backend, batch, grid, width, prefix, position, dtype, token_dtype, layout, ratio
):
    mask = sk.random_mask(batch, grid, ratio, seed=4)
    length = prefix + mask.visible.shape[1]
    x = {
        "contiguous": lambda: torch.randn(batch, length, width),
        "transposed": lambda: torch.randn(length, batch, width).transpose(0, 1),
        "sliced": lambda: torch.randn(batch, 2 * length, width)[:, ::2],
    }[layout]().to(dtype)
    token = torch.randn(width).to(token_dtype or dtype)
    rows = grid[0] * grid[1] + (prefix if position == "all" else 0)
    pos = None if position == "none" else torch.randn(1, rows, width).to(dtype)
    leaves = [t.detach().requires_grad_() for t in (x, token, pos) if t is not None]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    given_ = lambda tensors: (*tensors, None)[:3]  # noqa: E731
    with sk.backend(backend):
        ours = sk.restore_tokens(
            leaves[0], mask, leaves[1], pos_embed=given_(leaves)[2], prefix_tokens=prefix
        )
        grad = torch.randn(ours.shape).to(ours.dtype)
        grads = torch.autograd.grad(ours, leaves, grad)
    assert ours.dtype == torch.promote_types(dtype, token.dtype) and ours.is_contiguous()
    first, second, third = given_(leaves)
    usual = published(first.to(ours.dtype), mask, second.to(ours.dtype), third, prefix).to(
        ours.dtype
    )
    exact = published(wide[0], mask, wide[1], given_(wide)[2], prefix)
    assert_within_budget(ours, usual, exact, "out")
    usual_grads = torch.autograd.grad(usual, leaves, grad)
    exact_grads = torch.autograd.grad(exact, wide, grad.double())
    for mine, theirs, true in zip(grads, usual_grads, exact_grads, strict=True):
        assert_within_budget(mine, theirs, true, "gradient")


def embedded(image, weight, bias, mask, pos, mean, std):
    values = image.to(weight.dtype) / (255 if image.dtype == torch.uint8 else 1)
    if mean is not None:
        mean, std = (torch.tensor(t, dtype=weight.dtype)[:, None, None] for t in (mean, std))
        values = (values - mean) / std
    x = F.conv2d(values, weight, bias, stride=weight.shape[2:]).flatten(2).mT
    x = x if pos is None else x + pos.reshape(1, *x.shape[1:])
    fine = mask.on_grid((image.shape[2] // weight.shape[2], image.shape[3] // weight.shape[3]))
    return x.gather(1, fine.visible.long()[..., None].expand(-1, -1, x.shape[2]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pixel", [torch.uint8, torch.uint16, torch.float64])
@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize(("grid", "patch"), [((3, 4), (2, 3)), ((1, 1), (4, 4)), ((3, 2), (1, 2))])
def test_visible_patches_and_gradients(backend, pixel, position, grid, patch):
    scale = 1 if grid == (1, 1) else 2
    mask = sk.random_mask(3, grid, 0.6, seed=2)
    h, w = scale * grid[0], scale * grid[1]
    image = torch.rand(3, 2, h * patch[0], w * patch[1], dtype=torch.float64)
    image = image if pixel == torch.float64 else (image * torch.iinfo(pixel).max).to(pixel)
    leaves = [torch.randn(7, 2, *patch, dtype=torch.float64), torch.randn(7, dtype=torch.float64)]
    leaves += [torch.randn(1, h * w, 7, dtype=torch.float64)] if position else []
    leaves += [image] if pixel == torch.float64 else []
    leaves = [t.requires_grad_() for t in leaves]
    pos = leaves[2] if position else None
    largest = 65535 if pixel == torch.uint16 else 1
    statistics = [[value * largest for value in pair] for pair in ((0.4, 0.5), (0.2, 0.3))]
    with sk.backend(backend):
        ours = sk.visible_patch_embed(
            image, *leaves[:2], mask, pos_embed=pos, mean=statistics[0], std=statistics[1]
        )
        grads = torch.autograd.grad(ours.sin().sum(), leaves)
    expected = embedded(image, *leaves[:2], mask, pos, *statistics)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(grads, torch.autograd.grad(expected.sin().sum(), leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    mask = sk.random_mask(2, (2, 2), 0.5, seed=1)
    x, token, pos = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 4, 3), (3,), (1, 6, 3))
    )
    with sk.backend(backend):
        assert torch.autograd.gradcheck(
            lambda x, t, p: sk.restore_tokens(x, mask, t, pos_embed=p, prefix_tokens=2),
            (x, token, pos),
        )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mask": torch.zeros(2, 2, 2, dtype=torch.bool)}, TypeError, "must be a PatchMask"),
        ({"x": torch.zeros(2, 2)}, ValueError, "x has shape"),
        (
            {"x": torch.zeros(2, 4, 8)},
            ValueError,
            r"x has shape \(2, 4, 8\); allowed for 1 prefix.*on_grid",
        ),
        ({"prefix_tokens": -1}, ValueError, "prefix"),
        ({"token": torch.zeros(7)}, ValueError, "token has shape"),
        ({"pos_embed": torch.zeros(1, 3, 8)}, ValueError, "pos_embed has shape"),
        ({"x": torch.zeros(2, 3, 8, dtype=torch.int64)}, TypeError, "x has dtype int64"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {
        "x": torch.zeros(2, 3, 8),
        "mask": sk.random_mask(2, (2, 2), 0.5, seed=0),
        "token": torch.zeros(8),
        "prefix_tokens": 1,
    }
    with pytest.raises(error, match=words):
        sk.restore_tokens(**arguments | change)


def test_bad_arguments_of_visible_patches_are_named():
    image, weight = torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 2, 2)
    mask = sk.random_mask(2, (2, 2), 0.5, seed=0)
    with pytest.raises(TypeError, match="must be a PatchMask"):
        sk.visible_patch_embed(image, weight, None, mask.mask)
    with pytest.raises(ValueError, match="pos_embed has shape"):
        sk.visible_patch_embed(image, weight, None, mask, pos_embed=torch.zeros(1, 5, 3))
