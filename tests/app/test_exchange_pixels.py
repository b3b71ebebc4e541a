"""How images are normalised goes with a model: from the files of timm and transformers, and in our own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.models import _hub

from simmim.storage import checkpoint

from .exchange_models import arguments_of, run
from .test_apply import FAST, fine_tune, rows_of

SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4}
VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
#: of one image processor each, and what is told of it
PROCESSORS = {
    "halves": ({}, "--mean 127.5 127.5 127.5 --std 127.5 127.5 127.5"),
    "of its own": (
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]},
        "--mean 102 127.5 153 --std 51 76.5 63.75",
    ),
    "not normalised": ({"do_normalize": False}, "--mean 0 0 0 --std 255 255 255"),
    "not by 255": (
        {"do_rescale": False, "image_mean": [90.0] * 3, "image_std": [50.0] * 3},
        "--mean 90 90 90 --std 50 50 50",
    ),
}


@pytest.fixture
def pictures(tmp_path):
    """Of the size that the models take."""
    (tmp_path / "data").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"data/{number}.png")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def spread(model, head):
    """Weights of a head that tell images apart."""
    torch.nn.init.normal_(head.weight)
    return model.eval()


def assert_predicts(capsys, source, tmp_path, encoder, logits, *more):
    """The shares of an imported classifier are those of ``logits``; returns what import said."""
    imported, table = tmp_path / "imported.safetensors", tmp_path / "predictions.csv"
    arguments = ("--source", source, *encoder, "--classifier", "--out", imported, *more)
    status, said, err = run(capsys, "import", *arguments)
    assert status == 0, err
    start = ("--checkpoint", imported, "--data", tmp_path / "data", "--out", table, *FAST)
    status, _, err = run(capsys, "predict", *start)
    assert status == 0, err
    expected = logits.softmax(1)
    for row, shares in zip(rows_of(table), expected, strict=True):
        assert float(row["probability"]) == pytest.approx(shares.max().item(), abs=2e-6)
        assert int(row["class"]) == shares.argmax()
    return said


@torch.no_grad()
@pytest.mark.parametrize("processor", PROCESSORS)
def test_transformers_image_processors(processor, pictures, tmp_path, capsys):
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4,
        id2label={n: str(n) for n in range(7)},
    )  # fmt: skip
    model = transformers.SwinForImageClassification(config)
    spread(model, model.classifier).save_pretrained(tmp_path / "folder")
    settings, words = PROCESSORS[processor]
    theirs = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, **settings)
    theirs.save_pretrained(tmp_path / "folder")
    logits = model(theirs(list(pictures), return_tensors="pt")["pixel_values"]).logits
    said = assert_predicts(capsys, tmp_path / "folder", tmp_path, arguments_of("swin"), logits)
    assert f"by {words}, as preprocessor_config.json says" in said


@torch.no_grad()
def test_timm_on_the_hub_and_by_hand(pictures, tmp_path, capsys):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=7, global_pool="avg", **VIT
    )
    spread(model, model.head)
    _hub.save_for_hf(model, tmp_path / "folder", safe_serialization=True)
    mean, std = (model.pretrained_cfg[name] for name in ("mean", "std"))
    assert mean == std == (0.5, 0.5, 0.5)
    logits = model((pictures / 255 - 0.5) / 0.5)
    said = assert_predicts(capsys, tmp_path / "folder", tmp_path, arguments_of("vit"), logits)
    assert "by --mean 127.5 127.5 127.5 --std 127.5 127.5 127.5, as config.json says" in said
    alone, halves = tmp_path / "alone/model.pth", [127.5] * 3
    alone.parent.mkdir()
    torch.save(model.state_dict(), alone)
    again = ("--overwrite", "--mean", *halves, "--std", *halves)
    (tmp_path / "predictions.csv").unlink()
    assert_predicts(capsys, alone, tmp_path, arguments_of("vit"), logits, *again)
    start = ("import", "--source", alone, *arguments_of("vit"), "--classifier")
    status, said, _ = run(capsys, *start, "--out", tmp_path / "usual.safetensors")
    assert status == 0 and "no file says how its images were normalised: as ImageNet" in said
    assert checkpoint.load(tmp_path / "usual.safetensors", None)["kind"] == "finetune"
    for wrong in ((1, 2), (1, 2, 3, "--std", 1, 1, 0)):
        status, _, err = run(capsys, *start, "--mean", *wrong, "--out", tmp_path / "no.safetensors")
        assert status == 2 and "a number each for 3 channels, of --std greater than 0" in err


@pytest.mark.parametrize("more", [(), ("--mean", 90, 100, 110, "--std", 50, 60, 70)], ids=len)
def test_exported_with_an_image_processor(more, labelled, tmp_path, capsys):
    """Theirs makes of picture files what our predictions rest on."""
    start = (labelled, tmp_path / "tuned", "swin", "--lr", 1, "--test-crop", 0.9, *more)
    checkpoint, folder = fine_tune(*start), tmp_path / "folder"
    export = ("export", "--checkpoint", checkpoint, "--project", "transformers", "--out", folder)
    status, said, _ = run(capsys, *export)
    mean = "0.352941176 0.392156863 0.431372549" if more else "0.485 0.456 0.406"
    assert status == 0 and f"its images are normalised by mean {mean} and std" in said
    table = tmp_path / "predictions.csv"
    start = ("--checkpoint", checkpoint, "--data", labelled, "--out", table, *FAST)
    assert run(capsys, "predict", *start)[0] == 0
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    # pictures of 36 x 40 pixels, of which both cut the central 32 x 32
    pictures = [Image.open(labelled / row["file"]) for row in rows_of(table)]
    with torch.no_grad():
        shares = model(**processor(pictures, return_tensors="pt")).logits.softmax(1)
    for row, expected in zip(rows_of(table), shares, strict=True):
        name = model.config.id2label[expected.argmax().item()]
        assert row["class"] == name
        assert float(row["probability"]) == pytest.approx(expected.max().item(), abs=2e-6)


def test_a_checkpoint_of_ours(photographs, tmp_path, capsys):
    """Imported for images of another size, it goes on reading them as it did."""
    start = ("--data", photographs, *arguments_of("vit"), *FAST, "--mask-unit", 8, "--epochs", 1)
    numbers = ("--mean", 100, 110, 120, "--std", 30, 31, 32)
    status, _, err = run(capsys, "pretrain", *start, *numbers, "--out", tmp_path / "run")
    assert status == 0, err
    ours, imported = tmp_path / "run/checkpoints/last.pt", tmp_path / "imported.safetensors"
    arguments = ("import", "--source", ours, *arguments_of("vit"))
    assert run(capsys, *arguments, "--out", imported)[0] == 0
    found = []
    for name, file in (("a", ours), ("b", imported)):
        out = tmp_path / f"{name}.npy"
        apply = ("--checkpoint", file, "--data", photographs, "--out", out, *FAST)
        assert run(capsys, "features", *apply)[0] == 0
        found.append(np.load(out))
    assert np.array_equal(*found)
    status, _, err = run(capsys, *arguments, "--channels", 1, "--out", tmp_path / "no.safetensors")
    assert status == 2 and "of 3 channels: add --channels 3" in err
    status, _, err = run(capsys, *arguments, *numbers, "--out", tmp_path / "no.safetensors")
    assert status == 2 and "leave out --mean and --std" in err


def test_a_model_of_another_number_of_channels_than_its_file_says(tmp_path, capsys):
    """As older versions of timm left it beside a model that takes more channels."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=5, **VIT)
    _hub.save_for_hf(model, tmp_path / "folder", safe_serialization=True)
    file = tmp_path / "folder/config.json"
    settings = json.loads(file.read_text())
    settings["pretrained_cfg"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    file.write_text(json.dumps(settings))
    arguments = ("--source", tmp_path / "folder", *arguments_of("vit"), "--channels", 5)
    status, said, err = run(capsys, "import", *arguments, "--out", tmp_path / "a.safetensors")
    assert status == 0, err
    assert "no file says how its images were normalised" in said
