"""Starts the tests of the ops again, in a process of its own and on another backend."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
BACKENDS = TESTS.parent / "simmim_kernels" / "backends"


def modules_of(backend: str) -> list[str]:
    """The ops that `backend` has."""
    names = [info.name for info in pkgutil.iter_modules([str(BACKENDS / backend)])]
    return sorted(name for name in names if name[0] != "_")


def run_op_tests(backend: str, modules: list[str], *skipped: str, **environment: str) -> str:
    """Run those op tests that are parametrised by backend, but for those whose names hold one of
    `skipped`; fails with their output."""
    files = [
        str(file)
        for module in modules
        for file in sorted((TESTS / "ops").glob(f"test_{module}*.py"))
    ]
    files.append(str(TESTS / "ops" / "test_contract.py"))
    chosen = " and not ".join((backend, *skipped))
    command = [sys.executable, "-m", "pytest", *files, "-k", chosen, "-p", "no:cacheprovider"]
    settings = {"SIMMIM_TEST_BACKENDS": backend, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    result = subprocess.run(
        command,
        cwd=TESTS.parent,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    return result.stdout
