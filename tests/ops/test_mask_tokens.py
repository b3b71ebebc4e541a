"""mask_tokens on each backend against float64, by the error of the published arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.budget import assert_within_budget

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def published(x, mask, token, pos, prefix):
    """`x * (1 - w) + token * w (+ pos)`, as the published encoders compute it."""
    batch, width = x.shape[0], x.shape[-1]
    flat = x.flatten(1, -2)
    scale = round(((flat.shape[1] - prefix) / (mask.shape[1] * mask.shape[2])) ** 0.5)
    fine = mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1)
    w = torch.cat((torch.zeros(batch, prefix, dtype=torch.bool), fine), 1)[..., None].type_as(token)
    out = flat * (1 - w) + token.reshape(width) * w
    if pos is not None:
        pos = pos.reshape(-1, width)
        out = out + torch.cat((pos.new_zeros(flat.shape[1] - len(pos), width), pos))
    return out.reshape(x.shape)


def problem(batch, grid, scale, width, prefix, pos, dtype, four_d, token_dtype=None):
    h, w = grid[0] * scale, grid[1] * scale
    shape = (batch, h, w, width) if four_d else (batch, prefix + h * w, width)
    x = torch.randn(shape).to(dtype)
    token = torch.randn(1, 1, width).to(token_dtype or dtype)
    rows = {"none": None, "patches": h * w, "all": prefix + h * w}[pos]
    pos_embed = None if rows is None else torch.randn(1, rows, width).to(dtype)
    mask = sk.random_mask(batch, grid, 0.6, seed=1)
    return x, mask, token, pos_embed


def gradients(function, x, mask, token, pos, grad):
    inputs = [t.detach().clone().requires_grad_() for t in (x, token, pos) if t is not None]
    out = function(inputs[0], mask, inputs[1], inputs[2] if pos is not None else None)
    return out, torch.autograd.grad(out, inputs, grad.to(out.dtype))


@given(
    batch=st.integers(0, 3),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scale=st.integers(1, 3),
    width=st.sampled_from([1, 5, 64, 513]),
    prefix=st.integers(0, 2),
    pos=st.sampled_from(["none", "patches", "all"]),
    dtype=st.sampled_from(DTYPES),
    token_dtype=st.sampled_from([None, torch.float32]),
    four_d=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradients(
    backend, batch, grid, scale, width, prefix, pos, dtype, token_dtype, four_d
):
    prefix = 0 if four_d else prefix
    x, mask, token, pos_embed = problem(
        batch, grid, scale, width, prefix, pos, dtype, four_d, token_dtype
    )
    grad = torch.randn(x.shape)

    def ours(x, m, t, p):
        return sk.mask_tokens(x, m, t, pos_embed=p, prefix_tokens=prefix)

    def plain(x, m, t, p):
        return published(x, m.mask, t, p, prefix).to(torch.promote_types(x.dtype, t.dtype))

    with sk.backend(backend):
        out, grads = gradients(ours, x, mask, token, pos_embed, grad)
    assert out.dtype == torch.promote_types(x.dtype, token.dtype)
    plain_out, plain_grads = gradients(plain, x, mask, token, pos_embed, grad.to(out.dtype))
    wide = [None if t is None else t.double() for t in (x, token, pos_embed)]
    exact_out, exact_grads = gradients(
        plain, wide[0], mask, wide[1], wide[2], grad.to(out.dtype).double()
    )
    assert_within_budget(out, plain_out, exact_out, "out")
    for name, a, b, c in zip(("x", "token", "pos"), grads, plain_grads, exact_grads, strict=False):
        assert_within_budget(a, b, c, f"gradient of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_masked_token_is_gone(backend):
    x, mask, token, pos = problem(2, (2, 3), 2, 32, 1, "all", torch.float32, False)
    hidden = mask.on_grid((4, 6)).masked.long() + 1
    x.scatter_(1, hidden[..., None].expand(-1, -1, 32), float("nan"))
    clean = x.nan_to_num(nan=0.0)
    with sk.backend(backend):
        for a, b in zip(
            *(
                (lambda out, grads: (out, *grads))(
                    *gradients(
                        lambda x, m, t, p: sk.mask_tokens(x, m, t, pos_embed=p, prefix_tokens=1),
                        value,
                        mask,
                        token,
                        pos,
                        torch.ones(x.shape),
                    )
                )
                for value in (x, clean)
            ),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced", "channels_first"])
def test_strided_input(backend, layout):
    mask = sk.random_mask(4, (2, 3), 0.5, seed=4)
    token = torch.randn(16)
    x = {
        "transposed": lambda: torch.randn(24, 4, 16).transpose(0, 1),
        "expanded": lambda: torch.randn(1, 24, 16).expand(4, -1, -1),
        "sliced": lambda: torch.randn(4, 48, 32)[:, ::2, ::2],
        "channels_first": lambda: torch.randn(4, 16, 4, 6).permute(0, 2, 3, 1),
    }[layout]()
    with sk.backend(backend):
        out = sk.mask_tokens(x, mask, token)
    assert torch.equal(out, published(x, mask.mask, token, None, 0))


def test_plain_bool_mask_may_differ_in_count():
    mask = torch.zeros(3, 2, 2, dtype=torch.bool)
    mask[1] = True
    mask[2, 0, 1] = True
    x, token = torch.randn(3, 16, 8), torch.randn(8)
    assert torch.equal(sk.mask_tokens(x, mask, token), published(x, mask, token, None, 0))


def test_keep_dtype():
    x, mask, token, _ = problem(2, (2, 2), 2, 8, 0, "none", torch.bfloat16, False, torch.float32)
    assert sk.mask_tokens(x, mask, token).dtype == torch.float32
    assert sk.mask_tokens(x, mask, token, keep_dtype=True).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    x, mask, token, pos = problem(2, (2, 1), 2, 3, 1, "patches", torch.float64, False)
    inputs = [t.requires_grad_() for t in (x, token, pos)]
    with sk.backend(backend):
        assert torch.autograd.gradcheck(
            lambda x, t, p: sk.mask_tokens(x, mask, t, pos_embed=p, prefix_tokens=1), inputs
        )


def test_autocast_promotes_as_the_published_arithmetic():
    x, mask, token, _ = problem(2, (2, 2), 2, 8, 0, "none", torch.bfloat16, False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = sk.mask_tokens(x, mask, token)
    assert out.dtype == torch.float32
    assert torch.equal(out, published(x, mask.mask, token, None, 0))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(2, 16, 8, dtype=torch.int64)}, TypeError, "x has dtype int64"),
        ({"x": torch.zeros(2, 8)}, ValueError, "x has shape"),
        ({"x": torch.zeros(2, 15, 8)}, ValueError, "15 tokens"),
        ({"x": torch.zeros(2, 3, 4, 8)}, ValueError, "token grid height 3"),
        ({"mask": torch.zeros(2, 2, 2)}, TypeError, "mask has dtype float32"),
        ({"mask": torch.zeros(3, 2, 2, dtype=torch.bool)}, ValueError, "batch size 3"),
        ({"token": torch.zeros(7)}, ValueError, "token has shape"),
        ({"token": None}, TypeError, "token must be a tensor"),
        ({"pos_embed": torch.zeros(1, 15, 8)}, ValueError, "pos_embed has shape"),
        ({"prefix_tokens": -1}, ValueError, "prefix_tokens is -1"),
        (
            {"mask": torch.zeros(2, 2, 2, dtype=torch.bool, device="meta")},
            RuntimeError,
            "mask is on meta",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {
        "x": torch.zeros(2, 16, 8),
        "mask": torch.zeros(2, 2, 2, dtype=torch.bool),
        "token": torch.zeros(8),
    } | change
    with pytest.raises(error, match=words):
        sk.mask_tokens(**arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_narrow_tokens_beside_a_float64_token(backend, dtype):
    x, mask, token, pos = problem(2, (2, 3), 2, 5, 1, "all", dtype, False, torch.float64)
    grad = torch.randn(x.shape, dtype=torch.float64)
    with sk.backend(backend):
        _, (dx, dtoken, dpos) = gradients(
            lambda x, m, t, p: sk.mask_tokens(x, m, t, pos_embed=p, prefix_tokens=1),
            *(x, mask, token, pos, grad),
        )
    fine = mask.on_grid((4, 6)).mask.flatten(1)
    hidden = torch.cat((torch.zeros(2, 1, dtype=torch.bool), fine), 1)[..., None]
    assert torch.equal(dx, torch.where(hidden, 0.0, grad).float().to(dtype))
    torch.testing.assert_close(dtoken.flatten(), torch.where(hidden, grad, 0.0).sum((0, 1)))
    assert torch.equal(dpos[0], grad.sum(0).float().to(dtype))
