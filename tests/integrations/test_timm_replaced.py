"""A part that somebody has replaced since the encoder was made is never left out without a word."""

import copy

import pytest
import torch
from torch import nn

import simmim_kernels as sk

timm = pytest.importorskip("timm")

from simmim_kernels.integrations.timm import MaskedEncoder  # noqa: E402

MODELS = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 24, "num_heads": 3, "depth": 2}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
}


def build(name):
    timms, options = MODELS[name]
    return timm.create_model(timms, num_classes=0, **options)


def assign(encoder, name):
    encoder.backbone = build(name)


def register(encoder, name):
    encoder.register_module("backbone", build(name))


def stage(encoder, name):
    part = "patch_embed" if name == "vit" else "stem"

    class Louder(type(getattr(encoder.backbone, part))):
        def forward(self, x):
            return 2 * super().forward(x)

    other = copy.deepcopy(getattr(build(name), part))
    other.__class__ = Louder
    setattr(encoder.backbone, part, other)


def features(encoder, name):
    encoder.backbone.forward_features = lambda x: torch.zeros(2, 4, 24)


def undo(encoder, name):
    encoder.undo()


CHANGES = [(change, name) for change in (assign, register, stage) for name in MODELS]
CHANGES += [(features, "vit"), (undo, "convnext")]


@pytest.mark.parametrize(("change", "name"), CHANGES)
def test_what_the_encoder_would_not_run_is_an_error(change, name):
    encoder = MaskedEncoder(build(name), img_size=(64, 64))
    images, mask = torch.rand(2, 3, 64, 64), sk.random_mask(2, (2, 2), 0.5, seed=0)
    encoder(images, mask)
    change(encoder, name)
    calls = [encoder, encoder.hidden_tokens] + [encoder.visible_tokens] * (name == "vit")
    for call in calls:
        with pytest.raises(RuntimeError, match=r"was replaced or undone.*new MaskedEncoder"):
            call(images, mask)


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_layers_within_the_stage_may_change(name):
    encoder = MaskedEncoder(build(name), img_size=(64, 64))
    images, mask = torch.rand(2, 3, 64, 64), sk.random_mask(2, (2, 2), 0.5, seed=0)
    before = encoder(images, mask)
    stage = encoder.backbone.patch_embed if name == "vit" else encoder.backbone.stem
    nn.init.zeros_(next(m for m in stage.modules() if isinstance(m, nn.Conv2d)).weight)
    assert not torch.allclose(encoder(images, mask), before)
