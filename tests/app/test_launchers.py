"""Processes that srun starts train as one run, as those of torchrun do; a job's single one alone."""

import dataclasses
import os

import pytest

from simmim import cores, launchers
from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.launchers import describe_as_torchrun, is_started_by_srun
from simmim.training.metrics import read_metrics

from .conftest import TINY
from .runs import start, train_together

#: what Slurm 22.05 gave the second task of `srun -n2`, as far as Lightning or this project reads it
TASK = {
    "SLURM_JOB_ID": "31",
    "SLURM_JOB_NAME": "train",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "node7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "node7",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}
TORCHRUN = {"RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
TORCHRUN |= {"MASTER_ADDR", "MASTER_PORT"}


@pytest.fixture
def described(monkeypatch):
    """What a task is told: torchrun's variables, made of Slurm's with ``changes``."""
    monkeypatch.setattr(launchers, "_has_terminal", lambda: False)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def describe(**changes: str) -> dict[str, str]:
        for name in TORCHRUN | {"TORCHELASTIC_RUN_ID"}:
            os.environ.pop(name, None)
        os.environ.update(TASK | {f"SLURM_{name}": value for name, value in changes.items()})
        describe_as_torchrun()
        return {name: os.environ[name] for name in TORCHRUN & os.environ.keys()}

    return describe


def test_variables(described):
    one = {"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0", "WORLD_SIZE": "2"}
    one |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "15312"}
    assert described() == one
    nodes = {"PROCID": "5", "NODEID": "2", "STEP_NUM_TASKS": "8"}
    several = described(STEP_TASKS_PER_NODE="2(x4)", STEP_NODELIST="node[7-10]", **nodes)
    assert several["WORLD_SIZE"] == "8" and several["LOCAL_WORLD_SIZE"] == "2"
    assert several["GROUP_RANK"] == "2" and "MASTER_ADDR" not in several
    with pytest.raises(UserError, match=r"started 2\(x3\),1 tasks on its nodes: give --ntasks-per"):
        described(STEP_TASKS_PER_NODE="2(x3),1", STEP_NUM_TASKS="7")


def test_who_is_alone(described, monkeypatch):
    """A job's script, a step of one task, torchrun's processes, and a shell of srun --pty."""
    assert described() and is_started_by_srun()
    monkeypatch.setattr(cores, "visible_cores", lambda: 8)
    monkeypatch.setattr(cores, "core_limit", lambda: 8.0)
    assert cores.usable_cores() == 4
    assert not described(STEP_NUM_TASKS="1")
    monkeypatch.setattr(launchers, "_has_terminal", lambda: True)
    assert not described()
    monkeypatch.setattr(launchers, "_has_terminal", lambda: False)
    described()
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    assert not is_started_by_srun()


def test_other_commands_run_in_the_first_process(described, photographs, tmp_path, capsys):
    for task in (1, 0):
        described(PROCID=str(task))
        out = tmp_path / "stats.json"
        assert main(["stats", "--data", str(photographs), "--out", str(out)]) == 0
        said = "".join(capsys.readouterr())
        assert (out.exists(), "stats runs in one of the 2 processes" in said) == (task == 0,) * 2


@pytest.mark.slow
def test_runs(photographs, tmp_path):
    settings = {**TINY, "batch_size": 2, "epochs": 1, "val_count": 0, "log_every": 1}
    config = PretrainConfig(data=photographs, **settings)
    torchrun, srun, script = (
        dataclasses.replace(config, out=tmp_path / name) for name in ("torchrun", "srun", "script")
    )
    assert train_together(torchrun, 2) == [0, 0]
    tasks = [
        start(srun, None, {**TASK, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)})
        for n in range(2)
    ]
    # the script of a job for two tasks, where Fabric would look for the second one
    steps = {name: value for name, value in TASK.items() if "STEP" not in name}
    tasks.append(start(script, None, steps | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}))
    for task in tasks:
        task.join(300)
    assert [task.exitcode for task in tasks] == [0, 0, 0]
    losses = {
        out: [row["loss"] for row in read_metrics(tmp_path / out / "metrics.csv")]
        for out in ("torchrun", "srun", "script")
    }
    assert losses["srun"] and losses["srun"] == losses["torchrun"]
    assert len(losses["script"]) == 2 * len(losses["srun"])


def test_a_number_that_another_program_left_silences_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    assert main(["stats", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "x.json")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
