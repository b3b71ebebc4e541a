"""MaskedEncoder: any timm model under a mask, against that model with a hook of plain PyTorch."""

import copy

import pytest
import torch
from torch import nn

import simmim_kernels as sk
from tests.budget import assert_within_budget

timm = pytest.importorskip("timm")

from simmim_kernels.integrations.timm import MaskedEncoder  # noqa: E402

# name -> timm's name, arguments, stage, token layout at the stage
MODELS = {
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, "stem", 1),
    "pvt, overlapping": ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}, "patch_embed", -1),
    "tiny_vit": (
        "tiny_vit_5m_224",
        {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 1, 1, 1)},
        "patch_embed",
        1,
    ),
    "distilled": (
        "deit_tiny_distilled_patch16_224",
        {"depth": 1, "embed_dim": 24, "img_size": 64},
        "patch_embed",
        -1,
    ),
    "eva": (
        "eva02_tiny_patch14_224",
        {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 64, "patch_size": 8},
        "patch_embed",
        -1,
    ),
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 24, "img_size": 64}, None, -1),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "depths": (1, 1, 2, 1), "img_size": 64},
        None,
        -1,
    ),
}
ANY = [name for name, (_, _, stage, _) in MODELS.items() if stage]
SIZE = (64, 64)


def build(name):
    timms, arguments, *_ = MODELS[name]
    model = timm.create_model(timms, num_classes=0, **arguments)
    model.pretrained_cfg["input_size"] = (3, *SIZE)
    for module in model.modules():
        if isinstance(module, nn.Dropout) or "DropPath" in type(module).__name__:
            module.p = module.drop_prob = 0.0
    return model.eval()


def problem(batch=2):
    images = torch.randn(batch, 3, *SIZE)
    return images, sk.random_mask(batch, (2, 2), 0.5, seed=3)


def with_a_hook(name, model, token, images, mask):
    """The model's features where a hook on the stage puts the token."""
    _, _, stage, axis = MODELS[name]

    def substitute(module, args, out):
        x = out[0] if isinstance(out, tuple) else out
        sides = x.shape[2:] if axis == 1 else x.shape[1:-1]
        side = sides[0] if len(sides) == 2 else int(sides[0] ** 0.5)
        chosen = mask.on_grid((side, side)).mask.view(len(x), *sides)
        shaped = token.view(-1, 1, 1) if axis == 1 else token.view(-1)
        x = torch.where(chosen.unsqueeze(axis), shaped, x)
        return (x, *out[1:]) if isinstance(out, tuple) else x

    handle = model.get_submodule(stage).register_forward_hook(substitute)
    hidden = mask.on_grid(SIZE).mask[:, None]
    out = model.forward_features(images.masked_fill(hidden, 0.0))
    handle.remove()
    if out.dim() == 4:
        out = out.flatten(2).transpose(1, 2)
    return out[:, getattr(model, "num_prefix_tokens", 0) :]


@pytest.mark.parametrize("name", ANY)
def test_tokens_and_gradients_are_those_of_the_model_with_a_hook(name):
    images, mask = problem()
    model = build(name)
    encoder = MaskedEncoder(model)

    def result(run, dtype):
        copied = copy.deepcopy(encoder).to(dtype)
        out = run(copied, images.to(dtype))
        out.square().mean().backward()
        names = {n: p.grad for n, p in copied.named_parameters() if p.grad is not None}
        return {"out": out} | {n: g for n, g in names.items() if "_embed" in n or "_token" in n}

    def hooked(encoder, images):
        return with_a_hook(name, encoder.undo(), encoder.mask_token, images, mask)

    ours = result(lambda encoder, images: encoder(images, mask), torch.float32)
    assert "mask_token" in ours
    plain, exact = result(hooked, torch.float32), result(hooked, torch.float64)
    for key, value in ours.items():
        assert_within_budget(value, plain[key], exact[key], key)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_pixels_do_not_reach_the_encoder(name):
    images, mask = problem()
    encoder = MaskedEncoder(build(name)).eval()
    tokens = encoder(images, mask)
    assert tokens.shape == (2, (64 // encoder.stride) ** 2, encoder.width)
    hidden = mask.on_grid(SIZE).mask[:, None]
    assert torch.equal(encoder(images.masked_fill(hidden, float("nan")), mask), tokens)
    assert not torch.equal(encoder(images.masked_fill(~hidden, 0.5), mask), tokens)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_itself_gives_what_it_gave(name):
    images, mask = problem()
    model = build(name)
    names = set(model.state_dict())

    def features():
        maps = model.forward_intermediates(images, intermediates_only=True)
        return [model.forward_features(images), *maps]

    with torch.no_grad():
        before = features()
        encoder = MaskedEncoder(model).eval()
        encoder(images, mask)
        between = features()
        assert encoder.undo() is model
        after = features()
    for a, b, c in zip(before, between, after, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert set(model.state_dict()) == names
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_an_interrupted_call_leaves_no_mask_behind():
    images, mask = problem()
    model = build("convnext")
    expected = model.forward_features(images)
    encoder = MaskedEncoder(model)
    stages, model.stages = model.stages, nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        encoder(images, mask)
    model.stages = stages
    assert torch.equal(model.forward_features(images), expected)


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_uint8_images_are_normalised(name):
    images, mask = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8), problem()[1]
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    encoder = MaskedEncoder(build(name), mean=mean, std=std).eval()
    plain = MaskedEncoder(copy.deepcopy(encoder).undo()).eval()
    plain.mask_token = encoder.mask_token

    def scaled(dtype):
        m, s = (torch.tensor(values, dtype=dtype).view(3, 1, 1) for values in (mean, std))
        return (images.to(dtype) / 255 - m) / s

    expected = plain(scaled(torch.float32), mask)
    exact = copy.deepcopy(plain).double()(scaled(torch.float64), mask)
    assert_within_budget(encoder(images, mask), expected, exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext", "distilled", "vit"])
def test_compile(name):
    images, mask = problem()
    encoder = MaskedEncoder(build(name)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, mask), encoder(images, mask))


def test_report_says_what_runs_and_why_not():
    report = MaskedEncoder(build("vit")).report
    assert set(report.replaced) == {"patch_embed", "last block"} and not report.left
    report = MaskedEncoder(build("pvt, overlapping")).report
    assert "patch_embed" in report.replaced and "patches" in report.left


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.Linear(2, 2), TypeError, "Linear has no forward_features"),
        (lambda: timm.create_model("resnet10t"), TypeError, "ResNet has no patch_embed or stem"),
        (
            lambda: MaskedEncoder(build("convnext")).backbone,
            ValueError,
            "stem of this ConvNeXt was changed already",
        ),
    ],
)
def test_what_is_refused_in_one_line(make, error, words):
    with pytest.raises(error, match=words) as caught:
        MaskedEncoder(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_bad_arguments_are_named(name):
    images, mask = problem()
    for size in (64, "64", (64.0, 64.0), (64, 64, 3)):
        with pytest.raises(TypeError, match=r"^img_size "):
            MaskedEncoder(build(name), img_size=size)
    with pytest.raises(TypeError, match=r"^stage must be the name of a module, got Identity"):
        MaskedEncoder(build(name), stage=nn.Identity())
    encoder = MaskedEncoder(build(name))
    for call in (encoder, encoder.hidden_tokens, encoder.visible_tokens):
        for wrong in (None, "x", images.long()):
            with pytest.raises(TypeError, match=r"^images "):
                call(wrong, mask)
        with pytest.raises(ValueError, match=r"^images has shape .*; allowed: \(B, C, H, W\)"):
            call(images[0], mask)


def test_outputs_that_form_no_grid_are_refused():
    with pytest.raises(ValueError, match="no grid of square tokens"):
        MaskedEncoder(build("convnext"), img_size=(70, 64))
