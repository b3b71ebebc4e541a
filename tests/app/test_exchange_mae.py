"""MAE with its decoder in facebookresearch/mae's files and in transformers' ViTMAE: in and out."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import torch

from simmim.config.pretrain import PretrainConfig
from simmim.evaluation.reconstruct import load_model
from simmim.models.build import build_masking, build_model
from simmim.presets import METHODS
from simmim.storage import checkpoint
from tests.budget import assert_within_budget

from .exchange_models import ENCODERS, SIZE, SWIN, arguments_of, run

NAME, ARGUMENTS = ENCODERS["vit"]
#: of facebookresearch/mae's own model of these sizes
NAMES = {
    "cls_token": (1, 1, 16),
    "pos_embed": (1, 17, 16),
    "patch_embed.proj.weight": (16, 3, 8, 8),
    "patch_embed.proj.bias": (16,),
    "blocks.1.attn.qkv.weight": (48, 16),
    "blocks.1.mlp.fc1.bias": (64,),
    "norm.weight": (16,),
    "decoder_embed.weight": (24, 16),
    "mask_token": (1, 1, 24),
    "decoder_pos_embed": (1, 17, 24),
    "decoder_blocks.0.norm1.weight": (24,),
    "decoder_blocks.1.attn.qkv.bias": (72,),
    "decoder_blocks.1.attn.proj.weight": (24, 24),
    "decoder_blocks.1.mlp.fc2.weight": (24, 96),
    "decoder_norm.bias": (24,),
    "decoder_pred.weight": (192, 24),
    "decoder_pred.bias": (192,),
}


def config_of(**changes) -> PretrainConfig:
    settings = {
        **{"encoder": NAME, "encoder_args": ARGUMENTS, "img_size": SIZE, "mask_unit": 8},
        **{"decoder_width": 24, "decoder_depth": 2, "decoder_heads": 2, **changes},
    }
    return dataclasses.replace(METHODS["mae"], **settings)


def saved(tmp_path, config):
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    path = tmp_path / "ours.safetensors"
    checkpoint.save_model(path, config.to_json(), model.state_dict())
    return model.eval(), path


def inputs(config):
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    return images, build_masking(config)(torch.arange(2), seed=1)


def imported(capsys, tmp_path, source, *arguments):
    """The model that ``simmim import`` makes of a file, its settings, and what was printed."""
    back = tmp_path / "back.safetensors"
    encoder = arguments if "--encoder" in arguments else [*arguments_of("vit"), *arguments]
    command = ("import", "--source", source, "--out", back, "--overwrite", *encoder)
    capsys.readouterr()
    status, out, err = run(capsys, *command)
    assert (status, err) == (0, "")
    return *load_model(back), out


def assert_same_loss(model, other, config):
    images, mask = inputs(config)
    with torch.no_grad():
        assert torch.equal(model(images, mask), other(images, mask))


@pytest.mark.parametrize("target_norm", ["patch", "none"])
def test_transformers_gives_the_same_loss(target_norm, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = config_of(target_norm=target_norm)
    model, ours = saved(tmp_path, config)
    folder = tmp_path / "theirs"
    command = ("export", "--checkpoint", ours, "--project", "transformers", "--out", folder)
    assert run(capsys, *command)[0] == 0
    theirs, told = transformers.ViTMAEForPreTraining.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, mask = inputs(config)
    # the patches with the least noise are kept
    noise = mask.mask.flatten(1).double() + 0.5 * torch.rand(2, 16)

    def loss(dtype):
        mean, std = (v.to(dtype)[:, None, None] for v in (model.mean, model.std))
        pixels = (images.to(dtype) / 255 - mean) / std
        with torch.no_grad():
            return theirs.eval().to(dtype)(pixels, noise=noise).loss

    with torch.no_grad():
        assert_within_budget(model(images, mask), loss(torch.float32), loss(torch.float64))
    # as we wrote it, as transformers writes it, and under the names that it has in memory
    theirs.float().save_pretrained(tmp_path / "again")
    torch.save(theirs.state_dict(), tmp_path / "again" / "memory.pt")
    for source in (folder, tmp_path / "again", tmp_path / "again" / "memory.pt"):
        back, settings, printed = imported(capsys, tmp_path, source)
        assert "tensors of transformers" in printed
        assert_same_loss(model, back, config)
        assert (settings.decoder_heads, settings.target_norm) == (2, target_norm)


def test_there_and_back_to_the_published_code(tmp_path, capsys):
    config = config_of()
    model, ours = saved(tmp_path, config)
    theirs = tmp_path / "theirs.pth"
    command = ("export", "--checkpoint", ours, "--project", "mae", "--out", theirs)
    status, out, _ = run(capsys, *command)
    assert status == 0 and "tensors for mae" in out
    state = torch.load(theirs)["model"]
    assert {name: tuple(state[name].shape) for name in NAMES} == NAMES
    assert len(state) == 2 + 2 + 2 * 12 + 2 + 2 + 2 + 2 * 12 + 2 + 2
    # their head's rows are (dy, dx, channel)
    rows = model.head.bias.view(3, 8, 8).permute(1, 2, 0).flatten()
    assert torch.equal(state["decoder_pred.bias"], rows)
    back, settings, printed = imported(capsys, tmp_path, theirs, "--decoder-heads", 2)
    assert (
        "tensors of mae" in printed
        and "2 heads (--decoder-heads), --target-norm patch as pub" in printed
    )
    assert_same_loss(model, back, config)
    assert (settings.method, settings.mask_ratio, settings.loss) == ("mae", 0.75, "mse")


def test_the_command_line_in_their_file_tells_the_target(tmp_path, capsys):
    _, ours = saved(tmp_path, config_of(decoder_heads=16, decoder_width=64))
    theirs = tmp_path / "theirs.pth"
    run(capsys, "export", "--checkpoint", ours, "--project", "mae", "--out", theirs)
    arguments = argparse.Namespace(norm_pix_loss=False, mask_ratio=0.6)
    torch.save({**torch.load(theirs), "args": arguments}, theirs)
    _, settings, printed = imported(capsys, tmp_path, theirs)
    assert (settings.target_norm, settings.mask_ratio) == ("none", 0.6)
    assert "16 heads (--decoder-heads), --target-norm none as its command line says" in printed


def test_their_files_of_encoders_alone(tmp_path, capsys):
    """As mae_pretrain_vit_base.pth, whether or not the project is named."""
    model, ours = saved(tmp_path, config_of())
    theirs = tmp_path / "theirs.pth"
    run(capsys, "export", "--checkpoint", ours, "--project", "mae", "--out", theirs)
    state = torch.load(theirs)["model"]
    decoder = ("decoder", "mask_token")
    torch.save({"model": {k: v for k, v in state.items() if not k.startswith(decoder)}}, theirs)
    for named in ((), ("--project", "mae"), ("--project", "mae", "--encoder-only")):
        back, settings, printed = imported(capsys, tmp_path, theirs, *named)
        assert "tensors of timm" in printed and settings.method == "simmim"
        want = model.encoder.backbone.state_dict()
        got = back.encoder.backbone.state_dict()
        assert all(torch.equal(got[name], value) for name, value in want.items())


def test_another_size_and_the_encoder_alone(tmp_path, capsys):
    model, ours = saved(tmp_path, config_of(decoder_heads=16, decoder_width=64))
    theirs = tmp_path / "theirs.pth"
    run(capsys, "export", "--checkpoint", ours, "--project", "mae", "--out", theirs)
    pairs = [str(part) for pair in ARGUMENTS.items() for part in pair]
    larger = ("--encoder", NAME, "--img-size", 48, "--encoder-args", *pairs)
    back, _, printed = imported(capsys, tmp_path, theirs, *larger)
    assert "interpolated 1 position tables" in printed
    assert back.decoder_pos_embed.shape == (1, 37, 64)
    alone, settings, printed = imported(capsys, tmp_path, theirs, "--encoder-only")
    assert settings.method == "simmim" and "decoder_blocks (24 tensors)" in printed
    state = alone.encoder.backbone.state_dict()
    for name, value in model.encoder.backbone.state_dict().items():
        assert torch.equal(state[name], value), name


REFUSED = {
    "swin for mae": ({"swin": True}, "mae", "has a ViT with MAE's decoder"),
    "swin for transformers": ({"swin": True}, "transformers", "has a ViT with MAE's decoder"),
    "l1": ({"loss": "l1"}, "mae", "--loss l1"),
    "registers": (
        {"encoder_args": {**ARGUMENTS, "reg_tokens": 2}},
        "mae",
        "cannot be what vit_tiny_patch16_224 is",
    ),
    "microsoft": ({}, "microsoft", "microsoft has no masked image model of the family vit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_others_cannot_be_is_refused(case, tmp_path, capsys):
    changes, project, words = REFUSED[case]
    if changes.get("swin"):
        changes = {"encoder": ENCODERS["swin"][0], "encoder_args": SWIN, "mask": "uniform"}
    _, ours = saved(tmp_path, config_of(**changes))
    command = ("export", "--checkpoint", ours, "--project", project, "--out", tmp_path / "x.pth")
    status, _, err = run(capsys, *command)
    assert status == 2 and words in err


def test_simmim_is_no_mae(tmp_path, capsys):
    config = dataclasses.replace(config_of(), method="simmim")
    _, ours = saved(tmp_path, config)
    command = ("export", "--checkpoint", ours, "--project", "mae", "--out", tmp_path / "x.pth")
    status, _, err = run(capsys, *command)
    assert status == 2 and "(--method mae)" in err


def test_our_own_file_of_swin(tmp_path, capsys):
    config = config_of(encoder=ENCODERS["swin"][0], encoder_args=SWIN, mask="uniform")
    model, ours = saved(tmp_path, config)
    back, settings, _ = imported(capsys, tmp_path, ours, *arguments_of("swin"))
    assert settings.decoder_heads == 2
    assert_same_loss(model, back, config)
