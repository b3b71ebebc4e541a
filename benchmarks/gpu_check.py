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
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
RUN = [sys.executable, "-m", "benchmarks.run"]


@dataclass(frozen=True)
class Stage:
    """A part of the check.

    Attributes:
        share: seconds that it gets even if all others need theirs.
        command: what is run; None where a program that it needs is not installed.
        instead: run in the rest of the share where the command fails.
        environment: variables beside those of this process.
        without: why there is no command.
    """

    name: str
    share: float
    command: list[str] | None
    instead: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    without: str = ""


@dataclass
class Result:
    """How a stage ended: `passed`, `failed`, `out of time` or a reason, and its seconds."""

    stage: str
    outcome: str
    seconds: float


def stages(out: Path) -> list[Stage]:
    """The parts of the check in their order; their shares add up to less than `TOTAL`."""
    pip = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "-q", "-e", "."]
    # For an environment whose site-packages can't be written: what is built lies in the tree.
    in_place = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    device = {"SIMMIM_TEST_DEVICE": "cuda", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    ops = [*RUN, str(out), "--device", "cuda", "--skip", "step"]
    steps = [*RUN, str(out), "--device", "cuda", "--ops", "step", "--rounds", "8"]
    return [
        Stage("build", 110, [sys.executable, *pip], instead=in_place),
        Stage("info", 15, [sys.executable, "-m", "simmim_kernels.info"]),
        Stage("on_cuda", 65, [*PYTEST, "tests/gpu/test_on_cuda.py"], environment=device),
        sanitizer("memcheck", 30),
        sanitizer("racecheck", 30),
        Stage("benchmarks", 110, ops),
        Stage("steps", 90, steps),
        ops_tests("cuda", 30, device),
        ops_tests("triton", 30, device),
    ]


def sanitizer(tool: str, share: float) -> Stage:
    program = shutil.which("compute-sanitizer")
    if program is None:
        return Stage(tool, share, None, without="compute-sanitizer is not installed")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
    # PyTorch hands out pieces of large blocks, whose bounds no checker sees.
    return Stage(tool, share, command, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def ops_tests(backend: str, share: float, device: dict[str, str]) -> Stage:
    """The tests of the ops that a backend has."""
    ops = [f.stem for f in (ROOT / "simmim_kernels/backends" / backend).glob("[a-z]*.py")]
    files = sorted(str(f) for op in ops for f in (ROOT / "tests").rglob(f"test_{op}*.py"))
    # Triton compiles each new variant of a kernel, so it gets fewer of them.
    amount = "30" if backend == "cuda" else "4"
    names = ("SIMMIM_TEST_EXAMPLES", "SIMMIM_TEST_CASES")
    settings = {"SIMMIM_TEST_BACKENDS": backend} | dict.fromkeys(names, amount) | device
    command = [*PYTEST, *files, "-k", backend]
    return Stage(f"ops_{backend}", share, command, environment=settings)


def run_stages(
    plan: list[Stage], log: Path, total: float, show: Callable[[Result], None]
) -> list[Result]:
    """Run the stages in turn, each within its share and what those before it left over."""
    begin, results = time.monotonic(), []
    log.write_text("")
    for number, stage in enumerate(plan):
        start = time.monotonic()
        promised = sum(later.share for later in plan[number + 1 :])
        until = begin + total - promised
        outcome = run_stage(stage, log, until)
        results.append(Result(stage.name, outcome, round(time.monotonic() - start, 1)))
        show(results[-1])
    return results


def run_stage(stage: Stage, log: Path, until: float) -> str:
    """Run a stage up to a moment of the monotonic clock; returns how it ended."""
    if stage.command is None:
        return f"not reached: {stage.without}"
    outcome = "not reached: out of time"
    for command in (stage.command, stage.instead):
        if command is None or until - time.monotonic() < LEAST:
            break
        outcome = run_command(stage, command, log, until)
        if outcome == "passed":
            break
    return outcome


def run_command(stage: Stage, command: list[str], log: Path, until: float) -> str:
    with log.open("a") as output:
        output.write(f"\n==== {stage.name}: {' '.join(command)}\n")
        output.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | stage.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            grace = min(GRACE, (until - time.monotonic()) / 4)
            return outcome_of(process.wait(until - time.monotonic() - grace))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(until - time.monotonic(), 0.1))
        kill_group(process)
    return "out of time"


def outcome_of(status: int) -> str:
    return "passed" if status == 0 else "failed"


def kill_group(process: subprocess.Popen) -> None:
    """End what a stage has left running."""
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
    results = run_stages(
        stages(out),
        out / "gpu_check.log",
        TOTAL,
        lambda result: print(f"{result.stage}: {result.outcome}", flush=True),
    )
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
