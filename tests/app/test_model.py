"""SimMIM's loss and pictures against the published arithmetic written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simmim.encoders import build_encoder
from simmim.masks import Masking
from simmim.model import SimMIM, channel_statistics, visible_mean_colour

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


def published_prediction(model: SimMIM, tokens: torch.Tensor, channels: int) -> torch.Tensor:
    """1x1 convolution with the head's parameters, then PixelShuffle."""
    convolution = nn.Conv2d(model.encoder.width, channels * 16**2, kernel_size=1)
    convolution.weight.data = model.head.weight.data[:, :, None, None]
    convolution.bias.data = model.head.bias.data
    features = tokens.transpose(1, 2).unflatten(2, (SIZE[0] // 16, SIZE[1] // 16))
    return nn.PixelShuffle(16)(convolution(features))


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_loss_is_the_published_one(channels):
    model = small_model(channels).eval()
    images = torch.randint(0, 256, (3, channels, *SIZE), dtype=torch.uint8)
    mask = Masking("random", 16, 0.6, SIZE)(torch.arange(3), seed=1)
    with torch.no_grad():
        got = model(images, mask)
        prediction = published_prediction(model, model.encoder(images, mask), channels).double()
    target = images.double() / 255
    target = (target - model.mean.double()[:, None, None]) / model.std.double()[:, None, None]
    m = mask.mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].double()
    expected = ((prediction - target).abs() * m).sum() / (m.sum() + 1e-5) / channels
    # the head's product is rounded to float32 on both sides, the loss itself adds 1e-6 at most
    assert got.item() == pytest.approx(expected.item(), rel=4e-6)


def test_predicted_image_undoes_the_normalisation():
    model = small_model().eval()
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    mask = Masking("random", 16, 0.6, SIZE)(torch.arange(2), seed=1)
    with torch.no_grad():
        got = model.predict_image(images, mask)
        shuffled = published_prediction(model, model.encoder(images, mask), 3)
    expected = (shuffled * model.std[:, None, None] + model.mean[:, None, None]).clamp(0, 1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_tutorial_model_predicts_pixels_between_0_and_1():
    torch.manual_seed(0)
    encoder = build_encoder("cnn", img_size=(20, 24), mean=(), std=())
    model = SimMIM(encoder, loss="mse", sigmoid=True)
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    mask = Masking("box", 1, 0.15, (20, 24))(torch.arange(2), seed=1)
    assert mask.mask.sum((1, 2)).tolist() == [9, 9]
    loss = model(images, mask)
    with torch.no_grad():
        predicted = model.predict_image(images, mask)
    assert 0 < predicted.min() < predicted.max() < 1
    hidden = mask.mask[:, None].expand_as(predicted)
    expected = (predicted - images / 255)[hidden].double().square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)


def test_mean_colour_is_that_of_the_visible_part():
    model = small_model()
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    mask = Masking("random", 16, 0.6, SIZE)(torch.arange(2), seed=5)
    got = visible_mean_colour(model, images, mask)
    shown = ~mask.mask.repeat_interleave(16, 1).repeat_interleave(16, 2)
    for b in range(2):
        colour = images[b].double()[:, shown[b]].mean(1) / 255
        expected = (colour - model.mean.double()) / model.std.double()
        torch.testing.assert_close(got[b, :, 3, 7].double(), expected, rtol=1e-5, atol=1e-5)
    assert got.shape == images.shape


def test_losses_by_sample_average_to_the_batchs():
    model = small_model(loss="smooth_l1").eval()
    images = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    mask = Masking("block", 16, 0.5, SIZE)(torch.arange(4), seed=5)
    with torch.no_grad():
        whole, parts = model(images, mask), model(images, mask, reduction="none")
    assert parts.shape == (4,)
    assert parts.mean().item() == pytest.approx(whole.item(), rel=1e-6)
