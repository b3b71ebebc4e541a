"""Runs that begin with weights of other projects, and runs that go on longer than first asked."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import timm
import torch
import transformers

from simmim.cli import main
from simmim.models.classifier import load_classifier
from simmim.storage import checkpoint

from .exchange_models import model_of, saved

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
PAIRS = [part for pair in VIT.items() for part in pair]
ENCODER = ("--encoder", "vit_tiny_patch16_224", "--encoder-args", *PAIRS)
FAST = (*("--workers", 0, "--device", "cpu", "--batch-size", 4, "--mask-unit", 8),)
LABELLED = (*("--workers", 0, "--device", "cpu", "--batch-size", 4),)
#: an update that changes nothing, so that checkpoints hold what a run began with
STILL = (*("--lr", 0, "--warmup-lr", 0, "--min-lr", 0, "--warmup-epochs", 0, "--epochs", 1),)


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def theirs(tmp_path):
    """A bare ViT of timm's for images of 32 pixels, in a file."""
    torch.manual_seed(7)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=9, **VIT)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    return model, tmp_path / "theirs.pth"


def loaded(out):
    return checkpoint.load(out / "checkpoints/last.pt", None)["model"]


def said(capsys, file) -> str:
    return next(line for line in capsys.readouterr().err.splitlines() if f"from {file}" in line)


@pytest.mark.parametrize("size", [32, 48])
def test_pretraining_begins_with_a_bare_encoder(size, photographs, tmp_path, capsys):
    model, file = theirs(tmp_path)
    start = ("pretrain", "--data", photographs, *ENCODER, *FAST, *STILL, "--img-size", size)
    assert run(*start, "--init-from", file, "--out", tmp_path / "run") == 0
    line = said(capsys, file)
    expected = len(model.state_dict()) - 2
    assert f"loaded {expected} tensors" in line
    assert "left out: head (2 tensors)" in line
    assert "newly initialised: encoder.mask_token, head.weight, head.bias" in line
    assert ("interpolated 1 position tables, grid 4x4 to grid 6x6" in line) == (size == 48)
    found = loaded(tmp_path / "run")
    for name, value in model.state_dict().items():
        if not name.startswith("head.") and (size == 32 or name != "pos_embed"):
            assert torch.equal(found[f"encoder.backbone.{name}"], value), name
    # what is new is that of the run's own seed
    assert run(*start, "--out", tmp_path / "random") == 0
    random = loaded(tmp_path / "random")
    for name in ("encoder.mask_token", "head.weight"):
        assert torch.equal(found[name], random[name])
    if size == 48:
        assert found["encoder.backbone.pos_embed"].shape == (1, 37, 16)


def test_a_whole_model_brings_its_head(photographs, tmp_path, capsys):
    """transformers' own class in a folder, whose heads and epsilon the encoder takes over."""
    settings = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        image_size=32, patch_size=8, encoder_stride=8,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.ViTForMaskedImageModeling(settings)
    model.save_pretrained(tmp_path / "folder")
    arguments = ("--encoder", "vit_tiny_patch16_224", "--encoder-args",
                 *("patch_size", 8, "embed_dim", 24, "depth", 2))  # fmt: skip
    start = ("pretrain", "--data", photographs, *arguments, *FAST, *STILL, "--img-size", 32)
    out = tmp_path / "run"
    assert run(*start, "--init-from", tmp_path / "folder", "--out", out) == 0
    line = said(capsys, tmp_path / "folder")
    assert "newly initialised" not in line
    assert "from its configuration: --encoder-args" in line and "num_heads 4" in line
    found = loaded(out)
    assert torch.equal(found["head.bias"], model.decoder[0].bias)
    assert torch.equal(
        found["encoder.mask_token"].flatten(), model.vit.embeddings.mask_token.flatten()
    )
    (tmp_path / "folder").rename(tmp_path / "away")
    assert run(*start, "--init-from", tmp_path / "folder", "--out", out, "--resume") == 2
    assert "a run that is resumed has its weights" in capsys.readouterr().err
    # the checkpoint is whole: it is resumed without the file, and reconstructs
    more = ("--resume", "--epochs", 2, "--encoder-args",
            *("patch_size", 8, "embed_dim", 24, "depth", 2, "num_heads", 4, "norm_eps", 1e-12))  # fmt: skip
    assert run(*start, "--out", out, *more) == 0
    picture = ("--data", photographs, "--out", tmp_path / "a.png")
    assert run("reconstruct", "--checkpoint", out / "checkpoints/last.pt", *picture) == 0


def test_fine_tuning_begins_with_a_bare_encoder(labelled, tmp_path, capsys):
    model, file = theirs(tmp_path)
    out = tmp_path / "run"
    start = ("finetune", "--data", labelled, *ENCODER, *LABELLED, *STILL, "--img-size", 32)
    assert run(*start, "--init-from", file, "--out", out) == 0
    assert "left out: head (2 tensors)" in said(capsys, file)
    found = load_classifier(out / "checkpoints/last.pt")[0].encoder.backbone.state_dict()
    assert all(torch.equal(found[n], v) for n, v in model.state_dict().items() if n in found)
    assert len(found) == len(model.state_dict()) - 2


@pytest.mark.parametrize("more", [(), ("--fc-norm",)])
def test_fine_tuning_begins_with_a_classifier_of_another_norm(more, labelled, tmp_path, capsys):
    """The mean, then fc_norm, as in microsoft's fine-tuned ViTs; its encoder has no final norm."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=9, global_pool="avg", **VIT
    )
    file, out = tmp_path / "theirs.pth", tmp_path / "run"
    torch.save({"model": model.state_dict()}, file)
    start = ("finetune", "--data", labelled, *ENCODER, *LABELLED, *STILL, "--img-size", 32)
    assert run(*start, "--init-from", file, "--out", out, *more) == 0
    assert "left out: its head and fc_norm" in said(capsys, file)
    found = load_classifier(out / "checkpoints/last.pt")[0].encoder.backbone.state_dict()
    name = "blocks.1.mlp.fc2.weight"
    assert torch.equal(found[name], model.state_dict()[name])
    assert ("norm.weight" in found) == (not more)


def test_methods_take_each_others_encoders(photographs, tmp_path, capsys):
    """Of a file of the same method the decoder too."""
    start = ("pretrain", "--data", photographs, *ENCODER, *FAST, *STILL, "--img-size", 32)
    small = ("--method", "mae", "--decoder-width", 32, "--decoder-depth", 1, "--decoder-heads", 4)
    assert run(*start, *small, "--out", tmp_path / "mae") == 0
    file = tmp_path / "mae/checkpoints/last.pt"
    mae = loaded(tmp_path / "mae")
    capsys.readouterr()
    assert run(*start, *small, "--seed", 5, "--init-from", file, "--out", tmp_path / "again") == 0
    assert f"loaded {len(mae)} tensors" in said(capsys, file)
    again = loaded(tmp_path / "again")
    assert all(torch.equal(again[name], value) for name, value in mae.items())
    assert run(*start, "--init-from", file, "--out", tmp_path / "simmim") == 0
    assert "newly initialised" in said(capsys, file)
    found = loaded(tmp_path / "simmim")
    names = [name for name in mae if name.startswith("encoder.backbone.")]
    assert all(torch.equal(found[name], mae[name]) for name in names) and len(names) > 20
    other = ("--method", "mae", "--decoder-width", 64, "--decoder-depth", 1, "--decoder-heads", 4)
    assert run(*start, *other, "--init-from", file, "--out", tmp_path / "other") == 0
    assert "newly initialised" in said(capsys, file)


def test_a_checkpoint_of_ours_of_another_size(photographs, tmp_path, capsys):
    ours = saved(model_of("vit"), "vit", tmp_path)
    start = ("pretrain", "--data", photographs, *ENCODER, *FAST, *STILL, "--img-size", 64)
    assert run(*start, "--init-from", ours, "--out", tmp_path / "run") == 0
    line = said(capsys, ours)
    assert "interpolated 1 position tables" in line and "newly initialised" not in line


@pytest.mark.slow
def test_mistakes_cost_one_line(photographs, labelled, pretrained, tmp_path, capsys):
    _, file = theirs(tmp_path)
    (tmp_path / "text.pth").write_text("no tensors")
    swin = ("--encoder", "swin_tiny_patch4_window7_224", "--img-size", 224)
    cases = {
        "no such file": ("pretrain", *ENCODER, "--init-from", tmp_path / "no.pth"),
        "text.pth can't be read": ("pretrain", *ENCODER, "--init-from", tmp_path / "text.pth"),
        "theirs.pth is no swin_tiny_patch4_window7_224": ("pretrain", *swin, "--init-from", file),
        "is none of timm's": ("pretrain", "--encoder", "cnn", "--init-from", file),
        "both bring an encoder: give one of them": (
            *("finetune", "--checkpoint", pretrained, "--init-from", file),
        ),
        "say what to start from": ("finetune", "--init-from", file),
    }  # fmt: skip
    for words, arguments in cases.items():
        capsys.readouterr()
        data = labelled if arguments[0] == "finetune" else photographs
        size = (
            () if "--img-size" in arguments or "--checkpoint" in arguments else ("--img-size", 32)
        )
        assert run(*arguments, *size, "--data", data, "--out", tmp_path / "run", *LABELLED) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert words in error, error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_killed_before_the_first_checkpoint(command, photographs, labelled, tmp_path, start_simmim):
    """Nothing but config.json tells then what the run was to begin with."""
    model, file = theirs(tmp_path)
    data, more = {"pretrain": (photographs, FAST), "finetune": (labelled, LABELLED)}[command]
    out = tmp_path / "run"
    start = (command, "--data", data, *ENCODER, *more, *STILL[:-2], "--img-size", 32, "--out", out)
    start += ("--init-from", file, "--epochs", 10**5)
    process = start_simmim(*start, stderr=subprocess.PIPE, text=True)
    assert any("images: read by" in line for line in process.stderr)
    process.kill()
    process.wait()
    assert not list(out.glob("checkpoints/*"))
    assert run(command, "--out", out, "--resume", "--epochs", 1) == 0
    name = "patch_embed.proj.weight"
    assert torch.equal(loaded(out)[f"encoder.backbone.{name}"], model.state_dict()[name])


@pytest.mark.slow
def test_a_fine_tuning_goes_on_without_the_checkpoint_it_began_with(
    labelled, pretrained, tmp_path, monkeypatch, capsys
):
    """Named from another folder, then moved: the run has weights of its own."""
    monkeypatch.chdir(tmp_path)
    out, began = tmp_path / "run", pretrained.relative_to(tmp_path)
    start = ("finetune", "--data", labelled, "--out", out, *LABELLED, *STILL, "--checkpoint", began)
    assert run(*start) == 0
    pretrained.parents[1].rename(tmp_path / "moved")
    assert run(*start, "--resume", "--epochs", 2) == 2
    assert "has its weights: leave out --checkpoint" in capsys.readouterr().err
    monkeypatch.chdir("/")
    assert run("finetune", "--out", out, "--resume", "--epochs", 2) == 0
    assert json.loads((out / "config.json").read_text())["checkpoint"] == str(began)
    other = ("--checkpoint", tmp_path / "moved/checkpoints/last.pt")
    assert run("finetune", "--out", out, "--resume", "--epochs", 3, *other) == 2
    assert f"--checkpoint {began}, not" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_run_may_name_its_preset(photographs, labelled, pretrained, tmp_path, capsys):
    """What is not given is that of the run all the same."""
    decoder = ("--decoder-width", 32, "--decoder-heads", 4, "--mask-unit", 8)
    runs = {
        "pretrain": ("--data", photographs, *ENCODER, "--img-size", 32, *decoder),
        "finetune": ("--data", labelled, "--checkpoint", pretrained),
    }
    for command, arguments in runs.items():
        start = (command, "--out", tmp_path / command, "--preset")
        assert run(*start, "mae-vit-b", *arguments, "--accumulate", 1, *LABELLED, *STILL) == 0
        assert run(*start, "mae-vit-b", "--resume", "--epochs", 2) == 0, capsys.readouterr().err
        assert run(*start, "mae-vit-l", *arguments, "--resume", "--epochs", 3) == 2


def test_a_finished_run_goes_on_longer(photographs, tmp_path, capsys):
    """The log says what becomes of the learning rate, which is that of a run of as many epochs."""
    arguments = ("pretrain", "--data", photographs, *ENCODER, *FAST, "--img-size", 32, "--lr", 1)
    arguments = (*arguments, "--out", tmp_path / "run", "--warmup-epochs", 0, "--epochs")
    assert run(*arguments, 2) == 0
    capsys.readouterr()
    assert run(*arguments, 6, "--resume") == 0
    text = capsys.readouterr()
    line = next(li for li in text.err.splitlines() if "--epochs 6 instead of 2" in li)
    assert line.startswith("from update 4 on: ")
    assert "the schedule is now that of a run of 6 epochs" in line
    before, now = map(float, re.search(r"learning rate (\S+) before, (\S+) now", line).groups())
    assert before < now and "trained 12 updates" in text.out
    assert run(*arguments, 3, "--resume") == 2
    assert "give at least --epochs 6" in capsys.readouterr().err


def test_a_run_with_milestones_goes_on_longer(photographs, tmp_path, capsys):
    """Nothing before its new end depends on how long the run is: it ends with the bits of a run that
    had as many epochs from the start."""
    arguments = ("pretrain", "--data", photographs, *ENCODER, *FAST, "--img-size", 32, "--lr", 1)
    arguments = (
        *arguments,
        "--warmup-epochs",
        0.5,
        "--schedule",
        "multistep",
        "--milestones",
        4,
        1,
    )
    assert run(*arguments, "--epochs", 6, "--out", tmp_path / "whole") == 0
    assert run(*arguments, "--epochs", 2, "--out", tmp_path / "run") == 0
    assert "--milestones 4 is never reached: the run ends after 2 epochs" in capsys.readouterr().err
    # the milestones are those of the run
    assert run("pretrain", "--out", tmp_path / "run", "--epochs", 6, "--resume") == 0
    whole, longer = (
        checkpoint.load(tmp_path / out / "checkpoints" / checkpoint.LAST)
        for out in ("whole", "run")
    )
    assert whole["update"] == longer["update"] == 12
    assert all(torch.equal(value, longer["model"][name]) for name, value in whole["model"].items())
    rates = [group["lr"] for group in longer["optimizer"]["param_groups"]]
    assert set(rates) == {group["lr"] for group in whole["optimizer"]["param_groups"]}
    assert rates == pytest.approx([0.01 * 4 / 512] * len(rates), rel=1e-6)
    # and others may be given from there on
    capsys.readouterr()
    more = ("--epochs", 7, "--gamma", 0.5, "--milestones", 6.5, "--resume")
    assert run("pretrain", "--out", tmp_path / "run", *more) == 0
    line = next(li for li in capsys.readouterr().err.splitlines() if "from update 12 on" in li)
    assert "--milestones (6.5,) instead of (4.0, 1.0), --gamma 0.5 instead of 0.1" in line


@pytest.mark.parametrize("channels", [3, 1])
def test_the_cnn_begins_with_one_of_a_run(channels, photographs, labelled, tmp_path, capsys):
    start = ("pretrain", "--data", photographs, "--encoder", "cnn", "--img-size", 32, *FAST)
    assert run(*start, "--out", tmp_path / "first", "--lr", 1e-2, "--epochs", 1) == 0
    first, file = loaded(tmp_path / "first"), tmp_path / "first/checkpoints/last.pt"
    again = (*start, *STILL, "--init-from", file, "--out", tmp_path / "again")
    if channels == 1:
        assert run(*again, "--channels", 1) == 2
        assert "holds no cnn like this one: other shapes:" in capsys.readouterr().err
        return
    assert run(*again) == 0
    assert f"loaded {len(first)} tensors" in said(capsys, file)
    second = loaded(tmp_path / "again")
    assert all(torch.equal(second[name], value) for name, value in first.items())
    tune = ("finetune", "--data", labelled, "--encoder", "cnn", "--img-size", 32, "--drop-path", 0)
    assert run(*tune, *LABELLED, *STILL, "--init-from", file, "--out", tmp_path / "tuned") == 0
    tuned = loaded(tmp_path / "tuned")
    kept = [name for name in first if name.startswith("encoder.convolutions.")]
    assert len(kept) == 6 and all(torch.equal(tuned[name], first[name]) for name in kept)
    # from the classifier's encoder, whose head is another
    assert (
        run(
            *start,
            *STILL,
            "--init-from",
            tmp_path / "tuned/checkpoints/last.pt",
            "--out",
            tmp_path / "third",
        )
        == 0
    )
    assert "newly initialised: head" in capsys.readouterr().err
