"""Runs in float16: a scaled loss, updates that overflow and are skipped, and runs that never recover."""

from __future__ import annotations

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch

from simmim.cli import main
from simmim.errors import UserError
from simmim.storage import checkpoint
from simmim.training.metrics import read_metrics
from simmim.training.pretrain import Trainer

from .labels import finetuning
from .runs import train_together
from .test_endings import config_of
from .test_resume import assert_same_run, step_of

#: two epochs
UPDATES = 16


def half(photographs, out, **changes):
    settings = {"precision": "16-mixed", "log_every": 1, "val_count": 0, **changes}
    return config_of(photographs, out, **settings)


def scaled_by(trainer: Trainer, scale: float, growth_interval: int = 2000) -> Trainer:
    """``trainer`` with another scaler, whose first scale may be too large for float16."""
    trainer.precision.scaler = torch.amp.GradScaler(
        "cpu", init_scale=scale, growth_interval=growth_interval
    )
    return trainer


def test_products_are_float16_on_the_cpu(photographs, tmp_path):
    trainer = Trainer(half(photographs, tmp_path / "run"))
    types = set()
    block = trainer.model.module.encoder.blocks()[0]
    block.attn.qkv.register_forward_hook(lambda *call: types.add(call[2].dtype))
    summary = trainer.fit()
    assert types == {torch.float16} and summary.counters.skipped == 0
    state = checkpoint.load(summary.checkpoint)
    assert {value.dtype for value in state["model"].values()} == {torch.float32}
    assert state["scaler"]["scale"] == 65536 and state["scaler"]["_growth_tracker"] == UPDATES


def test_the_first_updates_overflow(photographs, tmp_path, capsys):
    """They change nothing but the scale; the schedule goes on."""
    trainer = scaled_by(Trainer(half(photographs, tmp_path / "run")), 2.0**28)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    changed, rates = [], []
    step = trainer.optimizer.step

    def watched():
        step()
        after = [p.detach().clone() for p in trainer.model.parameters()]
        changed.append(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        before[:] = after

    trainer.optimizer.step = watched
    summary = trainer.fit()
    skipped = changed.index(True)
    assert 0 < skipped < UPDATES - 2 and all(changed[skipped:])
    assert summary.counters.skipped == skipped and summary.updates == UPDATES
    state = checkpoint.load(summary.checkpoint)
    assert state["scaler"]["scale"] == 2.0 ** (28 - skipped)
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {
        UPDATES - skipped
    }
    # rows of what was not skipped, their rates those of a run without an overflow
    rows = read_metrics(tmp_path / "run/metrics.csv")
    assert [int(row["update"]) for row in rows] == list(range(skipped + 1, UPDATES + 1))
    assert {row["skipped"] for row in rows} == {str(skipped)}
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("loss", "grad_norm"))
    error = capsys.readouterr().err
    assert error.count("where the gradient overflowed float16") == skipped
    assert f"the loss is now scaled by {2.0 ** (28 - skipped):g}" in error
    calm = Trainer(half(photographs, tmp_path / "calm", precision="32-true"))
    calm.fit()
    expected = [float(row["lr"]) for row in read_metrics(tmp_path / "calm/metrics.csv")]
    assert rates == expected


@pytest.mark.slow
@pytest.mark.parametrize("done", [1, 3, 7])
def test_resumed_with_the_bits_of_the_scale(photographs, tmp_path, done):
    """In the middle of the skipped updates, of the growth of the scale, and of a row of the log."""
    config = half(photographs, tmp_path / "whole", save_every=1, keep=100, log_every=3)
    whole = scaled_by(Trainer(config), 2.0**24, growth_interval=2).fit()
    assert 2 < whole.counters.skipped < UPDATES
    shutil.copytree(tmp_path / "whole", tmp_path / "run", symlinks=True)
    for path in checkpoint.numbered(tmp_path / "run/checkpoints"):
        if checkpoint.step_of(path) > done:
            path.unlink()
    (tmp_path / "run/checkpoints/last.pt").unlink()
    changes = {"save_every": 100, "keep": 100, "log_every": 3, "resume": True}
    trainer = Trainer(half(photographs, tmp_path / "run", **changes))
    assert trainer.update == done
    assert trainer.fit().counters == whole.counters
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradients_are_clipped_after_the_scale_is_gone(photographs, tmp_path, clip):
    norms = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        out = tmp_path / precision
        trainer = Trainer(half(photographs, out, precision=precision, clip=clip, epochs=1))
        applied, step = [], trainer.optimizer.step

        def watched(trainer=trainer, applied=applied, step=step):
            gradients = [p.grad for p in trainer.model.parameters()]
            applied.append(torch.nn.utils.get_total_norm(gradients).item())
            step()

        trainer.optimizer.step = watched
        trainer.fit()
        norms[precision] = [float(r["grad_norm"]) for r in read_metrics(out / "metrics.csv")]
        assert applied == pytest.approx([clip] * 8 if clip else norms[precision], rel=1e-4)
    exact = norms["32-true"][0]
    assert abs(norms["16-mixed"][0] - exact) < abs(norms["bf16-mixed"][0] - exact)


def spoilt(trainer: Trainer, *, first: int, last: int) -> Trainer:
    """A run whose loss is infinite in some updates."""
    genuine = trainer.pass_loss

    def pass_loss(batch, epoch):
        value = genuine(batch, epoch)
        return value * math.inf if first <= trainer.update <= last else value

    trainer.pass_loss = pass_loss
    return trainer


def test_a_loss_that_is_infinite_once_does_not_end_the_run(photographs, tmp_path, capsys):
    trainer = spoilt(Trainer(half(photographs, tmp_path / "run")), first=4, last=5)
    assert trainer.fit().counters.skipped == 2
    assert "skipped 1 update by update 5, where the gradient" in capsys.readouterr().err
    state = checkpoint.load(tmp_path / "run/checkpoints/last.pt")
    assert state["scaler"]["scale"] == 65536 / 4 and state["counters"]["skipped"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [1, 7])
def test_a_run_that_never_recovers_ends(photographs, tmp_path, log_every):
    config = half(photographs, tmp_path / "run", epochs=6, save_every=3, log_every=log_every)
    trainer = spoilt(Trainer(config), first=4, last=10**6)
    with pytest.raises(UserError, match=r"no longer finite by update 2.*32-true"):
        trainer.fit()
    # the scale is 1 after 16 skipped updates, and what was saved until then can be gone on from
    assert 20 <= trainer.update <= 23 and step_of(tmp_path / "run") >= 18
    calm = half(photographs, tmp_path / "run", epochs=6, precision="32-true", resume=True)
    assert Trainer(calm).fit().updates == 48


def test_a_short_run_without_any_update_is_no_success(photographs, tmp_path):
    trainer = spoilt(Trainer(half(photographs, tmp_path / "run")), first=0, last=10**6)
    with pytest.raises(UserError, match="no longer finite by update 16; no checkpoint was written"):
        trainer.fit()


def test_precisions_may_change_on_resuming(photographs, tmp_path):
    for epochs, precision in enumerate(("16-mixed", "32-true", "16-mixed", "bf16-mixed"), 1):
        config = half(
            photographs, tmp_path / "run", precision=precision, epochs=epochs, resume=True
        )
        state = checkpoint.load(Trainer(config).fit().checkpoint)
        assert bool(state["scaler"]) == (precision == "16-mixed")


def test_fine_tuning(labelled, tmp_path):
    from simmim.training.finetune import Finetuner

    config = finetuning(labelled, tmp_path / "run", precision="16-mixed", lr=1e-3)
    summary = Finetuner(config).fit()
    assert summary.counters.skipped == 0 and math.isfinite(summary.counters.last_validation)


def test_it_is_said_at_the_end(photographs, tmp_path, capsys, monkeypatch):
    from simmim.training.mixed_precision import MixedPrecision

    genuine = MixedPrecision.__init__

    def init(self, precision, device):
        genuine(self, precision, device)
        self.scaler = torch.amp.GradScaler(device, init_scale=2.0**26)

    monkeypatch.setattr(MixedPrecision, "__init__", init)
    arguments = ("pretrain", "--data", photographs, "--out", tmp_path / "run", "--epochs", 10)
    small = ("--encoder", "vit_tiny_patch16_224", "--encoder-args", "depth", 2, "embed_dim", 48)
    more = (
        "--batch-size",
        4,
        "--img-size",
        32,
        "--mask-unit",
        16,
        "--device",
        "cpu",
        "--workers",
        0,
    )
    assert main(list(map(str, (*arguments, *small, *more, "--precision", "16-mixed")))) == 0
    assert "of them skipped, where the gradient overflowed float16" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_skip_the_same_updates(photographs, tmp_path):
    """With the weights in each of them, and spread over both."""
    first = half(photographs, tmp_path / "first", epochs=1, batch_size=4)
    last = Trainer(first).fit().checkpoint.resolve()
    state = checkpoint.load(last)
    state["scaler"]["scale"] = 2.0**21
    checkpoint.write(last, state)
    ends = {}
    for name, shard in (("whole", False), ("spread", True)):
        shutil.copytree(tmp_path / "first", tmp_path / name, symlinks=True)
        config = half(photographs, tmp_path / name, shard=shard, resume=True)
        assert train_together(dataclasses.replace(config, epochs=3), 2) == [0, 0]
        ends[name] = checkpoint.load(tmp_path / name / "checkpoints/last.pt")
    whole, spread = ends["whole"], ends["spread"]
    assert whole["scaler"] == spread["scaler"]
    skipped = whole["counters"]["skipped"]
    assert 0 < skipped < 8 and skipped == spread["counters"]["skipped"]
    assert whole["scaler"]["scale"] == 2.0 ** (21 - skipped)
    assert all(torch.equal(value, spread["model"][name]) for name, value in whole["model"].items())


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("plain", [False, True])
def test_images_are_not_rounded_before_they_are_normalised(tmp_path, precision, plain):
    """Numbers of a large mean and a small deviation, as those of pressures, which float16 cannot hold and
    bfloat16 rounds to a few values."""
    noise = np.random.default_rng(0).normal(size=(12, 32, 32, 1))
    np.save(tmp_path / "x.npy", (100_000 + 5 * noise).astype(np.float32))
    losses = {}
    for kind in ("32-true", precision):
        config = half(
            tmp_path / "x.npy", tmp_path / kind, precision=kind, plain=plain, epochs=1,
            val_count=4, channels=1, pixel_type="float32", mean=(1e5,), std=(5.0,),
        )  # fmt: skip
        losses[kind] = Trainer(config).fit().counters.first_validation
    assert losses[precision] == pytest.approx(losses["32-true"], rel=2**-8)
