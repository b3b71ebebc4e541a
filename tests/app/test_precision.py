"""``--precision auto`` takes 16-bit types only where their products are fast, and is kept on resuming."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.training import mixed_precision
from simmim.training.mixed_precision import choose_precision
from simmim.training.pretrain import Trainer

from .conftest import TINY, environment


@pytest.mark.parametrize(
    ("capability", "instructions", "chosen"),
    [
        ("AVX512", True, "bf16-mixed"),  # Zen 4, Sapphire Rapids
        ("AVX512", False, "32-true"),
        ("AVX2", True, "32-true"),  # as ATEN_CPU_CAPABILITY=avx2 allows
        ("DEFAULT", False, "32-true"),
    ],
)
def test_choice_on_cpus(capability, instructions, chosen, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    known = {"avx512_bf16": instructions} if instructions else {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert choose_precision("auto", "cpu")[0] == chosen
    precision, line = choose_precision("bf16-mixed", "cpu")
    assert (precision, "is slow" in line) == ("bf16-mixed", chosen == "32-true")
    assert choose_precision("32-true", "cpu") == ("32-true", "")


@pytest.mark.parametrize("native", [True, False])
def test_choice_on_gpus(native, monkeypatch):
    """A V100 emulates bfloat16, which PyTorch counts as supported unless it is told not to."""
    supported = lambda including_emulation=True: including_emulation or native  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", "cuda")[0] == ("bf16-mixed" if native else "16-mixed")


@pytest.mark.slow
def test_without_avx512_a_run_is_in_float32():
    """PyTorch itself, told to use no more than AVX2."""
    code = "from simmim.training.mixed_precision import choose_precision as c; print(c('auto', 'cpu')[0])"
    started = {**environment(), "ATEN_CPU_CAPABILITY": "avx2"}
    said = subprocess.run([sys.executable, "-c", code], env=started, text=True, capture_output=True)
    assert said.stdout == "32-true\n", said.stderr


def test_a_resumed_run_keeps_it(photographs, tmp_path, capsys, monkeypatch):
    """On a computer where it is slow, too: the log says so."""
    out = tmp_path / "run"
    monkeypatch.setattr(mixed_precision, "has_fast_bfloat16", lambda device: True)
    settings = {**TINY, "precision": "auto", "epochs": 1, "batch_size": 4}
    Trainer(PretrainConfig(data=photographs, out=out, **settings)).fit()
    assert "precision: bf16-mixed, as this cpu has fast products" in capsys.readouterr().err
    monkeypatch.setattr(mixed_precision, "has_fast_bfloat16", lambda device: False)
    go_on = ("pretrain", "--data", photographs, "--out", out, "--epochs", 2, "--resume")
    assert main(list(map(str, go_on))) == 0
    said = capsys.readouterr().err
    assert ", cpu, bf16-mixed, into" in said and "bf16-mixed is slow on this cpu" in said
    assert json.loads((out / "config.json").read_text())["precision"] == "bf16-mixed"


def test_this_processor_is_judged_by_what_its_kernel_says():
    flags = Path("/proc/cpuinfo").read_text().split()
    if "avx512f" not in flags or torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("needs AVX-512")
    assert mixed_precision.has_fast_bfloat16("cpu") == ("avx512_bf16" in flags)
