"""The aarch64 wheel of dist/, under QEMU's emulation of an Armv8.0 core.

Runs where SIMMIM_TEST_DIST names a folder of wheels, as `make wheels` does at its end.

Emulation is more than ten times slower. Of every op test whose name holds the backend it runs CASES
cases with EXAMPLES examples of hypothesis each: 145 tests, eight minutes on busy cores, most of them
for PyTorch's import and the collection. The files WHOLE, masks and crops beside NumPy's, run with all
their cases. It leaves out
- what is marked slow: Linux starts no further aarch64 process by itself, and Inductor would find the
  compiler of this machine;
- the other tests without a backend in their names: most are of messages, fake kernels and the rules
  of calls, which are Python code, and there are a thousand of them; outputs that are written past
  the cache take up to 23 seconds a case;
- `torch.compile`, also Python code, and forked workers (LEFT_OUT): a fork of an emulator is not one
  of a process on Arm.
Faults of timing or of memory order cannot show: the emulator runs on this machine's processor.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.repo.wheel import ROOT
from tools import aarch64

pytestmark = pytest.mark.slow
CASES, EXAMPLES = 2, 2
LEFT_OUT = "not compile and not fork"
WHOLE = (
    "test_random_mask",
    "test_block_mask",
    "test_box_mask",
    "test_uniform_mask",
    "test_avg_dist",
    "test_random_crops",
    "test_mask_strategies",
)
LIMIT = 3600  # seconds, several times what was seen on busy cores


@pytest.fixture(scope="module")
def python():
    """Runs Python for aarch64, with the wheel, and returns what became of it."""
    if "SIMMIM_TEST_DIST" not in os.environ:
        pytest.skip("SIMMIM_TEST_DIST names no folder of wheels; `make wheels` sets it")
    try:
        wheel = aarch64.install_wheel(Path(os.environ["SIMMIM_TEST_DIST"]).resolve())
        command, settings = aarch64.prepare()
    except aarch64.Unavailable as reason:
        pytest.skip(f"no emulation of aarch64: {reason}")
    settings["PYTHONPATH"] = os.pathsep.join([str(wheel), settings["PYTHONPATH"]])

    def run(*arguments, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | settings | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )

    return run


def test_the_cpu_backend_serves_every_op(python, tmp_path):
    info = python("-m", "simmim_kernels.info", cwd=tmp_path)
    assert info.returncode == 0, info.stdout
    assert re.search(r"^python .*aarch64", info.stdout, re.M), info.stdout
    assert re.search(r"^cpu kernels +instruction set baseline, threads on$", info.stdout, re.M)
    served = info.stdout.partition("cpu tensors are served by\n")[2].partition("\n\n")[0]
    ops = [path.stem for path in (ROOT / "simmim_kernels/ops").glob("[!_]*.py")]
    assert {tuple(line.split()) for line in served.splitlines()} == {(op, "cpu") for op in ops}
    assert "smoke call on cpu: random_mask, mask_tokens and its gradient ran" in info.stdout


@pytest.mark.parametrize("chosen", ["a few cases of each test", "whole files"])
def test_the_op_tests_pass(python, tmp_path, chosen):
    # Without the sources beside them the tests import the wheel.
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    settings = {"SIMMIM_TEST_BACKENDS": "cpu", "SIMMIM_TEST_EXAMPLES": str(EXAMPLES)}
    files = [f"tests/ops/{name}.py" for name in WHOLE]
    if chosen != "whole files":
        files, settings["SIMMIM_TEST_CASES"] = ["tests/ops"], str(CASES)
    options = ("-m", "not slow", "-k", LEFT_OUT, "-p", "no:cacheprovider", "-rs")
    ran = python("-m", "pytest", *files, *options, cwd=tmp_path, **settings)
    print(ran.stdout[-3000:])
    assert ran.returncode == 0, ran.stdout[-12000:]
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 100
