"""Checkpoints of other projects: their names and shapes in, ours out, and the way back."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import simmim_kernels as sk
from simmim.config.pretrain import PretrainConfig
from simmim.evaluation.reconstruct import load_model
from simmim.models.build import build_model
from simmim.models.simmim import IMAGENET_MEAN, IMAGENET_STD
from simmim.storage import checkpoint
from simmim_kernels.integrations import checkpoints
from tests.app.exchange_models import (
    ENCODERS,
    SIZE,
    arguments_of,
    config_of,
    images_and_mask,
    model_of,
    run,
    saved,
)
from tests.budget import assert_within_budget

PAIRS = [
    *(("microsoft", family) for family in ("beit", "swin", "swinv2")),
    ("mmpretrain", "swin"),
    *(("transformers", family) for family in ("vit", "swin", "swinv2")),
    *(("timm", family) for family in ENCODERS),
]
# Names and shapes as each project's own code gives them for the models above, {} a number: from
# models/vision_transformer.py, swin_transformer.py and swin_transformer_v2.py of microsoft, and
# swin_transformer.py and simmim_neck.py of mmpretrain.
NAMES = {
    ("microsoft", "beit"): {
        "encoder.mask_token": (1, 1, 16),
        "encoder.cls_token": (1, 1, 16),
        "encoder.patch_embed.proj.weight": (16, 3, 8, 8),
        "encoder.rel_pos_bias.relative_position_bias_table": (52, 2),
        "encoder.blocks.1.gamma_1": (16,),
        "encoder.blocks.1.attn.q_bias": (16,),
        "encoder.blocks.1.attn.qkv.weight": (48, 16),
        "encoder.blocks.1.mlp.fc1.weight": (64, 16),
        "encoder.norm.weight": (16,),
        "decoder.0.weight": (192, 16, 1, 1),
        "decoder.0.bias": (192,),
    },
    ("microsoft", "swin"): {
        "encoder.mask_token": (1, 1, 16),
        "encoder.patch_embed.norm.weight": (16,),
        "encoder.layers.0.blocks.0.attn.relative_position_bias_table": (49, 2),
        "encoder.layers.0.blocks.0.attn.qkv.bias": (48,),
        "encoder.layers.0.downsample.reduction.weight": (32, 64),
        "encoder.layers.0.downsample.norm.weight": (64,),
        "encoder.layers.1.blocks.1.mlp.fc2.weight": (32, 128),
        "encoder.norm.weight": (32,),
        "decoder.0.weight": (192, 32, 1, 1),
    },
    ("microsoft", "swinv2"): {
        "encoder.layers.0.blocks.0.attn.logit_scale": (2, 1, 1),
        "encoder.layers.0.blocks.0.attn.cpb_mlp.0.weight": (512, 2),
        "encoder.layers.0.blocks.0.attn.cpb_mlp.2.weight": (2, 512),
        "encoder.layers.0.blocks.0.attn.q_bias": (16,),
        "encoder.layers.0.downsample.reduction.weight": (32, 64),
        "encoder.layers.0.downsample.norm.weight": (32,),
    },
    ("mmpretrain", "swin"): {
        "backbone.mask_token": (1, 1, 16),
        "backbone.patch_embed.projection.weight": (16, 3, 4, 4),
        "backbone.patch_embed.norm.weight": (16,),
        "backbone.stages.0.blocks.0.norm1.weight": (16,),
        "backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table": (49, 2),
        "backbone.stages.0.blocks.0.attn.w_msa.qkv.weight": (48, 16),
        "backbone.stages.0.blocks.0.attn.w_msa.proj.weight": (16, 16),
        "backbone.stages.0.blocks.0.ffn.layers.0.0.weight": (64, 16),
        "backbone.stages.0.blocks.0.ffn.layers.1.weight": (16, 64),
        "backbone.stages.0.downsample.norm.weight": (64,),
        "backbone.stages.0.downsample.reduction.weight": (32, 64),
        "backbone.norm1.weight": (32,),
        "neck.decoder.0.weight": (192, 32, 1, 1),
    },
}


@pytest.mark.parametrize(("project", "family"), PAIRS)
def test_there_and_back(project, family, tmp_path, capsys):
    model = model_of(family)
    ours, theirs = saved(model, family, tmp_path), tmp_path / "theirs"
    if project != "transformers":
        theirs = theirs.with_suffix(".pth" if project == "mmpretrain" else ".safetensors")
    status, out, err = run(
        capsys, "export", "--checkpoint", ours, "--project", project, "--out", theirs
    )
    assert (status, err) == (0, "")
    assert f"wrote {theirs}" in out
    back = tmp_path / "back.safetensors"
    status, out, err = run(
        capsys, "import", "--source", theirs, "--out", back, *arguments_of(family)
    )
    assert (status, err) == (0, "")
    assert f"tensors of {project}" in out
    state = load_model(back)[0].state_dict()
    for name, value in model.state_dict().items():
        if project != "timm" or name.startswith("encoder.backbone."):
            assert torch.equal(state[name], value), name
    assert ("newly initialised" in out) == (project == "timm")


@pytest.mark.parametrize(
    "positions",
    [
        {"use_shared_rel_pos_bias": True},
        {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True},
        {"use_shared_rel_pos_bias": False, "use_abs_pos_emb": True},
    ],
)
def test_microsofts_vit_without_biases_of_q_and_v(positions, tmp_path, capsys):
    """MODEL.VIT.QKV_BIAS False: no tensor is called q_bias then."""
    changes = {"qkv_bias": False, **positions}
    model = model_of("beit", **changes)
    source, out, back = (tmp_path / name for name in ("a.pth", "b.safetensors", "c.pth"))
    theirs = {
        # their encoder has our names, their head is a convolution
        name.replace("backbone.", "").replace("head.", "decoder.0."): (
            value[:, :, None, None] if name == "head.weight" else value
        )
        for name, value in model.state_dict().items()
    }
    torch.save({"model": theirs}, source)
    start = ("import", "--source", source, "--out", out, *arguments_of("beit", **changes))
    status, printed, err = run(capsys, *start)
    assert (status, err) == (0, "") and "tensors of microsoft" in printed
    status, _, err = run(
        capsys, "export", "--checkpoint", out, "--project", "microsoft", "--out", back
    )
    assert (status, err) == (0, "")
    found = torch.load(back, weights_only=True)["model"]
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[name], value) for name, value in theirs.items())


@pytest.mark.parametrize(("project", "family"), NAMES)
def test_names_and_shapes_are_the_projects_own(project, family):
    theirs = checkpoints.from_simmim(model_of(family).state_dict(), project)
    for name, shape in NAMES[project, family].items():
        assert tuple(theirs[name].shape) == shape, name
    assert checkpoints.project_of(theirs) == project


@pytest.mark.parametrize("family", ["vit", "beit", "swinv2"])
def test_encoders_of_mmpretrain(family, tmp_path, capsys):
    """Those for which mmpretrain has no SimMIM, MAE's among them, under the names of its classes."""
    model, path, out = model_of(family), tmp_path / "epoch_1.pth", tmp_path / "ours.safetensors"
    theirs = {}
    for name, value in checkpoints.from_simmim(model.state_dict(), "timm").items():
        if "downsample.reduction" in name:
            value = value.unflatten(1, (2, 2, -1)).permute(0, 3, 2, 1).flatten(1)
        for ours, named in MMPRETRAIN[family]:
            name = re.sub(ours, named, name)
        theirs[f"backbone.{name}"] = value
    theirs |= {"neck.mask_token": torch.zeros(1, 1, 8), "neck.decoder_blocks.0.ln1.bias": value}
    torch.save({"meta": {"epoch": 1}, "state_dict": theirs, "optimizer": {}}, path)
    command = ["import", "--source", path, "--out", out, *arguments_of(family)]
    status, printed, err = run(capsys, *command, "--encoder-only")
    assert (status, err) == (0, "")
    assert f"{len(theirs)} tensors of mmpretrain" in printed and "left out: neck" in printed
    found = checkpoint.load(out)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value) or not name.startswith("encoder.backbone."), name


_VIT = (
    ("patch_embed.proj", "patch_embed.projection"), (r"blocks\.(\d+)\.norm", r"layers.\1.ln"),
    (r"mlp\.fc1", "ffn.layers.0.0"), (r"mlp\.fc2", "ffn.layers.1"), (r"blocks\.", "layers."),
    (r"^norm\.", "ln1."),
)  # fmt: skip
MMPRETRAIN = {
    "vit": _VIT,
    "beit": _VIT,
    "swinv2": (
        ("patch_embed.proj", "patch_embed.projection"), ("^layers", "stages"),
        (r"\.attn\.", ".attn.w_msa."), (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"), (r"^norm\.", "norm1."),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ["vit", "swin", "swinv2"])
def test_transformers_gives_the_same_loss(family, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    model, folder = model_of(family), tmp_path / "theirs"
    ours = saved(model, family, tmp_path)
    status, *_ = run(
        capsys, "export", "--checkpoint", ours, "--project", "transformers", "--out", folder
    )
    assert status == 0
    theirs = transformers.AutoModelForMaskedImageModeling.from_pretrained(folder).eval()
    images, mask = images_and_mask()

    def loss(dtype):
        mean, std = (
            torch.tensor(v, dtype=dtype).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        side = SIZE // theirs.config.patch_size
        flat = mask.on_grid((side, side)).mask.flatten(1)
        with torch.no_grad():
            return theirs.to(dtype)((images.to(dtype) / 255 - mean) / std, flat).loss

    with torch.no_grad():
        assert_within_budget(model(images, mask), loss(torch.float32), loss(torch.float64))


@pytest.mark.parametrize("family", ENCODERS)
def test_timm_loads_what_is_exported(family, tmp_path, capsys):
    model = model_of(family)
    path = tmp_path / "timm.safetensors"
    ours = saved(model, family, tmp_path)
    run(capsys, "export", "--checkpoint", ours, "--project", "timm", "--out", path)
    fresh = build_model(config_of(family)).encoder.backbone.eval()
    timm.models.load_checkpoint(fresh, str(path), strict=True)
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(fresh.forward_features(x), model.encoder.backbone.forward_features(x))


def test_patch_merging_of_mmpretrain_is_an_unfold():
    """mmpretrain merges patches by nn.Unfold, whose columns are (channel, dy, dx)."""
    model = model_of("swin")
    theirs = checkpoints.from_simmim(model.state_dict(), "mmpretrain")
    merging = model.encoder.backbone.layers[1].downsample
    x = torch.randn(2, 6, 4, 16, dtype=torch.float64)
    prefix = "backbone.stages.0.downsample."
    norm = {p: theirs[f"{prefix}norm.{p}"].double() for p in ("weight", "bias")}
    with torch.no_grad():
        columns = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        columns = F.layer_norm(columns, (64,), **norm, eps=merging.norm.eps)
        expected = F.linear(columns, theirs[f"{prefix}reduction.weight"].double())
        got = merging.double()(x).flatten(1, 2)
    torch.testing.assert_close(got, expected)


def test_windows_that_mmpretrain_pads_otherwise(tmp_path, capsys):
    """Its attention pads a grid and then shifts it, timm's shifts first: other features."""
    model = model_of("swin", window_size=3)
    ours, theirs = saved(model, "swin", tmp_path, window_size=3), tmp_path / "theirs.pth"
    refused = "which mmpretrain and timm pad differently"
    start = ("export", "--checkpoint", ours, "--project", "mmpretrain", "--out", theirs)
    status, _, err = run(capsys, *start)
    assert status == 2 and refused in err and not theirs.exists()
    torch.save({"state_dict": checkpoints.from_simmim(model.state_dict(), "mmpretrain")}, theirs)
    start = ("import", "--source", theirs, "--out", tmp_path / "back.safetensors")
    status, _, err = run(capsys, *start, *arguments_of("swin", window_size=3))
    assert status == 2 and refused in err


def test_heads_of_the_other_order(tmp_path, capsys):
    """A head with rows (dy, dx, channel) predicts the same patches once its rows are moved."""
    model = model_of("vit")
    ours, theirs, back = (
        saved(model, "vit", tmp_path),
        tmp_path / "yxc.safetensors",
        tmp_path / "b.safetensors",
    )
    order = ("--head-order", "yxc")
    run(capsys, "export", "--checkpoint", ours, "--project", "simmim", "--out", theirs, *order)
    head = nn.Linear(16, 192)
    state = checkpoint.load(theirs)["model"]
    head.load_state_dict({n: state[f"head.{n}"] for n in ("weight", "bias")})
    tokens, mask = torch.randn(2, 16, 16), images_and_mask()[1]
    with torch.no_grad():
        target = torch.randn(2, 3, SIZE, SIZE)
        a = sk.masked_l1(head(tokens), target, mask, order="yxc")
        b = sk.masked_l1(model.head(tokens), target, mask)
    torch.testing.assert_close(a, b)
    status, *_ = run(
        capsys, "import", "--source", theirs, "--out", back, *order, *arguments_of("vit")
    )
    assert status == 0
    assert torch.equal(checkpoint.load(back)["model"]["head.weight"], model.head.weight)


@pytest.mark.parametrize("project", ["timm", "transformers"])
def test_the_cnn_has_no_place_elsewhere(project, tmp_path, capsys):
    config = PretrainConfig(encoder="cnn", img_size=8, normalize=False)
    path = tmp_path / "cnn.safetensors"
    checkpoint.save_model(path, config.to_json(), build_model(config).state_dict())
    status, _, err = run(
        capsys, "export", "--checkpoint", path, "--project", project, "--out", tmp_path / "x.pth"
    )
    assert status == 2 and f"{project} has no model like this encoder" in err
