"""timm's transformers under a mask: whatever their options, what the model itself computes."""

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import simmim_kernels as sk
from simmim_kernels.attention import attention
from simmim_kernels.integrations.last_block import MaskedLastBlock

timm = pytest.importorskip("timm")

from timm.models.beit import Beit  # noqa: E402
from timm.models.swin_transformer import SwinTransformer  # noqa: E402

from simmim_kernels.integrations.timm import MaskedEncoder  # noqa: E402

NAMES = {
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 24, "num_heads": 3, "depth": 3}),
    "beit": ("beit_base_patch16_224", {"embed_dim": 24, "num_heads": 3, "depth": 3}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 2)}),
    "swin_v2": ("swinv2_tiny_window8_256", {"embed_dim": 12, "depths": (1, 1, 1, 2)}),
}


def model(name, size=(64, 64), **options):
    timms, arguments = NAMES[name]
    if name.startswith("swin"):
        arguments = arguments | {"window_size": (size[0] // 32, size[1] // 32)}
    torch.manual_seed(0)
    built = timm.create_model(
        timms, img_size=size, num_classes=0, global_pool="", **{**arguments, **options}
    )
    for parameter in built.parameters():  # biases and tables start at 0, where an error hides
        if parameter.ndim <= 2:
            nn.init.normal_(parameter, std=0.5)
    return built.double().eval()


def images(size=(64, 64), batch=2):
    return torch.randn(batch, 3, *size, dtype=torch.float64)


def at_hidden(tokens, mask, grid):
    positions = mask.on_grid(grid).masked.long()[..., None]
    return tokens.gather(1, positions.expand(-1, -1, tokens.shape[2]))


def out_grid(encoder, size):
    return size[0] // encoder.stride, size[1] // encoder.stride


def as_timm(backbone, x):
    """Patch tokens of the model itself."""
    out = backbone.forward_features(x)
    return out.flatten(1, 2) if out.dim() == 4 else out[:, backbone.num_prefix_tokens :]


def expected(backbone, token, x, mask):
    """Patch tokens of the model itself, with a hook of plain PyTorch that puts the token in."""

    def substitute(module, args, out):
        grid = tuple(side // module.patch_size[0] for side in x.shape[2:])
        rows, columns = (n // units for n, units in zip(grid, mask.mask.shape[1:], strict=True))
        hidden = mask.mask.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
        return torch.where(hidden.reshape(*out.shape[:-1], 1), token.view(-1), out)

    handle = backbone.patch_embed.register_forward_hook(substitute)
    out = as_timm(backbone, x)
    handle.remove()
    return out


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


UNITS = [("vit", (64, 64), (1, 4)), ("vit", (64, 64), (4, 2)), ("vit", (64, 96), (2, 1))]
UNITS += [("beit", (64, 64), (1, 4)), ("beit", (64, 96), (4, 3)), ("vit", (64, 96), (1, 3))]
UNITS += [("swin", (128, 128), (1, 4)), ("swin", (64, 96), (1, 1)), ("swin", (64, 96), (2, 1))]
UNITS += [("swin_v2", (128, 128), (4, 1)), ("swin_v2", (64, 96), (1, 3))]


@pytest.mark.parametrize(("name", "size", "units"), UNITS)
def test_units_that_are_not_square_in_tokens(name, size, units):
    encoder = MaskedEncoder(model(name, size)).double().eval()
    x, mask = images(size), sk.random_mask(2, units, 0.5, seed=1)
    tokens = expected(encoder.backbone, encoder.mask_token, x, mask)
    same(encoder(x, mask), tokens)
    same(encoder.hidden_tokens(x, mask), at_hidden(tokens, mask, out_grid(encoder, size)))


def test_a_grid_that_does_not_fit_is_refused():
    block = MaskedLastBlock(model("vit").blocks[-1])
    mask = sk.random_mask(2, (1, 4), 0.5)
    with pytest.raises(ValueError, match="token grid width 6 is not a whole multiple"):
        block(torch.randn(2, 12, 24, dtype=torch.float64), mask, grid=(2, 6))


@pytest.mark.parametrize("name", NAMES)
def test_images_of_another_size_are_refused(name):
    encoder = MaskedEncoder(model(name, (64, 96))).double()
    with pytest.raises(ValueError, match=r"images are 96 x 64, this \w+ takes 64 x 96"):
        encoder(images((96, 64)), sk.random_mask(2, (3, 2), 0.5))


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 128)])
@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}, {"pos_embed": "none"}])
def test_dynamic_sizes_resample_positions_as_timm_does(size, options):
    encoder = MaskedEncoder(model("vit", dynamic_img_size=True, **options)).double().eval()
    x = images(size)
    units = size[0] // 32, size[1] // 32
    same(encoder(x, sk.random_mask(2, units, 0.0)), as_timm(encoder.backbone, x))
    mask = sk.random_mask(2, units, 0.5, seed=2)
    tokens = expected(encoder.backbone, encoder.mask_token, x, mask)
    same(encoder(x, mask), tokens)
    same(encoder.hidden_tokens(x, mask), at_hidden(tokens, mask, out_grid(encoder, size)))


def test_swin_whose_window_does_not_cover_the_map_leaves_the_last_block_whole():
    backbone = model("swin", (64, 64), strict_img_size=False, window_size=2)
    encoder = MaskedEncoder(backbone).double().eval()
    x, nothing = images((128, 128)), sk.random_mask(2, (4, 4), 0.0)
    assert encoder.hidden_tokens(x, nothing) is None
    same(encoder(x, nothing), as_timm(backbone, x))


def saved_elements(run):
    count = 0

    def pack(tensor):
        nonlocal count
        count += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    out.square().mean().backward()
    return count


@pytest.mark.parametrize("name", NAMES)
def test_activation_checkpointing_is_the_models(name):
    depths = {"depths": (1, 1, 1, 6)} if name.startswith("swin") else {"depth": 6}
    backbone = model(name, **depths)
    encoder = MaskedEncoder(backbone).double()
    x, mask = images(), sk.random_mask(2, (2, 2), 0.5, seed=1)
    found = {}
    for wanted in (False, True):
        backbone.set_grad_checkpointing(wanted)
        for call in (encoder, encoder.hidden_tokens):
            encoder.zero_grad()
            count = saved_elements(lambda call=call: call(x, mask))
            found[wanted, call] = count, [p.grad.clone() for p in encoder.parameters()]
    for call in (encoder, encoder.hidden_tokens):
        (kept, plain), (again, gradients) = found[False, call], found[True, call]
        assert again < kept / 2
        for a, b in zip(gradients, plain, strict=True):
            same(a, b)


class DoubledBeit(Beit):
    def forward_features(self, x):
        return 2 * super().forward_features(x)


class DoubledSwin(SwinTransformer):
    def forward_features(self, x):
        return 2 * super().forward_features(x)


@pytest.mark.parametrize("kind", [DoubledBeit, DoubledSwin])
def test_a_subclass_runs_its_own_code(kind):
    sizes = {"depth": 2, "num_heads": 3} if kind is DoubledBeit else {"window_size": 2}
    backbone = kind(img_size=64, embed_dim=24, num_classes=0, **sizes).double().eval()
    encoder = MaskedEncoder(backbone).double().eval()
    x, nothing = images(), sk.random_mask(2, (2, 2), 0.0)
    same(encoder(x, nothing), as_timm(backbone, x))
    assert encoder.hidden_tokens(x, nothing) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_drop_rate": 0.5}, "patch_drop_rate=0"),
        ({"patch_size": (16, 8)}, "the patches are 16 x 8"),
    ],
)
def test_what_cannot_be_predicted_from_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        MaskedEncoder(model("vit", **options))


def prune(backbone):
    backbone.prune_intermediate_layers([1], prune_norm=False)


def hook(backbone):
    backbone.blocks[-1].register_forward_hook(lambda module, args, out: out.square())


def hook_on_qkv(backbone):
    backbone.blocks[-1].attn.qkv.register_forward_hook(lambda module, args, out: out.square())


def override(backbone):
    block = backbone.blocks[-1]
    theirs = block.forward
    block.forward = lambda x: theirs(x).square()


def adapter(backbone):
    attn = backbone.blocks[-1].attn
    attn.qkv = nn.Sequential(attn.qkv, nn.Linear(72, 72).double())


def pruned_weights(backbone):
    torch.nn.utils.prune.random_unstructured(backbone.blocks[-1].attn.qkv, "weight", 0.5)


@pytest.mark.parametrize("change", [prune, hook, hook_on_qkv, override, adapter, pruned_weights])
def test_a_model_changed_after_it_was_wrapped(change):
    encoder = MaskedEncoder(model("vit")).double().eval()
    x, mask = images(), sk.random_mask(2, (2, 2), 0.5, seed=1)
    before = encoder.hidden_tokens(x, mask)
    change(encoder.backbone)
    tokens = expected(encoder.backbone, encoder.mask_token, x, mask)
    same(encoder(x, mask), tokens)
    assert not torch.allclose(at_hidden(tokens, mask, (4, 4)), before)
    hidden = encoder.hidden_tokens(x, mask)
    if change is prune:
        same(hidden, at_hidden(tokens, mask, (4, 4)))
    else:
        assert hidden is None


@pytest.mark.parametrize("where", ["patch_embed", "patch_embed.proj"])
@pytest.mark.parametrize("name", NAMES)
def test_a_hook_on_the_patch_embedding_runs(name, where):
    encoder = MaskedEncoder(model(name)).double().eval()
    x, mask = images(), sk.random_mask(2, (2, 2), 0.5, seed=1)
    tokens = expected(encoder.backbone, encoder.mask_token, x, mask)
    calls = []
    encoder.backbone.get_submodule(where).register_forward_hook(
        lambda module, args, out: calls.append(module)
    )
    x.masked_fill_(mask.on_grid((64, 64)).mask[:, None], float("nan"))
    same(encoder(x, mask), tokens)
    assert calls


def test_a_bias_gets_a_gradient_of_zeros_without_queries():
    q, kv = torch.randn(2, 3, 0, 4), torch.randn(2, 3, 5, 4)
    bias = torch.randn(2, 3, 0, 5, requires_grad=True)
    out = attention(q, kv, kv, bias=bias, scale=0.5, fused=True)
    (grad,) = torch.autograd.grad(out.sum(), bias)
    assert grad.shape == bias.shape and not grad.any()


def test_a_swin_without_its_last_stages():
    backbone = model("swin", (64, 64), window_size=2)
    backbone.prune_intermediate_layers([2], prune_norm=True)
    encoder = MaskedEncoder(backbone).double().eval()
    x = images()
    tokens = encoder(x, sk.random_mask(2, (2, 2), 0.0))
    same(tokens, as_timm(backbone, x))
    assert encoder.stride == 16 and tokens.shape == (2, 16, encoder.width)


def test_no_position_embedding_no_dropout_behind_it():
    backbone = model("vit", pos_embed="none", pos_drop_rate=0.5).train()
    encoder = MaskedEncoder(backbone).double()
    x = images()
    results = []
    for run in (lambda: encoder(x, sk.random_mask(2, (2, 2), 0.0)), lambda: as_timm(backbone, x)):
        torch.manual_seed(1)
        results.append(run())
    same(*results)


VISIBLE = {
    "plain": {},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "no class token": {"class_token": False},
    "norm of patches": {"embed_norm_layer": nn.LayerNorm},
    "no positions": {"pos_embed": "none"},
}


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("case", VISIBLE)
def test_visible_tokens_alone_are_those_of_a_model_that_gets_no_others(case, hooked):
    encoder = MaskedEncoder(model("vit", (64, 96), **VISIBLE[case]))
    backbone, x = encoder.backbone, images((64, 96))
    mask = sk.random_mask(2, (2, 3), 0.5, seed=1)  # units of 2 x 2 patches
    kept = mask.on_grid((4, 6)).visible.long()
    called = []
    if hooked:
        backbone.patch_embed.register_forward_hook(lambda *_: called.append(1))
    found = encoder.visible_tokens(x, mask)
    # timm's own way, which leaves out patches behind the positions
    prefix = backbone.num_prefix_tokens

    def drop(module, args, out):
        index = kept[..., None].expand(-1, -1, out.shape[2])
        return torch.cat((out[:, :prefix], out[:, prefix:].gather(1, index)), 1)

    backbone.norm_pre.register_forward_hook(drop)
    torch.testing.assert_close(found, backbone.forward_features(x))
    assert found.shape == (2, prefix + 12, 24)
    assert len(called) == 2 * hooked


@pytest.mark.parametrize("name", ["beit", "swin"])
def test_visible_tokens_are_refused_where_a_grid_is_needed(name):
    with pytest.raises(TypeError, match="needs its patches on a whole grid; allowed: a ViT"):
        MaskedEncoder(model(name)).visible_tokens(images(), sk.random_mask(2, (4, 4), 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "beit"])
def test_exports_for_batches_of_any_size(name):
    encoder, more = MaskedEncoder(model(name)).eval(), images(batch=5)
    masks = [sk.random_mask(n, (2, 2), 0.5, seed=3).mask for n in (2, 5)]
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = {"dynamic_shapes": (batch, batch), "strict": False}
    exported = torch.export.export(encoder, (images(), masks[0]), **shapes).module()
    same(exported(more, masks[1]), encoder(more, masks[1]))
