"""Folders and files that timm writes: what its config.json says is believed, what nobody says is asked."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from timm.models import save_for_hf

from simmim.models.classifier import load_classifier, load_encoder
from simmim.models.masking import nothing_hidden

from .exchange_models import run
from .test_exchange_classifier import arguments_of

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4}
SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)}
#: models with settings that no tensor shows: heads, activation, windows, epsilon, a grid that is not square
SILENT = {
    "heads": ("vit_tiny_patch16_224", (32, 32), VIT),
    "activation": ("vit_tiny_patch16_224", (32, 32), {**VIT, "act_layer": "relu"}),
    "grid": ("vit_tiny_patch16_224", (16, 64), VIT),
    "epsilon": ("vit_base_patch16_clip_224", (32, 32), VIT),
    "layer scale": ("beit_base_patch16_224", (16, 48), {**VIT, "global_pool": "token"}),
    "windows": ("swin_tiny_patch4_window7_224", (32, 48), {**SWIN, "window_size": (2, 4)}),
    "trained windows": (
        "swinv2_tiny_window8_256",
        (32, 32),
        {**SWIN, "window_size": 4, "pretrained_window_sizes": (3, 6)},
    ),
}


def made(name, size, folder, classes=0, **arguments):
    """A model of timm's, its weights moved off their first values, and the folder it is saved to."""
    torch.manual_seed(6)
    model = timm.create_model(name, img_size=size, num_classes=classes, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_for_hf(model, folder)
    return model


def inputs(size, folder):
    """Images, and the same normalised as the folder says."""
    said = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    mean, std = (torch.tensor(said[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    return images, (images / 255 - mean) / std


@pytest.mark.slow
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("case", SILENT)
@torch.no_grad()
def test_what_no_tensor_shows_comes_from_config_json(case, told, tmp_path, capsys):
    name, size, arguments = SILENT[case]
    theirs = made(name, size, tmp_path / "theirs", **arguments)
    pairs = ["--encoder-args", "patch_size", 8, "embed_dim", 16, "depth", 2]
    pairs = ["--encoder-args", "embed_dim", 16, "depths", "1,2"] if "swin" in name else pairs
    status, said, err = run(
        capsys, "import", "--source", tmp_path / "theirs", "--out", tmp_path / "ours.safetensors",
        "--encoder", name, "--img-size", *size, *(pairs if told else []),
    )  # fmt: skip
    assert status == 0, err
    assert "from its config.json: --encoder-args" in said
    images, pixels = inputs(size, tmp_path / "theirs")
    expected = theirs.forward_features(pixels)
    prefix = getattr(theirs, "num_prefix_tokens", 0)
    expected = expected.flatten(1, 2) if expected.dim() == 4 else expected[:, prefix:]
    found = load_encoder(tmp_path / "ours.safetensors")[0](images, nothing_hidden(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_another_encoder_than_config_json_names(tmp_path, capsys):
    made("vit_tiny_patch16_224", (32, 32), tmp_path, **VIT)
    start = (
        "import",
        "--source",
        tmp_path,
        "--out",
        tmp_path / "ours.safetensors",
        "--img-size",
        32,
    )
    plain = ("--encoder", "vit_tiny_patch16_224")
    cases = {
        "has num_heads 4, but --encoder-args num_heads 2: leave that argument out": (
            *plain, "--encoder-args", "num_heads", 2,
        ),
        "cnn is none of timm's": ("--encoder", "cnn"),
        "give the --encoder that it holds": ("--encoder", "vit_small_patch16_224"),
        "which has no_embed_class False; pos_embed, unlike deit3_small_patch16_224": ("--encoder", "deit3_small_patch16_224", "--encoder-args", *_pairs(VIT)),
    }  # fmt: skip
    for words, arguments in cases.items():
        status, _, err = run(capsys, *start, *arguments)
        assert status == 2 and words in err, err


def test_the_window_of_another_architecture(tmp_path, capsys):
    """A name says nothing more than a window, for which tables are interpolated."""
    made("swin_tiny_patch4_window7_224", (56, 56), tmp_path, **SWIN)
    pairs = [",".join(map(str, p)) if isinstance(p, tuple) else p for p in _pairs(SWIN)]
    status, said, err = run(
        capsys, "import", "--source", tmp_path, "--out", tmp_path / "ours.safetensors", "--img-size", 96,
        "--encoder", "swin_base_patch4_window12_384", "--encoder-args", *pairs,
    )  # fmt: skip
    assert status == 0, err
    assert "offsets in 7x7 to offsets in 12x12" in said


def test_an_architecture_that_cannot_be_built(tmp_path, capsys):
    made("vit_tiny_patch16_224", (32, 32), tmp_path, **VIT)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architecture": "my_own_vit"}))
    status, said, err = run(
        capsys, "import", "--source", tmp_path, "--out", tmp_path / "ours.safetensors",
        "--img-size", 32, "--encoder", "vit_tiny_patch16_224", "--encoder-args", *_pairs(VIT),
    )  # fmt: skip
    assert status == 0, err
    assert "names my_own_vit, which can't be built here" in said


def _pairs(arguments):
    return [part for pair in arguments.items() for part in pair]


#: how timm's ViTs pool, with a part of the message where simmim's classifiers can't
POOLINGS = {
    "mean": ({"global_pool": "avg", "fc_norm": False}, None),
    "norm of the mean": ({"global_pool": "avg"}, None),
    "token": ({"global_pool": "token"}, "global_pool 'token'"),
    "norm of the token": ({"global_pool": "token", "fc_norm": True}, "global_pool 'token'"),
    "maximum": ({"global_pool": "max"}, "global_pool 'max'"),
    "mean with the token": (
        {"global_pool": "avg", "pool_include_prefix": True},
        "'avg' with pool_include_prefix",
    ),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_a_classifier_pools_as_config_json_says(case, tmp_path, capsys):
    pooling, refused = POOLINGS[case]
    name, size = "vit_tiny_patch16_224", (32, 32)
    theirs = made(name, size, tmp_path / "theirs", 3, **VIT, **pooling)
    file = tmp_path / "theirs/config.json"
    names = {"label_names": ["ash", "fir", "oak"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    out = tmp_path / "ours.safetensors"
    status, _, err = run(
        capsys, "import", "--source", tmp_path / "theirs", "--out", out,
        "--encoder", name, "--img-size", 32, "--classifier",
    )  # fmt: skip
    if refused:
        assert status == 2 and refused in err and "the mean over the patches" in err
        return
    assert status == 0, err
    images, pixels = inputs(size, tmp_path / "theirs")
    ours = load_classifier(out)[0]
    assert ours.names == names["label_names"]
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(pixels), rtol=1e-4, atol=1e-4)
    back = tmp_path / "back.pth"
    assert run(capsys, "export", "--checkpoint", out, "--project", "timm", "--out", back)[0] == 0
    found = torch.load(back, weights_only=True)
    for tensor, value in theirs.state_dict().items():
        assert torch.equal(found[tensor], value), tensor


@pytest.mark.parametrize("family", ["vit", "beit"])
def test_a_mean_without_fc_norm_in_a_file_alone(family, tmp_path, capsys):
    """The tensors are those of a ViT that classifies by its class token."""
    name = {"vit": "vit_tiny_patch16_224", "beit": "beit_base_patch16_224"}[family]
    norm = {"vit": "fc_norm", "beit": "use_fc_norm"}[family]
    pooling = {"global_pool": "avg", norm: False}
    arguments = VIT | {"num_heads": 2}
    theirs = made(name, (32, 32), tmp_path / "theirs", 3, **arguments, **pooling)
    torch.save(theirs.state_dict(), tmp_path / "alone.pth")
    out = tmp_path / "ours.safetensors"
    start = ("import", "--source", tmp_path / "alone.pth", "--out", out, "--classifier")
    mean = ("--mean", *[127.5] * 3, "--std", *[127.5] * 3)
    status, _, err = run(capsys, *start, *arguments_of(family), *mean)
    assert status == 2 and "add --pool mean" in err
    status, _, err = run(capsys, *start, *arguments_of(family), *mean, "--pool", "mean")
    assert status == 0, err
    images = inputs((32, 32), tmp_path / "theirs")[0]
    with torch.no_grad():
        expected = theirs(images / 127.5 - 1)
        torch.testing.assert_close(load_classifier(out)[0](images), expected, rtol=1e-4, atol=1e-4)


def test_a_norm_of_the_mean_without_a_head(tmp_path, capsys):
    made("beit_base_patch16_224", (32, 32), tmp_path, **VIT)
    status, _, err = run(
        capsys, "import", "--source", tmp_path, "--out", tmp_path / "ours.safetensors",
        "--encoder", "beit_base_patch16_224", "--img-size", 32,
    )  # fmt: skip
    assert status == 2 and "it has no head" in err and "--classifier" not in err
