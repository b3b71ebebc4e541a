"""Fine-tuning and probing: what is learnt, what is measured, and what mistakes cost."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from simmim import checkpoint
from simmim.classes import split_classes
from simmim.classifier import Classifier, block_features, completed, start
from simmim.cli import main
from simmim.config import PretrainConfig
from simmim.encoders import build_encoder
from simmim.errors import UserError
from simmim.finetune import Finetuner, mixing
from simmim.labels_config import FinetuneConfig, ProbeConfig
from simmim.log import read_metrics
from simmim.model import channel_statistics
from simmim.optim import parameter_groups
from simmim.probe import probe
from simmim.published import normalized
from simmim.train import Trainer

from ..budget import assert_within_budget
from .conftest import TINY

ENCODER = {name: TINY[name] for name in ("encoder", "encoder_args", "img_size")}


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Three classes of six images that differ in brightness."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "gray", "light")):
        for image in range(6):
            pixels = 40 + 80 * number + rng.integers(-30, 30, (36, 40, 3))
            path = tmp_path / "labelled" / name / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "labelled"


@pytest.fixture
def pretrained(photographs, tmp_path) -> Path:
    config = PretrainConfig(
        data=photographs, out=tmp_path / "pretrained", batch_size=8, epochs=1, **TINY
    )
    return Trainer(config).fit().checkpoint


def finetuning(labelled: Path, out: Path, **changes) -> FinetuneConfig:
    settings = {
        "data": labelled,
        "out": out,
        "val_share": 1 / 3,
        "batch_size": 5,
        "epochs": 2,
        **ENCODER,
        **{name: TINY[name] for name in ("precision", "device", "workers", "warmup_epochs")},
    }
    return FinetuneConfig(**{**settings, **changes})


def probing(labelled: Path, out: Path, **changes) -> ProbeConfig:
    settings = {"data": labelled, "out": out, "device": "cpu", "workers": 0, **ENCODER}
    return ProbeConfig(**{**settings, **changes})


def without(*names: str) -> dict[str, object]:
    """What leaves these settings to the checkpoint."""
    return {name: {} if name == "encoder_args" else None for name in names}


def test_each_class_is_split(labelled, tmp_path):
    classes = split_classes(finetuning(labelled, tmp_path))
    assert classes.names == ["dark", "gray", "light"]
    for part, count in ((classes.train, 4), (classes.test, 2)):
        assert [path.parent.name for path in part.paths] == [
            classes.names[label] for label in part.labels
        ]
        assert torch.bincount(part.labels).tolist() == [count] * 3
    assert not set(classes.train.paths) & set(classes.test.paths)
    few = [split_classes(finetuning(labelled, tmp_path, per_class=2, seed=s)) for s in range(5)]
    assert all(torch.bincount(c.train.labels).tolist() == [2] * 3 for c in few)
    assert all(c.test.paths == few[0].test.paths for c in few)
    assert len({tuple(c.train.paths) for c in few}) > 1
    whole = split_classes(finetuning(labelled, tmp_path, val_data=labelled))
    assert len(whole.train.paths) == len(whole.test.paths) == 18


def test_fine_tuning_learns_from_the_checkpoint(labelled, pretrained, tmp_path):
    config = finetuning(
        labelled,
        tmp_path / "run",
        checkpoint=pretrained,
        epochs=12,
        lr=0.3,
        mixup=0.0,
        cutmix=0.0,
        **without("encoder", "encoder_args", "img_size"),
    )
    trainer = Finetuner(config)
    before = checkpoint.load(pretrained)["model"]
    for name, value in trainer.model.module.encoder.state_dict().items():
        assert torch.equal(value, before[f"encoder.{name}"]), name
    assert before["encoder.mask_token"].shape == trainer.model.module.encoder.mask_token.shape
    summary = trainer.fit()
    assert summary.counters.accuracy == 1.0
    assert torch.equal(summary.counters.confusion, 2 * torch.eye(3, dtype=torch.int64))
    assert summary.updates == 12 * 3  # 12 images in updates of 5, 5 and 2
    rows = read_metrics(config.out / "metrics.csv")
    assert [r["split"] for r in rows] == ["val"] + ["train", "val"] * 12
    assert float(rows[-1]["accuracy"]) == 1.0
    assert list((config.out / "tensorboard").glob("events.*"))


def test_a_resumed_run_repeats_the_uninterrupted_one(labelled, tmp_path):
    """With every randomness: drop path, dropout, mixup, cutmix."""
    config = finetuning(labelled, tmp_path / "whole", save_every=1, keep=100)
    Finetuner(config).fit()
    again = dataclasses.replace(config, out=tmp_path / "again", resume=True)
    shutil.copytree(config.out, again.out)
    for late in (3, 4, 5, 6):
        (again.out / "checkpoints" / f"step-{late:08d}.pt").unlink()
    Finetuner(again).fit()
    one, other = (
        checkpoint.load(c.out / "checkpoints" / checkpoint.LAST, "finetune")
        for c in (config, again)
    )
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    assert one["counters"]["accuracy"] == other["counters"]["accuracy"]


def test_layer_decay_slows_what_lies_deeper(tmp_path):
    encoder = build_encoder(
        "beit_base_patch16_224",
        img_size=(32, 32),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        depth=3,
        embed_dim=24,
        num_heads=2,
    )
    model = Classifier(encoder, 5)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scales["head.weight"] == scales["head.bias"] == 1
    for block, scale in ((0, 1 / 8), (1, 1 / 4), (2, 1 / 2)):
        inside = {s for n, s in scales.items() if n.startswith(f"encoder.backbone.blocks.{block}.")}
        assert inside == {scale}
    assert scales["encoder.backbone.patch_embed.proj.weight"] == 1 / 16
    assert scales["encoder.backbone.cls_token"] == 1 / 16
    assert (decays["head.weight"], decays["head.bias"]) == (0.05, 0)
    assert decays["encoder.backbone.cls_token"] == 0
    assert "encoder.mask_token" not in scales
    assert len(scales) == len(names) - 1


def test_the_loss_is_smoothed_cross_entropy(labelled, tmp_path):
    """(1 - s) times that of the class, and s times the mean over all classes."""
    config = finetuning(
        labelled, tmp_path / "run", mixup=0.0, cutmix=0.0, drop_path=0.0, smoothing=0.3
    )
    trainer = Finetuner(config)
    trainer.model.eval()
    batch = next(trainer._batches())
    loss = trainer.pass_loss(batch, 0)
    logs = trainer.model(batch.images).double().log_softmax(1)
    labels = trainer.classes.train.labels[batch.sources]
    right = logs[torch.arange(len(labels)), labels]
    expected = -(0.7 * right + 0.3 * logs.mean(1)).mean()
    plain = F.cross_entropy(trainer.model(batch.images), labels, label_smoothing=0.3)
    assert_within_budget(loss, plain, expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_mixing_mixes_labels_as_pixels(mixup, cutmix):
    torch.manual_seed(0)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16) * 50
    for _ in range(10):
        mixed, target = mixing(mixup, cutmix)(images.clone(), F.one_hot(torch.arange(4), 4).float())
        assert target.sum(1).tolist() == pytest.approx([1.0] * 4)
        # one colour a class: the mean tells the classes' shares
        shares = target @ (torch.arange(4.0) * 50)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares)
    assert mixing(0, 0) is None


def test_labels_follow_the_image_that_stands_in(labelled, tmp_path):
    for path in sorted((labelled / "dark").iterdir()):
        path.write_bytes(b"")
    trainer = Finetuner(finetuning(labelled, tmp_path / "run", val_data=labelled, batch_size=18))
    batch = next(trainer._batches())
    labels = trainer.classes.train.labels[batch.sources]
    assert 0 not in labels
    for image, label in zip(batch.images, labels, strict=True):
        assert image.float().mean().item() == pytest.approx(40 + 80 * label.item(), abs=15)


FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 3, "reg_tokens": 2}),
    "beit": ("beit_base_patch16_224", {"patch_size": 8, "depth": 3}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 2), "num_heads": (2, 2)}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_timm(family):
    """Against timm's own forward pass on normalised pixels, hooks read by hand."""
    name, arguments = FAMILIES[family]
    mean, std = channel_statistics(3)
    torch.manual_seed(0)
    options = {"img_size": (32, 32), "mean": mean, "std": std, "embed_dim": 24}
    arguments = {**arguments, "num_heads": arguments.get("num_heads", 2)}
    encoder = build_encoder(name, **options, **arguments).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    ours = block_features(encoder, images, [1, 0, 2])

    def by_hand(model) -> list[torch.Tensor]:
        backbone, seen = model.backbone, []
        prefix = {"vit": 3, "beit": 1, "swin": 0}[family]
        hooks = [
            block.register_forward_hook(lambda _m, _i, output: seen.append(output))
            for block in model.blocks()
        ]
        with torch.no_grad():
            last = backbone.forward_features(normalized(images, model.mean, model.std))
        for hook in hooks:
            hook.remove()
        tokens = [x.flatten(1, -2)[:, prefix:] for x in (seen[1], seen[0], last)]
        return [x.mean(1) for x in tokens]

    plain = by_hand(encoder)
    exact = by_hand(encoder.double())
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert_within_budget(mine, theirs, truth)


def test_probing_blocks(labelled, pretrained, tmp_path):
    config = probing(labelled, tmp_path / "probe", blocks=(0,), checkpoint=pretrained)
    classes, results = probe(config)
    assert [r.block for r in results] == [1, 2]
    assert results[-1].linear == results[-1].neighbours == 1.0
    assert results[-1].confusion.tolist() == np.eye(3, dtype=int).tolist()
    rows = list(csv.DictReader((config.out / "probe.csv").open()))
    assert [(row["block"], float(row["linear"])) for row in rows] == [
        (str(r.block), r.linear) for r in results
    ]
    assert len(classes.test.paths) == 3
    # labels that say nothing about the images give an answer no better than chance
    for number, path in enumerate(sorted(labelled.glob("*/*.png"))):
        target = tmp_path / "mixed" / f"class{number % 3}" / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    _, (chance,) = probe(dataclasses.replace(config, data=tmp_path / "mixed", blocks=()))
    assert chance.linear < 1.0
    with pytest.raises(UserError, match="has blocks 1 to 2"):
        probe(dataclasses.replace(config, blocks=(3,)))


def test_probing_leaves_out_what_cannot_be_read(labelled, tmp_path, capsys):
    for path in [*labelled.glob("dark/*"), labelled / "gray" / "3.png"]:
        path.write_bytes(b"")
    config = probing(labelled, tmp_path / "probe", val_data=labelled, batch_size=4)
    _, (result,) = probe(config)
    assert result.confusion.sum(1).tolist() == [0, 5, 6]
    assert capsys.readouterr().err.count("left out") == 2 * 7
    for path in labelled.glob("gray/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="only images of class 'light' can be read"):
        probe(config)


def test_random_weights_are_those_of_the_seed(labelled, tmp_path):
    first, again, other = (
        start(*completed(probing(labelled, tmp_path)))
        for seed in (0, 0, 1)
        if torch.manual_seed(seed)
    )
    state = first.state_dict()
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in state.items())
    assert not torch.equal(first.mask_token, other.mask_token)


def flags(**values: object) -> list[str]:
    return [s for n, v in values.items() for s in (f"--{n.replace('_', '-')}", *str(v).split())]


SMALL = flags(encoder="cnn", img_size=16, workers=0, device="cpu", out="OUT")


def keep_one(folder: Path) -> None:
    for path in sorted(folder.glob("dark/*"))[1:]:
        path.unlink()


def keep_none(folder: Path) -> None:
    for path in folder.glob("dark/*"):
        path.unlink()


def keep_no_folder(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


#: what is done to the folder, arguments besides --data, what the line says
MISTAKES = {
    "one image": (keep_one, (), "class 'dark' has one image"),
    "empty class": (keep_none, (), "dark: it holds no file that ends in"),
    "what to do": (keep_none, (), "add images of this class or remove its folder"),
    "no classes": (keep_no_folder, (), "holds 0 class folders"),
    "few": (None, ("--per-class", "9"), "fewer than --per-class 9"),
    "test classes": (None, ("--val-data", "OTHER"), "class 'light' is in"),
    "no checkpoint": (None, ("--checkpoint", "NOWHERE"), "no such checkpoint"),
    "other encoder": (
        None,
        ("--checkpoint", "PRETRAINED"),
        "holds an encoder with --encoder vit_tiny_patch16_224, not cnn: leave out --encoder",
    ),
    "share": (None, ("--val-share", "1.5"), "--val-share must be"),
}


@pytest.mark.parametrize("command", ["finetune", "probe"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_cost_one_line(command, mistake, labelled, pretrained, tmp_path, capsys):
    spoil, arguments, words = MISTAKES[mistake]
    shutil.copytree(labelled, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "light")
    if spoil:
        spoil(labelled)
    places = {"OUT": tmp_path / "out", "OTHER": tmp_path / "other"}
    places |= {"NOWHERE": tmp_path / "nowhere.pt", "PRETRAINED": pretrained}
    capsys.readouterr()
    arguments = [command, "--data", labelled, *SMALL, *arguments]
    status = main([str(places.get(a, a)) for a in arguments])
    err = capsys.readouterr().err
    assert (status, err.count("\n")) == (2, 1), err
    assert err.startswith("simmim: ")
    assert words in err


def test_nothing_to_start_from(labelled, pretrained, tmp_path, capsys):
    assert main(["probe", "--data", str(labelled)]) == 2
    assert "--checkpoint FILE, or --encoder NAME" in capsys.readouterr().err
    run = Finetuner(finetuning(labelled, tmp_path / "run")).fit()
    capsys.readouterr()
    assert main(["finetune", "--data", str(labelled), "--checkpoint", str(run.checkpoint)]) == 2
    assert "was written by simmim finetune: give one of simmim pretrain" in capsys.readouterr().err


def test_commands_write_what_they_name(labelled, tmp_path, capsys):
    encoder = flags(img_size=16, encoder="cnn", workers=0, device="cpu", data=labelled)
    runs = {
        "finetune": flags(
            epochs=2, batch_size=8, precision="32-true", drop_path=0, warmup_epochs=0
        ),
        "probe": flags(blocks="1 3"),
    }
    for command, arguments in runs.items():
        out = tmp_path / command
        assert main([command, *encoder, *arguments, "--out", str(out)]) == 0
        text = capsys.readouterr().out
        named = [line.split()[-1] for line in text.splitlines() if line.startswith("  ")]
        written = [Path(name) for name in named if name.startswith("/")]
        assert len(written) == {"finetune": 6, "probe": 3}[command]
        for path in written:
            assert path.exists(), path
        assert (out / "confusion.png").stat().st_size > 1000
