"""`make gpu-check` as far as a machine without a GPU can run it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, run
from benchmarks.gpu_check import Stage

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_in_one_line_that_there_is_no_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", str(tmp_path)])
    assert gpu_check.main() == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "needs a GPU" in said


@pytest.mark.slow
def test_every_kind_of_row_runs(tmp_path, monkeypatch, capsys):
    """The rows of the GPU check, at tiny sizes on this processor."""
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path), "--trial", "--rounds", "2"])
    status = run.main()
    said = capsys.readouterr().out
    assert status == 0, said[-4000:]
    assert "their times mean nothing" in said
    assert not list(tmp_path.iterdir())


def test_shares_add_up_to_less_than_the_total(tmp_path):
    stages = gpu_check.stages(tmp_path)
    assert sum(stage.share for stage in stages) < gpu_check.TOTAL < 9 * 60
    assert len({stage.name for stage in stages}) == len(stages)
    for stage in stages:
        if stage.name.startswith("ops_"):
            assert any("test_masked_loss.py" in part for part in stage.command)


def stage(name, code, share, **options):
    return Stage(name, share, [sys.executable, "-c", code], **options)


def run_stages(plan, tmp_path, total):
    results = gpu_check.run_stages(plan, tmp_path / "log", total)
    return [result.outcome for result in results], (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_stage_out_of_time_is_interrupted_and_can_still_store(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "LEAST", 0.1)
    stored = tmp_path / "stored"
    code = f"""
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "60"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(stored)!r}).write_text("rows")
    print("said at the end")
"""
    plan = [stage("long", code, 4), stage("next", "print('ran')", 2)]
    begin = time.monotonic()
    outcomes, log = run_stages(plan, tmp_path, 10)
    assert time.monotonic() - begin < 30
    assert outcomes == ["out of time", "passed"]
    assert stored.read_text() == "rows"
    assert "said at the end" in log and "ran" in log
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or ") Z " in state.read_text()


@pytest.mark.slow
def test_a_stage_gets_its_share_however_long_the_others_are(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "LEAST", 0.1)
    plan = [stage("long", "import time; time.sleep(60)", 1), stage("next", "print('ran')", 6)]
    outcomes, _ = run_stages(plan, tmp_path, 8)
    assert outcomes == ["out of time", "passed"]


def test_what_fails_and_what_is_missing_is_named(tmp_path):
    plan = [
        stage("fails", "raise SystemExit(3)", 10),
        Stage("tool", 10, ["no-such-program"]),
        stage("environment", "import os; print(os.environ['SET'])", 10, environment={"SET": "yes"}),
    ]
    outcomes, log = run_stages(plan, tmp_path, 60)
    assert outcomes == ["failed", "not reached: no-such-program is not installed", "passed"]
    assert "\nyes\n" in log


def test_the_programs_of_the_environment_are_found(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for name in ("PATH", "PYTHONPATH", "SIMMIM_CUDA_ARCHS"):
        monkeypatch.setenv(name, "before")
    monkeypatch.delenv("SIMMIM_CUDA_ARCHS")
    gpu_check.set_environment()
    assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "before"]
    assert str(ROOT / "python") in os.environ["PYTHONPATH"].split(os.pathsep)
    assert os.environ["SIMMIM_CUDA_ARCHS"] == "90"
    monkeypatch.delenv("SIMMIM_CUDA_ARCHS")


def test_the_checkers_see_single_tensors(tmp_path):
    checks = [s for s in gpu_check.stages(tmp_path) if s.command[0] == "compute-sanitizer"]
    assert [stage.name for stage in checks] == ["memcheck", "racecheck"]
    for stage in checks:
        assert stage.environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@pytest.mark.slow
def test_an_interrupted_run_of_rows_stores_them(tmp_path):
    """The command that the check runs, interrupted as it does it."""
    command = [sys.executable, "-m", "benchmarks.run", str(tmp_path), "--ops", "call_overhead"]
    process = subprocess.Popen(
        [*command, "--rounds", "100000"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    file = tmp_path / "call_overhead.json"
    assert "Ctrl-C" in process.stdout.readline()
    time.sleep(1)
    process.send_signal(2)
    process.communicate(timeout=300)
    assert "not measured" in file.read_text()
