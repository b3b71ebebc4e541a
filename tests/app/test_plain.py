"""The default path against the published arithmetic that ``--plain`` runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import pixel_unshuffle

from simmim.models import published
from simmim.models.encoders import build_encoder
from simmim.models.masking import Masking
from simmim.models.simmim import SimMIM, channel_statistics
from simmim_kernels import PatchNorm, WindowNorm
from tests.app.test_encoders import FAMILIES, SIZE, encoder_of, some_images
from tests.budget import assert_within_budget

STEPS = 20
EPS_RATIO = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


def losses(start: SimMIM, plain: bool, dtype: torch.dtype) -> torch.Tensor:
    """The losses of 20 updates from the same weights, on the same images, masks and random draws."""
    model = copy.deepcopy(start).to(dtype)
    model.plain = model.encoder.plain = plain
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    masking = Masking("random", 32, 0.6, SIZE)
    values = []
    for step in range(STEPS):
        torch.manual_seed(step)
        images = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
        loss = model(images, masking(torch.arange(4) + 4 * step, seed=0))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        values.append(loss.detach())
    return torch.stack(values)


def model_of(family: str) -> SimMIM:
    mean, std = channel_statistics(3)
    return SimMIM(encoder_of(family), mean=mean, std=std)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "beit-shared", "swin"])
def test_both_paths_have_the_same_losses_for_twenty_steps(family):
    start = model_of(family)
    exact = losses(start, plain=True, dtype=torch.float64)
    plain = losses(start, plain=True, dtype=torch.float32)
    assert exact[-10:].mean() < exact[:10].mean()
    assert_within_budget(losses(start, False, torch.float32), plain, exact, "losses in float32")
    # float64 has no wider type beside it: there the error is float32's, scaled.
    scaled = exact + (plain - exact) * EPS_RATIO
    assert_within_budget(losses(start, False, torch.float64), scaled, exact, "losses in float64")


CASES = [(family, "l1", None) for family in (*FAMILIES, "cnn")]
CASES += [("vit", "mse", PatchNorm()), ("swin", "smooth_l1", WindowNorm(47))]
CASES += [("swin-shifted", "l1", WindowNorm(5)), ("cnn", "mse", WindowNorm(47))]


@pytest.mark.parametrize(("family", "loss", "target_norm"), CASES)
def test_loss_and_gradients_agree(family, loss, target_norm):
    mean, std = channel_statistics(3)
    if family == "cnn":
        torch.manual_seed(0)
        encoder = build_encoder("cnn", img_size=SIZE, mean=(), std=())
    else:
        encoder = encoder_of(family.removesuffix("-shifted"))
    if family == "swin-shifted":
        # as where windows are shifted: the last block sees all tokens
        encoder.family.last_for = lambda out_grid: None
    images = some_images(3)
    mask = Masking("random", 32, 0.6, SIZE)(torch.arange(2), seed=3)
    start = SimMIM(encoder, loss=loss, mean=mean, std=std, target_norm=target_norm)
    torch.nn.init.normal_(start.head.weight, std=0.05)
    results = {}
    for key, plain, dtype in (
        ("ours", False, torch.float32),
        ("plain", True, torch.float32),
        ("exact", True, torch.float64),
    ):
        model = copy.deepcopy(start).to(dtype)
        model.plain = model.encoder.plain = plain
        value = model(images, mask)
        each = model(images, mask, reduction="none").detach()
        grads = torch.autograd.grad(value, list(model.parameters()))
        results[key] = [value, each, *grads]
    names = ["loss", "loss of each", *(name for name, _ in model.named_parameters())]
    for name, ours, plain, exact in zip(names, *results.values(), strict=True):
        assert_within_budget(ours, plain, exact, name)


@pytest.mark.parametrize("target_norm", [WindowNorm(15), PatchNorm()])
def test_the_picture_of_a_perfect_prediction_is_the_image(target_norm, monkeypatch):
    model = model_of("swin")
    model.target_norm = target_norm
    images = some_images(3)
    target = published.normalized(images, model.mean, model.std)
    mean, deviation = published.local_statistics(target, target_norm, 32)
    perfect = pixel_unshuffle((target - mean) / deviation, 32).flatten(2).transpose(1, 2)
    monkeypatch.setattr(model, "predict_tokens", lambda *_: perfect)
    # there and back in plain float32
    back = (target - mean) / deviation * deviation + mean
    back = back * model.std[:, None, None] + model.mean[:, None, None]
    assert_within_budget(model.predict_image(images, None), back, images.double() / 255)


def test_hidden_tokens_are_those_of_the_whole_pass():
    encoder = encoder_of("beit-shared").eval()
    images = some_images(3)
    mask = Masking("random", 32, 0.6, SIZE)(torch.arange(2), seed=3)
    with torch.no_grad():
        hidden = encoder.hidden_tokens(images, mask)
        index = mask.on_grid((4, 6)).masked.long()[..., None].expand(-1, -1, encoder.width)
        whole = (
            e(images, mask).gather(1, index) for e in (encoder, copy.deepcopy(encoder).double())
        )
        assert_within_budget(hidden, *whole)
        assert encoder.hidden_tokens(images, mask.mask) is None


def test_units_smaller_than_an_output_token_take_the_whole_pass():
    model = model_of("swin")
    mask = Masking("random", 16, 0.6, SIZE)(torch.arange(2), seed=3)
    images = some_images(3)
    assert model.encoder.hidden_tokens(images, mask) is None
    assert torch.isfinite(model(images, mask))
