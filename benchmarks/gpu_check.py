"""`python -m benchmarks.gpu_check OUT`: build, tests and benchmarks on a machine with a GPU.

Every stage has a share of nine minutes and is ended when it is over, so that the rest still runs;
what a stage did not reach is listed. Nothing is downloaded. What the stages printed (`gpu_check.log`),
JSON and pictures stay in `OUT`, and a short table is printed last. The exit status is 0 where every stage passed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOTAL = 520  # seconds: nine minutes less what starting and ending take
BUILD = 120

# Small, for it runs under a checker that slows kernels down a hundredfold.
SANITIZED = """
import torch
from simmim_kernels import backend
from tests.gpu.cuda_cases import CASES, NAMES, missing
for name in NAMES:
    for case, (rooms, make, run) in CASES.items():
        if missing(name, rooms) is None:
            with backend(name):
                run(*make(2))
            torch.cuda.synchronize()
            print("ran", name, case)
"""


@dataclass
class Result:
    """How a stage ended: its name, `passed`, `failed`, `out of time` or a reason, and its seconds."""

    stage: str
    outcome: str
    seconds: float


class Check:
    """Runs stages one after another, each within its share of the time that is left."""

    def __init__(self, out: Path) -> None:
        self.out, self.begin, self.results = out, time.monotonic(), []
        self.log = out / "gpu_check.log"
        self.log.write_text("")

    def left(self) -> float:
        return TOTAL - (time.monotonic() - self.begin)

    def run(self, stage: str, command: list[str], share: float, **environment: str) -> bool:
        limit, start = min(share, self.left()), time.monotonic()
        if limit < 5:
            return self.note(stage, "not reached: out of time", start)
        with self.log.open("a") as log:
            log.write(f"\n==== {stage}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                outcome = "passed" if process.wait(limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                outcome = "out of time"
        self.note(stage, outcome, start)
        return outcome == "passed"

    def note(self, stage: str, outcome: str, start: float) -> bool:
        self.results.append(Result(stage, outcome, round(time.monotonic() - start, 1)))
        print(f"{stage}: {outcome}", flush=True)
        return False


def build(check: Check) -> None:
    pip = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "-q", "-e", "."]
    if not check.run("build", [sys.executable, *pip], BUILD):
        # An environment whose site-packages can't be written: what is built lies in the tree.
        in_place = ["setup.py", "-q", "build_ext", "--inplace"]
        check.run("build_in_place", [sys.executable, *in_place], BUILD)


def sanitize(check: Check, seconds: float) -> None:
    tool = shutil.which("compute-sanitizer")
    for name in ("memcheck", "racecheck"):
        if tool is None:
            check.note(name, "not reached: compute-sanitizer is not installed", time.monotonic())
            continue
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
        check.run(name, command, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    import torch

    if not torch.cuda.is_available():
        print(f"gpu-check needs a GPU: PyTorch {torch.__version__} sees none here")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    check = Check(out)
    # For this GPU alone: machine code for the others would take most of the time.
    architecture = "".join(map(str, torch.cuda.get_device_capability()))
    os.environ.setdefault("SIMMIM_CUDA_ARCHS", architecture)
    path = os.pathsep.join(
        p for p in (str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH")) if p
    )
    os.environ["PYTHONPATH"] = path
    build(check)
    check.run("info", [sys.executable, "-m", "simmim_kernels.info"], 40)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    device = {"SIMMIM_TEST_DEVICE": "cuda", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    check.run("on_cuda", [*pytest, "tests/gpu/test_on_cuda.py"], 80, **device)
    for stage, seconds, share in (("gpu_ops", 100, 125), ("gpu_step", 100, 145)):
        # A row or a contender that has begun is finished, and compiling one can take half a minute.
        command = [sys.executable, "-m", f"benchmarks.{stage}", str(out), "--seconds", str(seconds)]
        check.run(stage, command, share)
    for backend in ("cuda", "triton"):
        folder = ROOT / "simmim_kernels" / "backends" / backend
        rooms = sorted(f.stem for f in folder.glob("[a-z]*.py"))
        files = [str(file) for room in rooms for file in (ROOT / "tests").glob(f"test_{room}*.py")]
        # Triton compiles each new variant of a kernel, so it gets fewer of them.
        amount = "30" if backend == "cuda" else "4"
        settings = {"SIMMIM_TEST_BACKENDS": backend, "SIMMIM_TEST_EXAMPLES": amount}
        settings["SIMMIM_TEST_CASES"] = amount
        check.run(f"ops_{backend}", [*pytest, *files, "-k", backend], 60, **settings, **device)
    sanitize(check, 30)

    (out / "gpu_check.json").write_text(
        json.dumps([asdict(r) for r in check.results], indent=1) + "\n"
    )
    for table in (out / "gpu_ops.txt", out / "gpu_step.txt"):
        if table.exists():
            print(table.read_text())
    for result in check.results:
        print(f"{result.stage:<16}{result.seconds:>7.1f} s  {result.outcome}")
    return int(any(result.outcome != "passed" for result in check.results))


if __name__ == "__main__":
    sys.exit(main())
