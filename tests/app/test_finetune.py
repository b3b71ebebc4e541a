"""Fine-tuning: what is learnt, from which weights, at which rates."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from torch.nn import functional as F

from simmim.models.classifier import Classifier
from simmim.models.encoders import build_encoder
from simmim.storage import checkpoint
from simmim.training.finetune import Finetuner, mixing
from simmim.training.metrics import read_metrics
from simmim.training.optimizer import parameter_groups
from simmim.training.reader import Reader

from ..budget import assert_within_budget
from .labels import finetuning, without


def first_batch(trainer: Finetuner):
    """The images of the first pass."""
    order = trainer.order
    return Reader(
        trainer.train_set, trainer.config, order, update=0, device=trainer.fabric.device
    ).read()


@pytest.mark.slow
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


@pytest.mark.slow
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
    batch = first_batch(trainer)
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
    batch = first_batch(trainer)
    labels = trainer.classes.train.labels[batch.sources]
    assert 0 not in labels
    for image, label in zip(batch.images, labels, strict=True):
        assert image.float().mean().item() == pytest.approx(40 + 80 * label.item(), abs=15)
