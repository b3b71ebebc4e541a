"""SimMIM's loss and pictures against the published arithmetic written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pixel_shuffle

from simmim.models.encoders import build_encoder
from simmim.models.masking import Masking
from simmim.models.simmim import SimMIM, channel_statistics, visible_mean
from simmim_kernels import PatchMask
from tests.budget import assert_within_budget

SIZE = (32, 64)


def small_model(channels: int = 3, loss: str = "l1") -> SimMIM:
    torch.manual_seed(0)
    mean, std = channel_statistics(channels)
    encoder = build_encoder(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        channels=channels,
        mean=mean,
        std=std,
        depth=1,
        embed_dim=24,
        num_heads=2,
    )
    return SimMIM(encoder, channels=channels, loss=loss, mean=mean, std=std)


def double(model: SimMIM) -> SimMIM:
    return copy.deepcopy(model).double()


def published_prediction(model: SimMIM, images: Tensor, mask: PatchMask) -> Tensor:
    """1x1 convolution with the head's parameters, then PixelShuffle, in the model's own type."""
    tokens = model.encoder(images, mask)
    features = tokens.transpose(1, 2).unflatten(2, (SIZE[0] // 16, SIZE[1] // 16))
    weight = model.head.weight[:, :, None, None]
    return pixel_shuffle(conv2d(features, weight, model.head.bias), 16)


def published_loss(model: SimMIM, images: Tensor, mask: PatchMask) -> Tensor:
    prediction = published_prediction(model, images, mask)
    target = images.to(prediction.dtype) / 255
    target = (target - model.mean[:, None, None]) / model.std[:, None, None]
    m = mask.mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].to(target.dtype)
    return ((prediction - target).abs() * m).sum() / (m.sum() + 1e-5) / images.shape[1]


@pytest.mark.parametrize("channels", [1, 3, 13])
@torch.no_grad()
def test_loss_is_the_published_one(channels):
    model = small_model(channels).eval()
    images = torch.randint(0, 256, (3, channels, *SIZE), dtype=torch.uint8)
    mask = Masking("random", 16, 0.6, SIZE)(torch.arange(3), seed=1)
    plain, exact = (published_loss(m, images, mask) for m in (model, double(model)))
    assert_within_budget(model(images, mask), plain, exact)


@torch.no_grad()
def test_predicted_image_undoes_the_normalisation():
    model = small_model().eval()
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    mask = Masking("random", 16, 0.6, SIZE)(torch.arange(2), seed=1)
    plain, exact = (
        published_prediction(m, images, mask) * m.std[:, None, None] + m.mean[:, None, None]
        for m in (model, double(model))
    )
    assert_within_budget(model.predict_image(images, mask), plain.clamp(0, 1), exact.clamp(0, 1))


def test_tutorial_model_predicts_pixels_between_0_and_1():
    torch.manual_seed(0)
    encoder = build_encoder("cnn", img_size=(20, 24), mean=(), std=())
    model = SimMIM(encoder, loss="mse", sigmoid=True)
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    mask = Masking("box", 1, 0.15, (20, 24))(torch.arange(2), seed=1)
    assert mask.mask.sum((1, 2)).tolist() == [9, 9]
    hidden = mask.mask[:, None].expand_as(images)
    pictures, expected = [], []
    for m in (model, double(model)):
        tokens = m.head(m.encoder(images, mask)).sigmoid()
        pictures.append(tokens.transpose(1, 2).unflatten(2, (20, 24)))
        target = images.to(tokens.dtype) / 255
        expected.append((pictures[-1] - target)[hidden].square().mean())
    assert 0 < pictures[0].min() < pictures[0].max() < 1
    assert_within_budget(model.predict_image(images, mask), *pictures)
    assert_within_budget(model(images, mask), *expected)


def test_mean_colour_is_that_of_the_visible_part():
    model = small_model()
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    mask = Masking("random", 16, 0.6, SIZE)(torch.arange(2), seed=5)
    got = visible_mean(model, images, mask)
    shown = ~mask.mask.repeat_interleave(16, 1).repeat_interleave(16, 2)
    for b in range(2):
        expected = []
        for dtype in (torch.float32, torch.float64):
            colour = images[b].to(dtype)[:, shown[b]].mean(1) / 255
            expected.append((colour - model.mean.to(dtype)) / model.std.to(dtype))
        assert_within_budget(got[b, :, 3, 7], *expected)
    assert got.shape == images.shape


def test_losses_by_sample_average_to_the_batchs():
    model = small_model(loss="smooth_l1").eval()
    images = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    mask = Masking("block", 16, 0.5, SIZE)(torch.arange(4), seed=5)
    with torch.no_grad():
        whole, parts = model(images, mask), model(images, mask, reduction="none")
        exact = double(model)(images, mask)
    assert parts.shape == (4,)
    assert_within_budget(parts.mean(), whole, exact)
