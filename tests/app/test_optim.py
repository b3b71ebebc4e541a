"""Learning rates and the list of parameters that do not decay."""

from __future__ import annotations

import math

import pytest
import torch

from simmim.models.build import build_model
from simmim.models.encoders import build_encoder
from simmim.presets import PRESETS
from simmim.training.optimizer import learning_rate, parameter_groups


def rate(update: int, schedule: str, **more) -> float:
    return learning_rate(
        update, updates=800, warmup=10, peak=4e-4, start=2e-6, end=4e-6, schedule=schedule, **more
    )


@pytest.mark.parametrize("schedule", ["cosine", "step", "multistep"])
def test_warm_up_is_linear(schedule):
    assert rate(0, schedule) == 2e-6
    assert rate(5, schedule) == pytest.approx((2e-6 + 4e-4) / 2)
    assert rate(10, schedule) == pytest.approx(4e-4)


def test_step_drops_once_at_seven_eighths():
    assert rate(699, "step") == 4e-4
    assert rate(700, "step") == pytest.approx(4e-5)
    assert rate(799, "step") == pytest.approx(4e-5)


def test_step_is_multistep_with_the_published_milestone():
    for update in (0, 9, 10, 699, 699.5, 700, 799):
        assert rate(update, "step") == rate(update, "multistep", milestones=[700], gamma=0.1)


@pytest.mark.parametrize("milestones", [(20, 30, 30, 47), (47, 30, 20, 30), (20, 30, 30, 47, 90)])
def test_multistep_is_the_published_one(milestones):
    """What ``MultiStepLRScheduler`` of microsoft/SimMIM sets, whose rates are late by an update."""
    published = {
        **{0: 1e-05, 1: 1e-05, 2: 0.00010899999999999999, 6: 0.000505, 10: 0.000901, 11: 0.001},
        **{
            20: 0.001,
            21: 0.0005,
            30: 0.0005,
            31: 0.000125,
            47: 0.000125,
            48: 6.25e-05,
            49: 6.25e-05,
        },
    }
    numbers = {"updates": 50, "warmup": 10, "peak": 1e-3, "start": 1e-5, "end": 1.0}
    for update, expected in published.items():
        found = learning_rate(
            max(0, update - 1), **numbers, schedule="multistep", milestones=milestones, gamma=0.5
        )
        assert found == pytest.approx(expected, rel=1e-12), update


def test_cosine_ends_at_the_smallest_rate():
    assert rate(10 + 395, "cosine") == pytest.approx((4e-4 + 4e-6) / 2)
    third = 4e-6 + (4e-4 - 4e-6) * 0.5 * (1 + math.cos(math.pi / 5))
    assert rate(10 + 158, "cosine") == pytest.approx(third)
    assert rate(800, "cosine") == pytest.approx(4e-6)


@pytest.mark.parametrize(
    ("preset", "spared"),
    [
        ("vit-b", {"mask_token", "cls_token", "relative_position_bias_table"}),
        ("swin-b", {"mask_token", "relative_position_bias_table"}),
    ],
)
def test_only_matrices_decay(preset, spared):
    with torch.device("meta"):
        model = build_model(PRESETS[preset])
    decayed, free = parameter_groups(model, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    matrices = {names[id(p)].rpartition(".")[2] for p in free["params"] if p.ndim > 1}
    assert matrices == spared


def test_position_embeddings_do_not_decay():
    import dataclasses

    config = dataclasses.replace(PRESETS["vit-b"], encoder="vit_tiny_patch16_224")
    with torch.device("meta"):
        model = build_model(config)
    names = {id(p): name for name, p in model.named_parameters()}
    free = {names[id(p)] for p in parameter_groups(model, 0.05)[1]["params"]}
    assert "encoder.backbone.pos_embed" in free


def test_register_tokens_belong_to_the_embedding_and_do_not_decay():
    encoder = build_encoder(
        "vit_tiny_patch16_224",
        img_size=(32, 32),
        mean=[0.5] * 3,
        std=[0.5] * 3,
        depth=2,
        reg_tokens=2,
    )
    depths = encoder.depths()
    assert depths["backbone.reg_token"] == depths["backbone.patch_embed.proj.weight"] == 0
    model = torch.nn.Module()
    model.encoder = encoder
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    embedding, tokens = (
        next(group for group in groups if any(p is wanted for p in group["params"]))
        for wanted in (encoder.backbone.patch_embed.proj.bias, encoder.backbone.reg_token)
    )
    assert tokens is embedding and tokens["weight_decay"] == 0
