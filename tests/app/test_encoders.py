"""The encoders: published sizes, every family, and what a mask does to them."""

from __future__ import annotations

import copy

import pytest
import torch

from simmim.errors import UserError
from simmim.models.build import build_model
from simmim.models.encoders import build_encoder
from simmim.models.masking import Masking
from simmim.models.simmim import SimMIM, channel_statistics
from simmim.presets import PRESETS
from tests.budget import assert_within_budget

SIZE = (64, 96)
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2}),
    "vit-registers": (
        "vit_tiny_patch16_224",
        {"depth": 1, "reg_tokens": 2, "no_embed_class": True},
    ),
    "vit-no-class": ("vit_tiny_patch16_224", {"depth": 1, "class_token": False}),
    "vit-dynamic": ("vit_tiny_patch16_224", {"depth": 1, "dynamic_img_size": True}),
    "beit": ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}),
    "beit-shared": ("simmim_vit_base", {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "swinv2": ("swinv2_tiny_window8_256", {"embed_dim": 24, "depths": (1, 1, 2, 1)}),
}


def encoder_of(family: str, channels: int = 3):
    name, arguments = FAMILIES[family]
    mean, std = channel_statistics(channels)
    torch.manual_seed(0)
    return build_encoder(name, img_size=SIZE, channels=channels, mean=mean, std=std, **arguments)


def some_images(channels: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, *SIZE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("preset", "parameters"), [("vit-b", 86_256_720), ("swin-b", 89_874_104)])
def test_published_models_have_the_published_size(preset, parameters):
    with torch.device("meta"):
        model = build_model(PRESETS[preset])
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("preset", ["demo", "tutorial"])
def test_small_presets_build(preset):
    with torch.device("meta"):
        model = build_model(PRESETS[preset])
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_paper_vit_shares_one_relative_position_table():
    with torch.device("meta"):
        names = dict(build_model(PRESETS["vit-b"]).named_parameters())
    tables = [p for name, p in names.items() if "relative_position_bias_table" in name]
    assert [tuple(p.shape) for p in tables] == [(732, 12)]
    assert not any("pos_embed" in name for name in names)


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns(family, channels):
    encoder = encoder_of(family, channels)
    mean, std = channel_statistics(channels)
    model = SimMIM(encoder, channels=channels, mean=mean, std=std)
    mask = Masking("random", 32, 0.6, SIZE)(torch.arange(2), seed=3)
    images = some_images(channels)
    loss = model(images, mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert model.predict_image(images, mask).shape == images.shape
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_with_nothing_hidden_the_encoder_is_timms(family):
    encoder = encoder_of(family).eval()
    images = some_images(3)
    expected = []
    with torch.no_grad():
        for model in (encoder, copy.deepcopy(encoder).double()):
            mean, std = model.mean[:, None, None], model.std[:, None, None]
            pixels = (images.to(mean.dtype) / 255 - mean) / std
            tokens = model.backbone.forward_features(pixels)
            tokens = tokens.flatten(1, 2) if tokens.dim() == 4 else tokens
            expected.append(tokens[:, getattr(model.backbone, "num_prefix_tokens", 0) :])
        got = encoder(images, torch.zeros(2, 2, 3, dtype=torch.bool))
    assert_within_budget(got, *expected)


@pytest.mark.parametrize("family", [*FAMILIES, "cnn"])
def test_hidden_pixels_do_not_reach_the_encoder(family):
    if family == "cnn":
        encoder = build_encoder("cnn", img_size=SIZE, mean=(), std=())
    else:
        encoder = encoder_of(family)
    encoder.eval()
    mask = torch.tensor([[[True, False, True], [False, True, False]]])
    images = some_images(3, 1)
    pixels = mask.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    changed = torch.where(pixels, 255 - images, images)
    with torch.no_grad():
        assert torch.equal(encoder(images, mask), encoder(changed, mask))
        assert not torch.equal(encoder(images, mask), encoder(images, ~mask))


def test_cnn_is_the_tutorials():
    encoder = build_encoder("cnn", img_size=(10, 14), channels=13, mean=(), std=())
    shapes = [tuple(c.weight.shape) for c in encoder.convolutions]
    assert [s[0] for s in shapes[:2]] == [64, 128]
    assert all(s[2:] == (3, 3) for s in shapes)
    assert len(shapes) == 3
    images = torch.zeros(2, 13, 10, 14, dtype=torch.uint8)
    assert encoder(images, torch.zeros(2, 10, 14, dtype=torch.bool)).shape == (2, 140, 64)


@pytest.mark.parametrize(
    ("name", "size", "arguments", "words"),
    [
        ("vit_tiny_patch16_225", SIZE, {}, "did you mean vit_tiny_patch16_224"),
        ("resnet50", SIZE, {}, "simmim takes ViT, BEiT, Swin, SwinV2"),
        ("vit_tiny_patch16_224", (64, 100), {}, "use 64x96"),
        ("swin_tiny_patch4_window7_224", (48, 64), {}, "encoder stride, 32 pixels"),
        ("vit_tiny_patch16_224", SIZE, {"dept": 2}, "dept"),
        ("vit_tiny_patch16_224", SIZE, {"patch_drop_rate": 0.5}, "build it with patch_drop_rate=0"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, size, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        build_encoder(name, img_size=size, mean=(0.5,) * 3, std=(0.5,) * 3, **arguments)
    assert "\n" not in str(caught.value)
