"""Every configuration that SimMIM and MAE publish against our preset, at full size.

``published_settings.json`` holds the numbers of all files of microsoft/SimMIM's ``configs``, of those of
microsoft/Swin-Transformer's ``configs/simmim`` that differ from them, and of the command lines in
facebookresearch/mae's PRETRAIN.md and FINETUNE.md: settings, sizes of the encoder, and the learning rate
before given updates on ImageNet-1K, as the published schedulers gave it for the smallest and the largest
share. They were run once, with timm 0.4.12.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from simmim.data.order import Order
from simmim.models.build import build_model
from simmim.models.classifier import Classifier, start
from simmim.presets import FINETUNE_PRESETS, PRESETS
from simmim.training.fitting import Fitting
from simmim.training.optimizer import parameter_groups

PUBLISHED = json.loads(Path(__file__).with_name("published_settings.json").read_text())
#: ImageNet-1K
IMAGES = 1_281_167
#: what the name of a configuration says beside that of the preset
FLAGS = {
    "192": {"img_size": 192, "encoder_args": {"window_size": 6}},
    "cosine": {"schedule": "cosine"},
}


def config_of(name: str, processes: int):
    """The preset for a number of processes, whose batches together are the published one."""
    command, preset, *flags = name.split()
    config = (PRESETS if command == "pretrain" else FINETUNE_PRESETS)[preset]
    for flag in flags:
        config = dataclasses.replace(config, **FLAGS[flag])
    assert config.preset == preset
    return dataclasses.replace(config, accumulate=config.accumulate // processes)


@pytest.fixture(params=PUBLISHED)
def name(request) -> str:
    return request.param


def test_settings(name):
    config, published = config_of(name, 1), PUBLISHED[name]["settings"]
    found = {key: getattr(config, key) for key in published}
    assert found == {k: tuple(v) if isinstance(v, list) else v for k, v in published.items()}
    if "target_window" in published:
        assert config.target_norm == "window"


def test_learning_rate_of_every_update(name):
    """One process a GPU, as they were published: SimMIM's rates are late by a pass, not by an update."""
    processes = PRESETS["mae-vit-b"].accumulate if "mae" in name else 16
    processes = min(processes, config_of(name, 1).accumulate)
    config, published = config_of(name, processes), PUBLISHED[name]
    order = Order(
        samples=IMAGES,
        batch=config.batch_size,
        accumulate=config.accumulate,
        seed=0,
        epochs=config.epochs,
        world=processes,
        keep_rest=config.keep_rest,
    )
    assert order.global_batch == (2048 if "mae" not in name else 4096 if "pre" in name else 1024)
    for update, expected in published["rates"].items():
        run = SimpleNamespace(config=config, order=order, update=int(update))
        rates = [Fitting.learning_rate(run, share) for share in published["shares"]]
        assert rates == pytest.approx(expected, rel=1e-12), update


@pytest.mark.slow
def test_size_of_the_encoder_and_shares_of_its_layers(name):
    command, preset, *_ = name.split()
    config, published = config_of(name, 1), PUBLISHED[name]
    with torch.device("meta"):
        if command == "pretrain":
            model = build_model(config)
        else:
            config = dataclasses.replace(
                config,
                encoder=PRESETS[preset].encoder,
                channels=3,
            )
            model = Classifier(start(config, None, config.drop_path), 1000, fc_norm=config.fc_norm)
    sizes, blocks = published["model"], model.encoder.blocks()
    attention = [block.attn for block in blocks]
    if "window" in sizes:
        layers = model.encoder.backbone.layers
        assert [len(layer.blocks) for layer in layers] == sizes["depths"]
        assert [layer.blocks[0].attn.num_heads for layer in layers] == sizes["heads"]
        assert attention[0].window_size == (sizes["window"],) * 2
    else:
        assert len(blocks) == sizes["depth"]
        assert {block.num_heads for block in attention} == {sizes["heads"]}
    assert blocks[0].norm1.normalized_shape == (sizes["width"],)
    groups = parameter_groups(model, config.weight_decay, getattr(config, "layer_decay", 1.0))
    shares = [group["lr_scale"] for group in groups]
    assert [min(shares), max(shares)] == pytest.approx(published["shares"])
    if "pretrained_windows" in sizes:
        brought = [int(n) for n in config.encoder_args["pretrained_window_sizes"].split(",")]
        assert brought == sizes["pretrained_windows"]
