"""`python -m benchmarks.gpu_check OUT`: build, tests and benchmarks on a machine with a GPU.

Nothing is downloaded. Every stage has a share of nine minutes, and what earlier stages left over; when
it is over the stage is interrupted as by Ctrl-C, so that it can still print and store what it has. What
the stages printed (`gpu_check.log`), how they ended (`gpu_check.json`), the benchmarks' JSON files and a
page with tables and pictures (`README.md`) stay in `OUT`. The exit status is 0 where every stage passed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import report

ROOT = Path(__file__).parents[1]
TOTAL = 520  # seconds: nine minutes less what starting and ending take
GRACE = 10  # seconds between the interrupt and the end of a stage
LEAST = 5  # seconds that a stage must have to begin

# Small, for it runs under a checker that slows kernels down a hundredfold.
SANITIZED = """
import torch
from simmim_kernels import backend
from tests.gpu.cuda_cases import CASES, NAMES, missing
for name in NAMES:
    for case, (kernels, make, run) in CASES.items():
        if missing(name, kernels) is None:
            with backend(name):
                run(*make(2))
            torch.cuda.synchronize()
            print("ran", name, case)
"""
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
DEVICE = {"SIMMIM_TEST_DEVICE": "cuda", "TORCHINDUCTOR_COMPILE_THREADS": "4"}


@dataclass(frozen=True)
class Stage:
    """A part of the check: a command, the seconds it gets even if all others need theirs, and its
    environment variables."""

    name: str
    share: float
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """How a stage ended: `passed`, `failed`, `out of time` or a reason, and its seconds."""

    stage: str
    outcome: str
    seconds: float


def stages(out: Path) -> list[Stage]:
    """The parts of the check in their order; their shares add up to less than `TOTAL`."""
    # Where site-packages can't be written, what is built lies in the tree.
    build = (
        f"{shlex.quote(sys.executable)} -m pip install --no-build-isolation --no-deps -q -e . "
        f"|| {shlex.quote(sys.executable)} setup.py -q build_ext --inplace"
    )
    # PyTorch hands out pieces of large blocks, whose bounds no checker sees.
    apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    checker = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    checked = [sys.executable, "-c", SANITIZED]
    rows = [sys.executable, "-m", "benchmarks.run", str(out), "--device", "cuda"]
    return [
        Stage("build", 110, ["sh", "-c", build]),
        Stage("info", 15, [sys.executable, "-m", "simmim_kernels.info"]),
        Stage("on_cuda", 65, [*PYTEST, "tests/gpu/test_on_cuda.py"], DEVICE),
        Stage("memcheck", 30, [*checker, "memcheck", *checked], apart),
        Stage("racecheck", 30, [*checker, "racecheck", *checked], apart),
        Stage("benchmarks", 110, [*rows, "--skip", "step"]),
        Stage("steps", 90, [*rows, "--ops", "step", "--rounds", "8"]),
        ops_tests("cuda", 30),
        ops_tests("triton", 30),
    ]


def ops_tests(backend: str, share: float) -> Stage:
    """The tests of the ops that a backend has."""
    ops = [f.stem for f in (ROOT / "simmim_kernels/backends" / backend).glob("[a-z]*.py")]
    files = sorted(str(f) for op in ops for f in (ROOT / "tests").rglob(f"test_{op}*.py"))
    # Triton compiles each new variant of a kernel, so it gets fewer of them.
    amount = "30" if backend == "cuda" else "4"
    names = ("SIMMIM_TEST_EXAMPLES", "SIMMIM_TEST_CASES")
    settings = {"SIMMIM_TEST_BACKENDS": backend} | dict.fromkeys(names, amount)
    return Stage(f"ops_{backend}", share, [*PYTEST, *files, "-k", backend], settings | DEVICE)


def run_stages(plan: list[Stage], log: Path, total: float) -> list[Result]:
    """Run the stages in turn, each within its share and what those before it left over."""
    begin, results = time.monotonic(), []
    log.write_text("")
    for number, stage in enumerate(plan):
        start = time.monotonic()
        promised = sum(later.share for later in plan[number + 1 :])
        outcome = run_stage(stage, log, begin + total - promised)
        results.append(Result(stage.name, outcome, round(time.monotonic() - start, 1)))
        print(f"{stage.name}: {outcome}", flush=True)
    return results


def run_stage(stage: Stage, log: Path, until: float) -> str:
    """Run a stage up to a moment of the monotonic clock; returns how it ended."""
    limit = until - time.monotonic()
    if limit < LEAST:
        return "not reached: out of time"
    if shutil.which(stage.command[0]) is None:
        return f"not reached: {stage.command[0]} is not installed"
    with log.open("a") as output:
        output.write(f"\n==== {stage.name}\n")
        output.flush()
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | stage.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit - min(GRACE, limit / 4))
            return "passed" if status == 0 else "failed"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.1))
            return "out of time"
        finally:  # what the stage has left running ends too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def set_environment() -> None:
    """What every stage needs: the project's packages, the environment's programs, this GPU alone."""
    import torch

    # Machine code for other GPUs would take most of the time.
    architecture = "".join(map(str, torch.cuda.get_device_capability()))
    os.environ.setdefault("SIMMIM_CUDA_ARCHS", architecture)
    # CMake and Ninja lie there, and a shell that has not activated the environment doesn't see them.
    programs = str(Path(sys.executable).parent)
    for name, first in (("PATH", [programs]), ("PYTHONPATH", [str(ROOT), str(ROOT / "python")])):
        before = [os.environ[name]] if os.environ.get(name) else []
        os.environ[name] = os.pathsep.join([*first, *before])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    import torch

    if not torch.cuda.is_available():
        print(f"gpu-check needs a GPU: PyTorch {torch.__version__} sees none here")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    # A background job of a shell ignores Ctrl-C, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_environment()
    results = run_stages(stages(out), out / "gpu_check.log", TOTAL)
    (out / "gpu_check.json").write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    for table in report.tables(out):
        print(f"{table}\n")
    try:
        report.write_page(out)
    except ImportError:
        print("matplotlib is missing: no pictures")
    for result in results:
        print(f"{result.stage:<16}{result.seconds:>7.1f} s  {result.outcome}")
    return int(any(result.outcome != "passed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
