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


def test_a_default_device_set_elsewhere_changes_nothing():
    x, mask, token, pos = problem(2, (2, 3), 2, 8, 1, "all", torch.float32, False)
    grad = torch.randn(x.shape)

    def run():
        return gradients(
            lambda x, m, t, p: sk.mask_tokens(x, m, t, pos_embed=p, prefix_tokens=1),
            *(x, mask, token, pos, grad),
        )

    expected, expected_grads = run()
    with torch.device("meta"):
        out, grads = run()
    assert torch.equal(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


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


def test_second_derivative_is_refused():
    x, mask, token, _ = problem(1, (2, 2), 1, 4, 0, "none", torch.float32, False)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(
        sk.mask_tokens(x, mask, token).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="MaskTokens has no second derivative"):
        grad.sum().backward()


def test_transforms_are_refused():
    x, mask, token, _ = problem(1, (2, 2), 1, 4, 0, "none", torch.float32, False)
    with pytest.raises(RuntimeError, match=r"does not support torch\.func"):
        torch.func.vmap(lambda t: sk.mask_tokens(t, mask, token))(x[None])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            sk.mask_tokens(dual, mask, token)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_number_of_threads(threads):
    x, mask, token, pos = problem(9, (7, 7), 2, 96, 1, "all", torch.float32, False)
    grad = torch.randn(x.shape)

    def run():
        out, grads = gradients(
            lambda x, m, t, p: sk.mask_tokens(x, m, t, pos_embed=p, prefix_tokens=1),
            x,
            mask,
            token,
            pos,
            grad,
        )
        return (out, *grads)

    expected, before = run(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    x, mask, token, pos = problem(2, (2, 3), 2, 32, 1, "patches", torch.float32, False)

    def step(x, m, t, p):
        return sk.mask_tokens(x * 1.0, m, t, pos_embed=p, prefix_tokens=1)

    grad = torch.randn(x.shape)
    out, grads = gradients(step, x, mask, token, pos, grad)
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    out_c, grads_c = gradients(compiled, x, mask, token, pos, grad)
    assert torch.equal(out, out_c)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_c, strict=True))


def test_export():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.token = torch.nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x, mask):
            return sk.mask_tokens(x, mask, self.token)

    x, mask = torch.randn(2, 16, 8), sk.random_mask(2, (2, 2), 0.5, seed=0).mask
    model = Model()
    exported = torch.export.export(model, (x, mask)).module()
    assert torch.equal(exported(x, mask), model(x, mask))


def test_autocast_promotes_as_the_published_arithmetic():
    x, mask, token, _ = problem(2, (2, 2), 2, 8, 0, "none", torch.bfloat16, False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = sk.mask_tokens(x, mask, token)
    assert out.dtype == torch.float32
    assert torch.equal(out, published(x, mask.mask, token, None, 0))


def test_opcheck():
    x, mask, token, pos = problem(2, (2, 3), 2, 8, 1, "all", torch.float32, False)
    ops = torch.ops.simmim_kernels
    torch.library.opcheck(
        ops.mask_tokens_forward.default, (x.requires_grad_(), mask.mask, token, pos, 1, False)
    )
    grad = torch.randn(x.shape).bfloat16()
    for wanted in (
        (torch.float32, torch.float32, 25, torch.float32),
        (None, None, 0, None),
        (None, torch.float64, 24, torch.bfloat16),
    ):
        torch.library.opcheck(ops.mask_tokens_backward.default, (grad, mask.mask, 1, *wanted))


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
