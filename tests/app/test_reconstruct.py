"""Pictures: colours come back as they were, hidden parts are gray, predictions fill them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import figure
from PIL import Image

from simmim.config.pretrain import PretrainConfig
from simmim.evaluation.plot import (
    choose_display,
    confusion_picture,
    loss_curve,
    reconstruct,
    reconstruction_picture,
)
from simmim.models.simmim import SimMIM, channel_statistics
from simmim.training.metrics import MetricsFile
from simmim_kernels import random_mask

SIZE = (32, 48)


class Oracle(torch.nn.Module):
    """An encoder that knows one colour and says so for every patch."""

    stride = patch = 16
    width = 4

    def forward(self, images, mask):
        tokens = images.shape[-2] * images.shape[-1] // 16**2
        return torch.ones(len(images), tokens, 4)


def oracle_of(colour: list[float]) -> SimMIM:
    mean, std = channel_statistics(3)
    model = SimMIM(Oracle(), mean=mean, std=std)
    normalised = (torch.tensor(colour) - torch.tensor(mean)) / torch.tensor(std)
    model.head.weight.data.zero_()
    model.head.bias.data = normalised.repeat_interleave(16**2)
    return model


def test_colours_are_right():
    """Predictions beyond white are clipped; visible pixels are the photograph's to the bit."""
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    mask = random_mask(2, (2, 3), 0.5, seed=1)
    hidden = mask.mask.repeat_interleave(16, 1).repeat_interleave(16, 2)
    original, masked, completed = reconstruct(
        oracle_of([0.2, 0.6, 1.3]), images, mask, choose_display(PretrainConfig())
    )
    assert torch.equal((original * 255).round().to(torch.uint8), images)
    for b in range(2):
        assert torch.equal(masked[b][:, ~hidden[b]], original[b][:, ~hidden[b]])
        assert (masked[b][:, hidden[b]] == 0.5).all()
        assert torch.equal(completed[b][:, ~hidden[b]], original[b][:, ~hidden[b]])
        expected = torch.tensor([0.2, 0.6, 1.0])[:, None].expand(3, int(hidden[b].sum()))
        torch.testing.assert_close(completed[b][:, hidden[b]], expected)


def test_picture_shows_the_three_columns(tmp_path):
    colours = ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])
    columns = [torch.tensor(c)[None, :, None, None].expand(2, 3, *SIZE) for c in colours]
    reconstruction_picture(columns, tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    for column, colour in enumerate(colours):
        for row in (0.35, 0.8):
            x = round(width * (column + 0.5) / 3)
            assert pixels[round(height * row), x].tolist() == [round(255 * c) for c in colour]


def test_gray_images_are_drawn_gray(tmp_path):
    columns = [torch.full((1, 1, *SIZE), 0.25)] * 3
    reconstruction_picture(columns, tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    middle = pixels[pixels.shape[0] * 2 // 3, pixels.shape[1] // 2]
    assert len(set(middle.tolist())) == 1


def test_loss_curve(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv", 0)
    metrics.write(update=0, epoch=0, split="val", loss=1.0)
    metrics.write(update=5, epoch=0, split="train", loss=0.8)
    metrics.close()
    loss_curve(tmp_path / "metrics.csv", tmp_path / "curve.png", baseline=0.6)
    assert Image.open(tmp_path / "curve.png").size[0] > 400


def test_class_names_are_drawn_as_plain_text(tmp_path, monkeypatch):
    """What is mathematics to matplotlib, bytes that are no text, and names of two lines."""
    drawn = []
    genuine = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda f, *a, **k: (drawn.append(f), genuine(f, *a, **k))
    )
    for names, texts in (
        (["$\\frac{$", "a_b^c$x$"], ["$\\frac{$", "a_b^c$x$"]),
        (["\udcff\udce9", "two\nlines"], ["\\udcff\\udce9", "two\\nlines"]),
    ):
        confusion_picture(np.eye(2, dtype=int), names, tmp_path / "a.png")
        axis = drawn[-1].axes[0]
        for label in (axis.get_xticklabels(), axis.get_yticklabels()):
            assert [text.get_text() for text in label] == texts
            assert not any(text.get_parse_math() for text in label)
    confusion_picture(np.eye(2, dtype=int), ["long " * 99, "b"], tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] < 800


@pytest.mark.filterwarnings("error::UserWarning")
def test_names_that_the_font_cannot_draw_are_numbered(tmp_path, capsys):
    names = ["\u732b", "\u72ac", "caf\u00e9", "\u043a\u043e\u0442"]
    confusion_picture(np.eye(4, dtype=int), names, tmp_path / "a.png")
    said = capsys.readouterr().err
    assert "class 0 is \u732b, class 1 is \u72ac\n" in said and "caf" not in said
