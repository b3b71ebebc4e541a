"""The presets against what the published code does, which was run once to write the numbers down.

``published_recipes.json`` holds, for smaller models of the same kinds and 40 epochs of 5 updates of 512
images: the learning rate before given updates, for the parameters with the smallest and the largest
share of it; and of each parameter its weight decay, its share of the learning rate, and deviation,
largest magnitude and mean of its first weights. From microsoft/SimMIM (ViT, Swin),
microsoft/Swin-Transformer (SwinV2) and facebookresearch/mae, with timm 0.4.12.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from simmim.data.order import Order
from simmim.models.build import build_model
from simmim.models.classifier import Classifier, start
from simmim.presets import FINETUNE_PRESETS, PRESETS
from simmim.training.fitting import Fitting
from simmim.training.optimizer import adamw, parameter_groups

RECIPES = json.loads(Path(__file__).with_name("published_recipes.json").read_text())
#: makes the encoders as small as those of the numbers
SMALL_VIT = {"embed_dim": 96, "depth": 3, "num_heads": 4}
SMALL_SWIN = {"embed_dim": 32, "depths": "1,2,2,1", "num_heads": "1,2,4,8"}
SMALL = {
    "vit-b": SMALL_VIT,
    "swin-b": SMALL_SWIN,
    "swinv2-b": SMALL_SWIN,
    "mae-vit-b": SMALL_VIT,
}
EPOCHS, UPDATES = 40, 5
CLASSES = 1000


def config_of(recipe: str):
    """The preset, of a smaller model and a shorter run."""
    command, preset = recipe.split()
    config = (PRESETS if command == "pretrain" else FINETUNE_PRESETS)[preset]
    changes = {
        "encoder_args": {**config.encoder_args, **SMALL[preset]},
        "epochs": EPOCHS,
        "warmup_epochs": RECIPES[recipe]["warmup_epochs"],
        "batch_size": 512,
        "accumulate": 1,
    }
    if preset == "mae-vit-b":
        changes["img_size"] = 96
        if command == "pretrain":
            changes |= {"decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4}
        else:
            # a floor that does not grow with the batch
            changes["min_lr"] = 2 * config.min_lr
    if command == "finetune":
        changes |= {"encoder": PRESETS[preset].encoder, "channels": 3}
    return dataclasses.replace(config, **changes)


def model_of(recipe: str):
    torch.manual_seed(0)
    config = config_of(recipe)
    if recipe.startswith("pretrain"):
        return build_model(config)
    encoder = start(config, None, config.drop_path)
    options = {"fc_norm": config.fc_norm, "head_scale": config.head_scale}
    return Classifier(encoder, CLASSES, **options)


@pytest.fixture(params=RECIPES)
def recipe(request) -> str:
    return request.param


def test_learning_rates_of_the_updates(recipe):
    config, published = config_of(recipe), RECIPES[recipe]
    order = Order(samples=512 * UPDATES, batch=512, accumulate=1, seed=0, epochs=EPOCHS)
    for update, expected in published["rates"].items():
        run = SimpleNamespace(config=config, order=order, update=int(update))
        rates = [Fitting.learning_rate(run, share) for share in published["shares"]]
        assert rates == pytest.approx(expected, rel=1e-9), update


def test_decay_and_share_of_every_parameter(recipe):
    config, model = config_of(recipe), model_of(recipe)
    groups = parameter_groups(
        model, config.weight_decay, getattr(config, "layer_decay", 1.0), config.also_decay
    )
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: [group["weight_decay"], group["lr_scale"]]
        for group in groups
        for p in group["params"]
    }
    trained = {n: v[:2] for n, v in RECIPES[recipe]["parameters"].items() if v[0] is not None}
    assert found.keys() == trained.keys()
    for name, expected in trained.items():
        assert found[name] == pytest.approx(expected, rel=1e-3), name
    optimizer = adamw(groups, config.betas)
    assert list(optimizer.param_groups[0]["betas"]) == RECIPES[recipe]["betas"]
    assert config.clip == RECIPES[recipe]["clip"]


def test_first_weights(recipe):
    """Moments of fine-tuned encoders are those of the pre-trained ones: only the head is new there."""
    model, published = model_of(recipe), RECIPES[recipe]["parameters"]
    for name, parameter in model.named_parameters():
        if name not in published or (recipe.startswith("finetune") and "encoder." in name):
            continue
        deviation, largest, mean = published[name][2:]
        values = parameter.detach().double()
        count = values.numel()
        # deviations of the sampled moments, of theirs and of ours
        noise = 5 * math.sqrt(2 / count)
        found = values.std(correction=0).item()
        assert found == pytest.approx(deviation, rel=noise, abs=1e-9), name
        assert values.mean().item() == pytest.approx(mean, abs=noise * deviation + 1e-4 * abs(mean))
        if deviation == 0:
            assert values.abs().max().item() == pytest.approx(largest, rel=1e-3), name
        elif count > 1000 and largest < 2 * deviation:
            # cut at one deviation, or uniform
            assert values.abs().max().item() == pytest.approx(largest, rel=0.01), name


def test_drop_path_grows_linearly(recipe):
    blocks = model_of(recipe).encoder.blocks()
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx(RECIPES[recipe]["drop_path"], abs=1e-3)


def test_swins_weights_have_no_outliers():
    """``trunc_normal_`` at a hundred deviations leaves some there, in float32."""
    for seed in range(3):
        torch.manual_seed(seed)
        model = build_model(config_of("pretrain swin-b"))
        largest = max(
            p.abs().max().item() for n, p in model.named_parameters() if "attn.qkv.w" in n
        )
        assert largest < 0.2
