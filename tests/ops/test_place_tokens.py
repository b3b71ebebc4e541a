"""Compact token rows: what MaskedLastBlock takes out, and the way back of its gradient."""

import pytest
import torch

import simmim_kernels as sk
from simmim_kernels.ops.place_tokens import place_tokens, take_masked_tokens
from tests.backends import BACKENDS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("grid", [(2, 3), (1, 1), (4, 6)])
def test_masked_tokens_are_those_of_the_index_list(backend, dtype, prefix, grid):
    mask = sk.random_mask(3, grid, 0.5, seed=1)
    x = torch.randn(3, prefix + 24, 40).to(dtype).requires_grad_(True)
    x_wide = torch.randn(3, prefix + grid[0] * grid[1] * 4, 40).to(dtype)
    x = (x if grid != (1, 1) else x_wide[:, : prefix + 4]).detach().requires_grad_()
    scale = 1 if grid == (4, 6) else 2
    index = mask.on_grid((grid[0] * scale, grid[1] * scale)).masked.long() + prefix
    with sk.backend(backend):
        taken = take_masked_tokens(x, mask, prefix_tokens=prefix)
        expected = x.gather(1, index[..., None].expand(-1, -1, 40))
        assert torch.equal(taken, expected)
        grad = torch.randn_like(taken)
        assert torch.equal(
            torch.autograd.grad(taken, x, grad)[0], torch.autograd.grad(expected, x, grad)[0]
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_rows_and_gradients(backend):
    mask, token = sk.random_mask(2, (2, 2), 0.5, seed=1), torch.randn(8)
    rows = torch.randn(16, 8).t().t()[:, :8].contiguous().t().contiguous().t()
    assert rows.stride() == (1, 16)
    x = torch.randn(16, 2, 8).transpose(0, 1)
    with sk.backend(backend):
        placed = place_tokens(rows, mask, token, (4, 4))
        assert torch.equal(placed, place_tokens(rows.contiguous(), mask, token, (4, 4)))
        assert torch.equal(take_masked_tokens(x, mask), take_masked_tokens(x.contiguous(), mask))
        leaf = rows.detach().requires_grad_()
        place_tokens(leaf, mask, token, (4, 4)).sum().backward()  # a gradient of stride 0
    assert torch.equal(leaf.grad, torch.ones(16, 8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    mask = sk.random_mask(2, (2, 1), 0.5, seed=1)
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    with sk.backend(backend):
        assert torch.autograd.gradcheck(lambda x: take_masked_tokens(x, mask, prefix_tokens=1), x)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    mask = sk.random_mask(2, (2, 3), 0.5, seed=1)
    x = torch.randn(2, 25, 8, requires_grad=True)

    def step(x, mask):
        return take_masked_tokens(x * 2, mask, prefix_tokens=1)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    assert torch.equal(compiled(x, mask), step(x, mask))
    grads = [torch.autograd.grad(f(x, mask).square().sum(), x)[0] for f in (compiled, step)]
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mask": torch.zeros(2, 2, 2, dtype=torch.bool)}, TypeError, "must be a PatchMask"),
        ({"x": torch.zeros(2, 16)}, ValueError, "x has shape"),
        ({"x": torch.zeros(2, 17, 8)}, ValueError, "17 tokens"),
        ({"x": torch.zeros(3, 16, 8)}, ValueError, "batch size 2"),
        ({"x": torch.zeros(2, 16, 8, dtype=torch.int64)}, TypeError, "x has dtype int64"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {"x": torch.zeros(2, 16, 8), "mask": sk.random_mask(2, (2, 2), 0.5, seed=0)}
    with pytest.raises(error, match=words):
        take_masked_tokens(**(arguments | change))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(33, 8), (4, 4)), "33 rows came for 2 samples"),
        ((torch.zeros(4, 2, 8), (4, 4)), "rows has shape"),
        ((torch.zeros(8, 8), (3, 4)), "token grid height 3"),
    ],
)
def test_bad_rows_are_named(arguments, words):
    rows, grid = arguments
    mask = sk.random_mask(2, (2, 2), 0.5, seed=0)
    with pytest.raises(ValueError, match=words):
        place_tokens(rows, mask, torch.zeros(8), grid)
