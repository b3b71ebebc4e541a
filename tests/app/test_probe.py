"""Probing: what features are measured, and on which images."""

from __future__ import annotations

import csv
import dataclasses
import shutil

import numpy as np
import pytest
import torch

from simmim.cli import main
from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.evaluation import probe as probe_module
from simmim.evaluation.probe import measure, probe
from simmim.models.classifier import block_features, completed, start
from simmim.models.encoders import build_encoder
from simmim.models.published import normalized
from simmim.models.simmim import channel_statistics
from simmim.training.finetune import Finetuner
from simmim.training.pretrain import Trainer

from ..budget import assert_within_budget
from .conftest import TINY
from .labels import probing

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


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_images_are_read_as_for_simmim_features(command, labelled, tmp_path, monkeypatch):
    """As the checkpoint was trained: with bicubic crops, of test images a smaller part."""
    settings = {**TINY, "data": labelled, "out": tmp_path / "run", "epochs": 1, "batch_size": 8}
    settings |= {"interpolation": "bicubic"}
    if command == "pretrain":
        trainer = Trainer(PretrainConfig(**settings))
    else:
        del settings["mask_unit"]
        trainer = Finetuner(FinetuneConfig(**settings, test_crop=0.7))
    checkpoint, measured, genuine = trainer.fit().checkpoint, [], probe_module.measure
    monkeypatch.setattr(
        probe_module, "measure", lambda *a: measured.extend((a[1], a[3])) or genuine(*a)
    )
    probe(probing(labelled, tmp_path / "probe", checkpoint=checkpoint))
    out = tmp_path / "features.npy"
    start = ("features", "--checkpoint", checkpoint, "--data", labelled, "--out", out)
    assert main([*map(str, start), "--workers", "0", "--device", "cpu"]) == 0
    found, expected = np.concatenate(measured), np.load(out)
    order = [array[np.lexsort(array.T)] for array in (found, expected)]
    np.testing.assert_allclose(*order, rtol=1e-5, atol=1e-6)


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


def test_neighbours_of_features_that_are_nearly_alike(tmp_path):
    """In float32 the distances are rounding alone, and most answers are wrong."""
    labels = np.arange(60) % 3
    features = np.random.default_rng(0).normal(0, 1e-3, (60, 24))
    features[np.arange(60), labels] += 0.01
    features = (features + 100).astype(np.float32)
    train, test = np.split(features, 2)
    result = measure(
        1, train, labels[:30], test, labels[30:], 3, probing(tmp_path, tmp_path / "out")
    )
    assert result.neighbours == 1
