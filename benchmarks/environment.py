"""What the figures of a run depend on; nothing that names the machine or its user."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path

import torch

import simmim_kernels

ROOT = Path(__file__).parents[1]


def environment(device: str) -> dict[str, str | int]:
    """Device, threads, versions, commit and date, as every results file holds them."""
    from simmim_kernels.backends import cpu

    facts: dict[str, str | int] = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": getattr(cpu.kernels, "isa", "none"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "simmim_kernels": simmim_kernels.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    if device == "cuda":
        import triton

        facts |= {"gpu": torch.cuda.get_device_name(), "triton": triton.__version__}
        facts["cuda"] = torch.version.cuda
    return facts


def commit() -> str:
    """The commit of the tree, or `unknown` where it can't be found out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # git is not installed
        found = ""
    return found or "unknown"


def processor() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def machine(environment: dict[str, str | int]) -> str:
    """The name of the folder for a machine's results: one processor's name may stand for several
    generations, with other instruction sets."""
    of_cpu = "{processor} {instruction_set} {threads} threads".format_map(environment)
    name = environment.get("gpu") or of_cpu
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
