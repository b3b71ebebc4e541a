"""Numbers that are not finite are never saved, and the advice that is printed works."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from simmim.cli import main
from simmim.errors import UserError
from simmim.storage import checkpoint
from simmim.training.failures import first_not_finite
from simmim.training.pretrain import Trainer

from .labels import finetuning
from .test_cli import FAST
from .test_endings import config_of, step_of


def pretrain(data: Path, out: Path, *more: object) -> list[str]:
    """Six updates: three epochs of two."""
    flags = ("--epochs", 3, "--save-every", 1, "--log-every", 50, *more)
    return [str(a) for a in ("pretrain", "--data", data, "--out", out, *FAST, *flags)]


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def assert_finite(out: Path) -> None:
    for path in (out / "checkpoints").glob("step-*.pt"):
        state = checkpoint.load(path)
        assert first_not_finite({key: state[key] for key in ("model", "optimizer")}) is None, path
        assert math.isfinite(state["loss_sum"]) and math.isfinite(state["norm_sum"])


def test_the_advice_works_when_it_is_followed(photographs, tmp_path, capsys):
    """A learning rate at which the first weights are infinite; lowered and resumed as advised."""
    out = tmp_path / "run"
    # the warm-up begins with an update that does no harm
    grown = ("--warmup-epochs", 1.5, "--lr", 1e42)
    assert main(pretrain(photographs, out, *grown, "--precision", "bf16-mixed")) == 2
    line = last_line(capsys)
    newest = checkpoint.numbered(out / "checkpoints")[-1]
    assert step_of(out) == 1
    assert f"{newest}, from which --resume goes on; lower --lr (now 1e+42), or use" in line
    assert "is no longer finite by update 2" in line
    assert_finite(out)
    calm = ("--warmup-epochs", 1.5, "--lr", 1e-3, "--precision", "32-true", "--resume")
    assert main(pretrain(photographs, out, *calm)) == 0
    log = capsys.readouterr().err
    assert "from update 1 on: --lr 0.001 instead of 1e+42, --precision 32-true instead of" in log
    assert step_of(out) == 6
    assert_finite(out)


def test_the_advice_where_nothing_was_saved(photographs, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(pretrain(photographs, out, "--lr", 1e40)) == 2
    assert "no checkpoint was written yet; lower --lr (now 1e+40)" in last_line(capsys)
    assert step_of(out) == -1
    assert main(pretrain(photographs, out, "--lr", 1e-3, "--resume")) == 0
    assert_finite(out)


@pytest.mark.slow
def test_the_advice_to_go_back_further(photographs, tmp_path, capsys):
    """The newest checkpoint may be spoilt although its numbers are finite."""
    out = tmp_path / "run"
    assert main(pretrain(photographs, out, "--lr", 1e-3, "--epochs", 2)) == 0
    assert main(pretrain(photographs, out, "--lr", 1e40, "--resume")) == 2
    assert step_of(out) == 5
    assert "delete this checkpoint to go on from the one before" in last_line(capsys)
    assert main(pretrain(photographs, out, "--lr", 1e-4, "--resume")) == 2
    checkpoint.numbered(out / "checkpoints")[-1].unlink()
    assert main(pretrain(photographs, out, "--lr", 1e-4, "--resume")) == 0
    assert "from update 4 on: --epochs 3 instead of 2, --lr 0.0001" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "clip"),
    [("loss", 5.0), ("gradient", 0.0), ("gradient", 5.0), ("weight", 5.0), ("moment", 5.0)],
)
def test_the_last_update_counts_too(photographs, tmp_path, where, clip):
    config = config_of(photographs, tmp_path / "run", clip=clip, save_every=4, epochs=1)
    trainer = Trainer(config)
    last = trainer.order.updates - 1
    loss, step = trainer.pass_loss, trainer.optimizer.step

    def at_the_end(batch, epoch):
        value = loss(batch, epoch)
        if trainer.update == last and where == "loss":
            value = value * math.inf
        if trainer.update == last and where == "gradient":
            value.register_hook(lambda gradient: gradient * math.inf)
        return value

    def step_at_the_end():
        step()
        if trainer.update == last:
            weight = next(trainer.model.module.parameters())
            with torch.no_grad():
                if where == "weight":
                    weight.view(-1)[0] = math.nan
                if where == "moment":
                    trainer.optimizer.state[weight]["exp_avg_sq"].view(-1)[0] = math.inf

    trainer.pass_loss, trainer.optimizer.step = at_the_end, step_at_the_end
    with pytest.raises(UserError, match="no longer finite by update 6"):
        trainer.fit()
    assert step_of(tmp_path / "run") == 4
    assert_finite(tmp_path / "run")


@pytest.mark.slow
def test_a_validation_that_is_not_finite(photographs, tmp_path, monkeypatch):
    trainer = Trainer(config_of(photographs, tmp_path / "run", save_every=2))
    genuine = trainer.model.module.forward

    def forward(images, mask, reduction="mean", with_data=None):
        value = genuine(images, mask, reduction, with_data)
        return value * math.nan if reduction == "none" and trainer.update == 6 else value

    monkeypatch.setattr(trainer.model.module, "forward", forward)
    with pytest.raises(UserError, match="the validation loss is no longer finite by update 6"):
        trainer.fit()
    assert step_of(tmp_path / "run") == 4


def test_fine_tuning_too(labelled, tmp_path):
    from simmim.training.finetune import Finetuner

    with pytest.raises(UserError, match="is no longer finite"):
        Finetuner(finetuning(labelled, tmp_path / "run", lr=1e40)).fit()
    assert step_of(tmp_path / "run") == -1


def test_names_of_what_is_not_finite():
    state = {"a": torch.ones(2), "b": [{"c": torch.tensor([1.0, math.nan])}], "n": torch.arange(2)}
    assert first_not_finite(state) == "b.0.c"
    state["b"][0]["c"] = torch.empty(0)
    assert first_not_finite(state) is None


@pytest.mark.slow
def test_reading_the_sums_costs_no_synchronisation_between_rows(photographs, tmp_path):
    """The host reads sums where a row or a checkpoint is written, never in between."""
    trainer = Trainer(config_of(photographs, tmp_path / "run", log_every=6, val_count=0))
    genuine, updates = trainer._read_sums, []

    def read():
        updates.append(trainer.update)
        return genuine()

    trainer._read_sums = read
    trainer.fit()
    # a row and, at the end, a checkpoint
    assert updates == [6, 12, 16, 16]


def test_the_log_line_names_each_change(photographs, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(pretrain(photographs, out, "--epochs", 1)) == 0
    assert main(pretrain(photographs, out, "--epochs", 2, "--resume")) == 0
    capsys.readouterr()
    assert main(pretrain(photographs, out, "--epochs", 3, "--schedule", "step", "--resume")) == 0
    lines = re.findall(r"from update \d+ on: .*", capsys.readouterr().err)
    assert [line.partition(" (")[0] for line in lines] == [
        "from update 2 on: --epochs 2 instead of 1; the schedule is now that of a run of 2 epochs from "
        "its start",
        "from update 4 on: --epochs 3 instead of 2, --schedule step instead of cosine; the schedule is "
        "now that of a run of 3 epochs from its start",
    ]
    assert "learning rate" in lines[0]
