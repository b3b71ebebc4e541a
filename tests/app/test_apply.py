"""Trained models applied to images, and what fine-tuned checkpoints are good for, by the command line."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
import tifffile
import timm
import torch
import transformers

from simmim.cli import main
from simmim.data.crops import central_crops
from simmim.data.sources import find_source
from simmim.models.classifier import load_classifier
from simmim.models.simmim import IMAGENET_MEAN, IMAGENET_STD

from .conftest import write_labelled

VIT = ("vit_tiny_patch16_224", "patch_size", 8, "embed_dim", 16, "depth", 2, "num_heads", 2)
SWIN = ("swin_tiny_patch4_window7_224", "embed_dim", 16, "depths", "1,2", "num_heads", "2,4")
SWIN = (*SWIN, "window_size", 4)
SWINV2 = ("swinv2_tiny_window8_256", *SWIN[1:])
BEIT = ("beit_base_patch16_224", *VIT[1:])
FAMILIES = {"vit": VIT, "beit": BEIT, "swin": SWIN, "swinv2": SWINV2}
FAST = (*("--workers", 0, "--device", "cpu", "--batch-size", 5),)
TRAIN = ("--precision", "32-true", "--epochs", 1, "--warmup-epochs", 0, "--img-size", 32)


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def encoder_of(family: str) -> tuple:
    name, *arguments = FAMILIES[family]
    return ("--encoder", name, "--encoder-args", *arguments)


def fine_tune(data: Path, out: Path, family: str = "vit", *more: object) -> Path:
    arguments = ("--data", data, "--out", out, *encoder_of(family), *FAST, *TRAIN, *more)
    assert run("finetune", *arguments) == 0
    return out / "checkpoints/last.pt"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tuned")
    return fine_tune(write_labelled(place / "labelled"), place / "run")


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_test(labelled, tmp_path, capsys):
    """The same share is right as at the end of fine-tuning, and classes have their names."""
    (tmp_path / "data").mkdir()
    for name in ("train", "val"):
        (tmp_path / "data" / name).symlink_to(labelled)
    checkpoint = fine_tune(tmp_path / "data", tmp_path / "tuned", "vit", "--lr", 1)
    accuracy = next(
        line for line in capsys.readouterr().out.splitlines() if "test images right" in line
    )
    out = tmp_path / "predictions.csv"
    assert run("predict", "--checkpoint", checkpoint, "--data", labelled, "--out", out, *FAST) == 0
    rows = rows_of(out)
    names = ["class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert list(rows[0]) == ["file", *names]
    right = sum(row["class"] == row["file"].split("/")[0] for row in rows)
    assert accuracy.startswith(f"{right} of 18 test images right"), accuracy
    model, config = load_classifier(checkpoint)
    dataset = central_crops(config, find_source(labelled, config).paths)
    with torch.no_grad():
        shares = model(torch.stack([dataset[0, n].image for n in range(18)])).softmax(1)
    for row, share in zip(rows, shares, strict=True):
        got = {row[f"class{p}"]: float(row[f"probability{p}"]) for p in ("", "_2", "_3")}
        for name, value in zip(("dark", "gray", "light"), share.tolist(), strict=True):
            assert abs(got[name] - value) < 2e-6
        assert list(got.values()) == sorted(got.values(), reverse=True)


def test_probabilities_of_confident_answers_stay_apart(tuned, labelled, tmp_path, monkeypatch):
    """Scores that are 40 to 70 apart, as of models trained without smoothing."""

    def confident(path):
        model, config = load_classifier(path)
        with torch.no_grad():
            model.head.weight.mul_(400)
        return model, config

    monkeypatch.setattr("simmim.evaluation.predict.load_classifier", confident)
    out = tmp_path / "predictions.csv"
    assert run("predict", "--checkpoint", tuned, "--data", labelled, "--out", out, *FAST) == 0
    model, config = confident(tuned)
    dataset = central_crops(config, find_source(labelled, config).paths)
    with torch.no_grad():
        scores = model(torch.stack([dataset[0, n].image for n in range(18)])).double()
    assert (scores.amax(1) - scores.amin(1)).median() > 20
    found = {
        (n, row[f"class{place}"]): float(row[f"probability{place}"])
        for n, row in enumerate(rows_of(out))
        for place in ("", "_2", "_3")
    }
    logs = (
        torch.tensor([[found[n, name] for name in model.names] for n in range(18)]).double().log()
    )
    torch.testing.assert_close(logs, scores.log_softmax(1), rtol=1e-4, atol=1e-3)


def test_predictions_of_a_pack_and_of_bad_files(tuned, labelled, tmp_path, capsys):
    (labelled / "dark/0.png").write_bytes(b"nothing")
    arguments = ("predict", "--checkpoint", tuned, *FAST, "--top", 1)
    assert run(*arguments, "--data", labelled, "--out", tmp_path / "a.csv") == 0
    said = capsys.readouterr()
    assert f"left out {labelled}/dark/0.png: not an image" in said.err and "17 images" in said.out
    assert run("pack", "--data", labelled, "--out", tmp_path / "pack") == 0
    assert run(*arguments, "--data", tmp_path / "pack", "--out", tmp_path / "b.csv") == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert run(*arguments, "--data", labelled, "--out", tmp_path / "a.csv") == 2
    assert "exists: replace it with --overwrite" in capsys.readouterr().err
    more = ("--overwrite", "--on-bad-image", "error")
    assert run(*arguments, "--data", labelled, "--out", tmp_path / "a.csv", *more) == 2
    assert "cannot read" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "a.csv")) == 17


def test_what_predict_and_features_refuse(pretrained, tuned, labelled, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cases = {
        "was written by simmim pretrain, whose models have no classes": (
            *("predict", "--checkpoint", pretrained),
        ),
        "no such checkpoint": ("predict", "--checkpoint", tmp_path / "no.pt"),
        f"is a folder: give {tuned}": ("predict", "--checkpoint", tuned.parents[1]),
        "must end in .npy or .parquet": ("features", "--checkpoint", tuned, "--out", "a.csv"),
        "must end in .csv": ("predict", "--checkpoint", tuned, "--out", tmp_path / "a.parquet"),
        "the encoder has blocks 1 to 2": ("features", "--checkpoint", tuned, "--block", 3),
        f"{pipe} is a device or a pipe": (
            *("predict", "--checkpoint", tuned, "--overwrite", "--out", pipe),
        ),
        "--top must be at least 1": ("predict", "--checkpoint", tuned, "--top", 0),
        "no such file or folder": ("predict", "--checkpoint", tuned, "--data", tmp_path / "no"),
    }  # fmt: skip
    for words, arguments in cases.items():
        more = () if "--data" in arguments else ("--data", labelled)
        name = "features.npy" if arguments[0] == "features" else "a.csv"
        more += () if "--out" in arguments else ("--out", tmp_path / name)
        capsys.readouterr()
        assert run(*arguments, *more, "--device", "cpu") == 2, words
        error = capsys.readouterr().err.splitlines()[-1]
        assert words in error, error
    assert not (tmp_path / "features.npy").exists() and not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("of", "kind"), [("pretrained", "npy"), ("tuned", "parquet"), ("fc_norm", "npy")]
)
def test_features(of, kind, request, labelled, tmp_path):
    if of == "fc_norm":
        checkpoint = fine_tune(labelled, tmp_path / "run", "vit", "--fc-norm")
    else:
        checkpoint = request.getfixturevalue(of)
    out = tmp_path / f"features.{kind}"
    assert run("features", "--checkpoint", checkpoint, "--data", labelled, "--out", out, *FAST) == 0
    if kind == "npy":
        features, files = np.load(out), [row["file"] for row in rows_of(out.with_suffix(".csv"))]
    else:
        table = pandas.read_parquet(out)
        features, files = np.stack(table["features"].to_numpy()), list(table["file"])
    assert features.shape == (18, 16) and features.dtype == np.float32
    assert files[:2] == ["dark/0.png", "dark/1.png"] and len(set(files)) == 18
    if of != "pretrained":
        model, config = load_classifier(checkpoint)
        dataset = central_crops(config, find_source(labelled, config).paths)
        with torch.no_grad():
            scores = model(torch.stack([dataset[0, n].image for n in range(18)]))
            torch.testing.assert_close(model.head(torch.tensor(features)), scores)


def test_features_of_a_block(tuned, labelled, tmp_path):
    arguments = ("features", "--checkpoint", tuned, "--data", labelled, *FAST)
    found = []
    for block in (0, 1, 2):
        out = tmp_path / f"{block}.npy"
        assert run(*arguments, "--block", block, "--out", out) == 0
        found.append(np.load(out))
    assert np.array_equal(found[0], found[2]) and not np.allclose(found[0], found[1])


def test_other_images_are_refused_without_advice_that_does_not_help(tuned, tmp_path, capsys):
    """Neither command takes the statistics that a run would be told to measure."""
    (tmp_path / "data").mkdir()
    for number in range(2):
        pixels = np.full((40, 40), 1000 * number, np.uint16)
        tifffile.imwrite(tmp_path / f"data/{number}.tif", pixels)
    for command, name in (("predict", "a.csv"), ("features", "a.npy")):
        arguments = ("--checkpoint", tuned, "--data", tmp_path / "data", *FAST)
        assert run(command, *arguments, "--out", tmp_path / name) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.endswith("none of the 2 images can be read: 2 TIFF (16 bits a channel)")


@pytest.mark.slow
@pytest.mark.parametrize("fc_norm", [False, True])
def test_fine_tuned_encoders_are_probed_and_tuned_further(fc_norm, labelled, tmp_path, capsys):
    more = ("--fc-norm",) if fc_norm else ()
    checkpoint = fine_tune(labelled, tmp_path / "tuned", "vit", *more)
    start = ("--data", labelled, "--checkpoint", checkpoint, *FAST)
    assert run("probe", *start, "--out", tmp_path / "probe") == 0
    settings = (*start, *TRAIN[:-2], "--out", tmp_path / "further")
    assert run("finetune", *settings, *more) == 0
    further, before = (load_classifier(p / "checkpoints/last.pt")[0] for p in (
        tmp_path / "further", tmp_path / "tuned"))  # fmt: skip
    name = "backbone.patch_embed.proj.weight"
    change = further.encoder.state_dict()[name] - before.encoder.state_dict()[name]
    assert 0 < change.abs().max() < 0.05
    if fc_norm:
        capsys.readouterr()
        assert run("finetune", *settings, "--overwrite") == 2
        assert "give --fc-norm here too" in capsys.readouterr().err


def test_reconstruct_says_what_to_use_instead(tuned, labelled, tmp_path, capsys):
    out = tmp_path / "a.png"
    assert run("reconstruct", "--checkpoint", tuned, "--data", labelled, "--out", out) == 2
    assert "takes a checkpoint of simmim pretrain" in capsys.readouterr().err


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255 - mean) / std


@torch.no_grad()
def assert_same_logits(ours, theirs) -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = ours(images)
    assert expected.std() > 1e-4
    got = theirs(normalised(images.float()))
    torch.testing.assert_close(getattr(got, "logits", got), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_classifiers_for_transformers(family, labelled, tmp_path):
    """Read by their own class, and by simmim import, with the names of the classes."""
    checkpoint = fine_tune(labelled, tmp_path / "tuned", family, "--lr", 1)
    folder = tmp_path / "folder"
    export = ("export", "--checkpoint", checkpoint, "--project", "transformers")
    assert run(*export, "--out", folder) == 0
    cls = {"swin": transformers.SwinForImageClassification,
           "swinv2": transformers.Swinv2ForImageClassification}[family]  # fmt: skip
    theirs, info = cls.from_pretrained(folder, output_loading_info=True)
    # transformers 4 looks for an index in the file that it makes itself
    missing = [k for k in info["missing_keys"] if not k.endswith("relative_position_index")]
    assert not (missing or info["unexpected_keys"] or info["mismatched_keys"]), info
    assert theirs.config.id2label == {0: "dark", 1: "gray", 2: "light"}
    ours = load_classifier(checkpoint)[0]
    assert_same_logits(ours, theirs.eval())
    back = tmp_path / "back.safetensors"
    name, *arguments = FAMILIES[family]
    assert run("import", "--source", folder, "--classifier", "--out", back, "--encoder", name,
               "--img-size", 32, "--encoder-args", *arguments) == 0  # fmt: skip
    again = load_classifier(back)[0]
    assert again.names == ["dark", "gray", "light"]
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(again(images), ours(images))
    start = ("--checkpoint", back, "--data", labelled, *FAST)
    assert run("predict", *start, "--out", tmp_path / "a.csv") == 0
    assert {row["class"] for row in rows_of(tmp_path / "a.csv")} <= {"dark", "gray", "light"}
    assert run("features", *start, "--out", tmp_path / "b.npy") == 0
    assert run("probe", *start, "--out", tmp_path / "probe") == 0


@pytest.mark.parametrize("family", ["vit", "beit"])
def test_classifiers_that_transformers_has_not(family, labelled, tmp_path, capsys):
    checkpoint = fine_tune(labelled, tmp_path / "tuned", family)
    capsys.readouterr()
    export = ("export", "--checkpoint", checkpoint, "--out", tmp_path / "folder", "--project")
    assert run(*export, "transformers") == 2
    assert "export it for timm, whose models do" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fc_norm", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_classifiers_for_timm(family, fc_norm, labelled, tmp_path, capsys):
    """The model that the printed line makes gives our logits."""
    more = ("--fc-norm",) if fc_norm else ()
    checkpoint = fine_tune(labelled, tmp_path / "tuned", family, "--lr", 1, *more)
    out = tmp_path / "timm.safetensors"
    export = ("export", "--checkpoint", checkpoint, "--project", "timm", "--out", out)
    if fc_norm and family.startswith("swin"):
        assert run(*export) == 2
        assert f"--fc-norm, which no {family} of others has" in capsys.readouterr().err
        return
    assert run(*export) == 0
    assert "create_model(..., num_classes=3, global_pool='avg'" in capsys.readouterr().out
    name, *arguments = FAMILIES[family]
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    settings = {k: tuple(map(int, v.split(","))) if isinstance(v, str) else v for k, v in pairs}
    norm = {"vit": "fc_norm", "beit": "use_fc_norm"}.get(family)
    settings |= {norm: fc_norm} if norm else {}
    theirs = timm.create_model(name, img_size=32, num_classes=3, global_pool="avg", **settings)
    timm.models.load_checkpoint(theirs, str(out), strict=True)
    assert_same_logits(load_classifier(checkpoint)[0], theirs.eval())


def test_class_names_travel_with_an_exported_model(tuned, labelled, tmp_path):
    out = tmp_path / "model.safetensors"
    assert run("export", "--checkpoint", tuned, "--project", "simmim", "--out", out) == 0
    assert load_classifier(out)[0].names == ["dark", "gray", "light"]
    table = tmp_path / "a.csv"
    assert run("predict", "--checkpoint", out, "--data", labelled, "--out", table, *FAST) == 0
    found = Counter(row[f"class{p}"] for row in rows_of(table) for p in ("", "_2", "_3"))
    assert found == {"dark": 18, "gray": 18, "light": 18}
