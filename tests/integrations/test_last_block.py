"""MaskedLastBlock against timm's own block: the same loss, the same gradients, the same draws."""

import copy

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import simmim_kernels as sk
from simmim_kernels import MaskedLastBlock
from tests.budget import assert_within_budget

beit = pytest.importorskip("timm.models.beit")
swin = pytest.importorskip("timm.models.swin_transformer")
swin_v2 = pytest.importorskip("timm.models.swin_transformer_v2")
vit = pytest.importorskip("timm.models.vision_transformer")

D, HEADS, GRID = 48, 3, (4, 6)
BLOCKS = {
    "vit": lambda: (vit.Block(D, HEADS, qkv_bias=True), 1),
    "vit with all options": lambda: (
        vit.Block(
            D,
            HEADS,
            qkv_bias=False,
            qk_norm=True,
            scale_attn_norm=True,
            scale_mlp_norm=True,
            init_values=0.1,
            drop_path=0.4,
        ),
        5,
    ),
    "beit, own bias": lambda: (
        beit.Block(D, HEADS, qkv_bias=True, window_size=GRID, init_values=0.1, drop_path=0.4),
        1,
    ),
    "beit, shared bias": lambda: (beit.Block(D, HEADS, swiglu_mlp=True, scale_mlp=True), 1),
    "beit, both": lambda: (beit.Block(D, HEADS, qkv_bias=True, window_size=GRID), 1),
    "swin": lambda: (swin.SwinTransformerBlock(D, GRID, HEADS, window_size=7, drop_path=0.4), 0),
    "swin v2": lambda: (
        swin_v2.SwinTransformerV2Block(D, GRID, HEADS, window_size=7, drop_path=0.4),
        0,
    ),
}


def built(name, fused=True):
    """The block with random numbers in every parameter, and its prefix tokens."""
    block, prefix = BLOCKS[name]()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(parameter.shape[-1], 1) ** 0.5)
    if hasattr(block.attn, "fused_attn"):
        block.attn.fused_attn = fused
    return block, prefix


def problem(name, prefix, batch=3):
    tokens = prefix + GRID[0] * GRID[1]
    shape = (batch, *GRID, D) if "swin" in name else (batch, tokens, D)
    mask = sk.random_mask(batch, (2, 3), 0.5, seed=1)
    shared = torch.randn(HEADS, tokens, tokens) if "shared" in name or "both" in name else None
    return torch.randn(shape), mask, shared, torch.randn(batch, mask.masked.shape[1] * 4, D)


def result(run, block, x, shared, grad, dtype):
    """The masked tokens in `dtype`, and gradients of the input, the bias and every parameter."""
    block = copy.deepcopy(block).to(dtype)
    leaves = {"x": x.to(dtype).requires_grad_()}
    arguments = {}
    if shared is not None:
        leaves["shared"] = shared.to(dtype).requires_grad_()
        arguments["shared_rel_pos_bias"] = leaves["shared"]
    leaves |= dict(block.named_parameters())
    torch.manual_seed(5)
    out = run(block, leaves["x"], **arguments)
    grads = torch.autograd.grad(out, list(leaves.values()), grad.to(dtype))
    return {"out": out} | dict(zip(leaves, grads, strict=True))


def runs(mask, prefix):
    index = mask.on_grid(GRID).masked.long() + prefix

    def plain(block, x, **arguments):
        out = block(x, **arguments)
        out = out.flatten(1, -2)
        return out.gather(1, index[..., None].expand(-1, -1, D))

    def ours(block, x, **arguments):
        return MaskedLastBlock(block, prefix_tokens=prefix)(x, mask, **arguments)

    return plain, ours


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_output_and_every_gradient(name, fused):
    block, prefix = built(name, fused)
    x, mask, shared, grad = problem(name, prefix)
    plain, ours = runs(mask, prefix)
    exact = result(plain, block, x, shared, grad, torch.float64)
    single = result(plain, block, x, shared, grad, torch.float32)
    double = result(ours, block, x, shared, grad, torch.float64)
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    for key, value in result(ours, block, x, shared, grad, torch.float32).items():
        assert_within_budget(value, single[key], exact[key], key)
        # In float64 the plain block is as inexact as ours: both have float32's error, scaled.
        scaled = exact[key] + (single[key] - exact[key]) * ratio
        assert_within_budget(double[key], scaled, exact[key], f"{key} in float64")


@pytest.mark.parametrize("name", ["vit with all options", "beit, own bias", "swin", "swin v2"])
def test_drop_path_draws_the_plain_block_s_numbers(name):
    block, prefix = built(name)
    x, mask, *_ = problem(name, prefix, batch=16)
    plain, ours = runs(mask, prefix)
    outs, states = [], []
    for run in (plain, ours):
        torch.manual_seed(3)
        outs.append(run(block, x))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    torch.testing.assert_close(*outs)
    rest = x.flatten(1, -2).gather(
        1, (mask.on_grid(GRID).masked.long() + prefix)[..., None].expand(-1, -1, D)
    )
    dropped = (outs[1] == rest).flatten(1).all(1)
    assert 0 < dropped.sum() < 16, "the test must see samples with both branches dropped"


@pytest.mark.parametrize("name", BLOCKS)
def test_activation_checkpointing(name):
    block, prefix = built(name)
    x, mask, shared, grad = problem(name, prefix)
    _, ours = runs(mask, prefix)

    def checkpointed(block, x, **arguments):
        return checkpoint(ours, block, x, use_reentrant=False, **arguments)

    plain = result(ours, block, x, shared, grad, torch.float32)
    again = result(checkpointed, block, x, shared, grad, torch.float32)
    assert all(torch.equal(plain[key], again[key]) for key in plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", {"backend": "inductor"}),
        ("beit, both", {"backend": "aot_eager"}),
        ("swin", {"backend": "aot_eager", "dynamic": True}),
        ("swin v2", {"backend": "aot_eager", "dynamic": True}),
    ],
)
def test_compiles_in_one_graph(name, options):
    block, prefix = built(name)
    block.eval()
    x, mask, shared, _ = problem(name, prefix)
    last = MaskedLastBlock(block, prefix_tokens=prefix)
    arguments = {} if shared is None else {"shared_rel_pos_bias": shared}

    def step(x, mask):
        return last(x, mask, **arguments)

    compiled = torch.compile(step, fullgraph=True, **options)
    x.requires_grad_()
    outs = [f(x, mask) for f in (compiled, step)]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*(torch.autograd.grad(o.square().sum(), x)[0] for o in outs))


@pytest.mark.slow
def test_export_inside_an_encoder():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, prefix = built("vit")
            self.last = MaskedLastBlock(self.block, prefix_tokens=prefix)

        def forward(self, x, *mask):
            return self.last(x, sk.PatchMask(*mask))

    encoder = Encoder().eval()
    assert all(name.startswith("block.") for name in encoder.state_dict())
    x, mask, *_ = problem("vit", 1)
    exported = torch.export.export(encoder, (x, *mask)).module()
    torch.testing.assert_close(exported(x, *mask), encoder(x, *mask))


@pytest.mark.parametrize("name", BLOCKS)
def test_autocast(name):
    block, prefix = built(name)
    x, mask, shared, grad = problem(name, prefix)
    plain, ours = runs(mask, prefix)
    exact = result(plain, block, x, shared, grad, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        single = result(plain, block, x, shared, grad, torch.float32)
        values = result(ours, block, x, shared, grad, torch.float32)
    for key, value in values.items():
        assert value.dtype == single[key].dtype
        error = (value - exact[key]).norm()
        assert error <= 2 * (single[key] - exact[key]).norm(), key


def test_a_nan_at_a_masked_token_stays_in_its_sample():
    block, prefix = built("vit")
    x, mask, *_ = problem("vit", prefix)
    x[1] = float("nan")
    out = MaskedLastBlock(block, prefix_tokens=prefix)(x, mask)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize("batch", [0, 2])
def test_nothing_masked_everything_masked_empty_batch(batch, ratio):
    block, prefix = built("beit, both")
    x, _, shared, _ = problem("beit, both", prefix, batch)
    mask = sk.random_mask(batch, (2, 3), ratio, seed=0)
    out = MaskedLastBlock(block, prefix_tokens=prefix)(x, mask, shared_rel_pos_bias=shared)
    assert out.shape == (batch, 24 * int(ratio), D)
    if batch:  # timm's own block can't take an empty one
        plain = block(x, shared_rel_pos_bias=shared)
        torch.testing.assert_close(out, plain[:, prefix : prefix + 24 * int(ratio)])


def refused(change):
    block, _ = built("vit")
    change(block)
    return block


def quantise(block):
    """A weight like torchao's, a tensor around others."""
    weight = block.attn.qkv.weight.detach()
    block.attn.qkv.weight = nn.Parameter(TwoTensor(weight, weight))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(3, 3), "Linear can't run .*none of timm's"),
        (lambda: vit.ResPostBlock(D, HEADS), "ResPostBlock can't run .*none of timm's"),
        (lambda: vit.Block(D, HEADS, attn_layer="diff"), "attention DiffAttention"),
        (lambda: vit.Block(D, HEADS, proj_drop=0.1), "attn.proj_drop draws"),
        (lambda: vit.Block(D, HEADS, attn_drop=0.1), "attn.attn_drop draws"),
        (lambda: swin.SwinTransformerBlock(D, (8, 8), HEADS, window_size=4), "do not cover"),
        (
            lambda: swin_v2.SwinTransformerV2Block(D, (8, 8), HEADS, window_size=4, shift_size=2),
            "shifted by",
        ),
        (lambda: refused(lambda b: setattr(b, "norm2", nn.BatchNorm1d(D))), "norm2 BatchNorm1d"),
        (lambda: refused(lambda b: setattr(b, "mlp", nn.Conv1d(D, D, 1))), "MLP Conv1d"),
        (lambda: refused(lambda b: setattr(b, "ls1", nn.ReLU())), "ls1 is a ReLU"),
        (lambda: refused(lambda b: setattr(b.attn, "qkv", nn.Identity())), "attn.qkv is a"),
        (lambda: refused(quantise), "attn.qkv has a TwoTensor for weight"),
    ],
)
def test_other_blocks_are_refused_by_name(make, words):
    block = make()
    assert MaskedLastBlock.why_not(block)
    with pytest.raises(TypeError, match=words):
        MaskedLastBlock(block)


def test_bad_inputs_are_named():
    block, prefix = built("vit")
    x, mask, *_ = problem("vit", prefix)
    last = MaskedLastBlock(block, prefix_tokens=prefix)
    with pytest.raises(TypeError, match="must be a PatchMask"):
        last(x, mask.mask)
    with pytest.raises(ValueError, match="26 tokens"):
        last(torch.zeros(3, 27, D), mask)
    with pytest.raises(ValueError, match="prefix_tokens is -1"):
        MaskedLastBlock(block, prefix_tokens=-1)
    for wrong in ("1", 1.0, None):
        with pytest.raises(TypeError, match=r"^prefix_tokens must be a whole number"):
            MaskedLastBlock(block, prefix_tokens=wrong)
    for wrong in ("x", None, x.long()):
        with pytest.raises(TypeError, match=r"^x "):
            last(wrong, mask)
    window = MaskedLastBlock(built("swin")[0])
    shared = torch.zeros(HEADS, 25, 25)
    for other, tokens in ((last, x), (window, torch.zeros(3, 4, 6, D))):
        with pytest.raises(ValueError, match=r"^shared_rel_pos_bias is given .* allowed: None"):
            other(tokens, mask, shared_rel_pos_bias=shared)
    last = MaskedLastBlock(built("beit, shared bias")[0], prefix_tokens=1)
    for shape in ((25, 25), (2, HEADS, 25, 25), (HEADS, 1, 25), (HEADS, 24, 24)):
        with pytest.raises(ValueError, match=r"^shared_rel_pos_bias has shape .* \(3, 25, 25\)"):
            last(torch.zeros(3, 25, D), mask, shared_rel_pos_bias=torch.zeros(shape))
    with pytest.raises(TypeError, match=r"^shared_rel_pos_bias must be a tensor"):
        last(torch.zeros(3, 25, D), mask, shared_rel_pos_bias=0.5)
    with pytest.raises(ValueError, match=r"allowed: \(B, 4, 6, D\)"):
        window(torch.zeros(3, 6, 4, D), mask)
