"""Fine-tuning and probing at another image size or window than pre-training."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from timm import layers

from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.models.build import build_model
from simmim.models.classifier import completed, start
from simmim.presets import METHODS
from simmim.storage import checkpoint

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": "1,2", "num_heads": "2,4"}
PRETRAINED = {
    "vit": PretrainConfig(encoder="vit_tiny_patch16_224", encoder_args=VIT, img_size=32),
    "beit": PretrainConfig(encoder="simmim_vit_base", encoder_args=VIT, img_size=32),
    "swin": PretrainConfig(
        encoder="swin_tiny_patch4_window7_224",
        encoder_args={**SWIN, "window_size": 4},
        img_size=32,
        mask_unit=8,
    ),
    "swinv2": PretrainConfig(
        encoder="swinv2_tiny_window8_256",
        encoder_args={**SWIN, "window_size": 4},
        img_size=32,
        mask_unit=8,
    ),
    "cnn": PretrainConfig(encoder="cnn", encoder_args={"widths": "4,4,4"}, img_size=32),
}
PRETRAINED["mae"] = dataclasses.replace(
    METHODS["mae"], encoder="vit_tiny_patch16_224", encoder_args=VIT, img_size=32, mask_unit=8
)
#: half of what its images have reaches the encoder
PRETRAINED["mae swin"] = dataclasses.replace(
    METHODS["mae"],
    encoder="swin_tiny_patch4_window7_224",
    encoder_args={**SWIN, "window_size": 4},
    img_size=32,
    mask_unit=8,
    mask="uniform",
)


def saved(kind: str, tmp_path):
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(PRETRAINED[kind], decoder_width=32, decoder_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    path = tmp_path / "ours.safetensors"
    checkpoint.save_model(path, PRETRAINED[kind].to_json(), model.state_dict())
    return path, model.encoder.state_dict()


def started(path, **changes):
    return start(*completed(FinetuneConfig(checkpoint=path, **changes)))


@pytest.mark.parametrize("kind", PRETRAINED)
def test_encoders_of_another_size(kind, tmp_path):
    path, before = saved(kind, tmp_path)
    for size in (None, 64, (32, 64)):
        args = {"pretrained_window_sizes": "4,4", "window_size": 8} if kind == "swinv2" else {}
        encoder = started(path, img_size=size, encoder_args=args if size == 64 else {})
        after = encoder.state_dict()
        assert after.keys() == before.keys()
        for name, value in after.items():
            table = name.endswith(("relative_position_bias_table", "pos_embed"))
            assert table or torch.equal(value, before[name]), name
            assert value.isfinite().all()
            if table and size is None and kind != "mae swin":
                assert torch.equal(value, before[name])
    # of 4x4 places, bicubic as timm does it
    if kind == "mae":
        own = before["backbone.pos_embed"]
        expected = layers.resample_abs_pos_embed(own, (4, 8), (4, 4), num_prefix_tokens=1)
        assert torch.equal(after["backbone.pos_embed"], expected)


def test_a_shared_table_becomes_one_of_each_block(tmp_path):
    path, before = saved("beit", tmp_path)
    args = {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}
    shared = before["backbone.rel_pos_bias.relative_position_bias_table"]
    after = started(path, encoder_args=args).state_dict()
    assert not any("rel_pos_bias.rel" in name for name in after)
    for block in range(2):
        assert torch.equal(
            after[f"backbone.blocks.{block}.attn.relative_position_bias_table"], shared
        )
    larger = started(path, encoder_args=args, img_size=64).state_dict()
    tables = [larger[f"backbone.blocks.{n}.attn.relative_position_bias_table"] for n in range(2)]
    assert torch.equal(*tables) and len(tables[0]) == 15 * 15 + 3


def test_windows_of_another_size(tmp_path):
    path, before = saved("swin", tmp_path)
    after = started(path, img_size=56, encoder_args={"window_size": 7}).state_dict()
    name = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    assert (len(before[name]), len(after[name])) == (7 * 7, 13 * 13)
    # offset zero stays what it was
    assert torch.allclose(after[name][84], before[name][24], atol=1e-6)


def test_other_weights_than_tables_are_refused(tmp_path):
    path, _ = saved("vit", tmp_path)
    with pytest.raises(
        UserError, match=r"missing backbone\.blocks\.2.*leave out what weights show"
    ):
        started(path, encoder_args={"depth": 3})
