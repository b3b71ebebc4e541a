"""A plugin of pytest: the machine runs every launch of the tests. SIMMIM_TEST_PTX says which
backend, for which target and in which order, and the file that gets the outcome."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gpu.ptx.kernel import Kernel, Order
from tests.gpu.ptx.launches import Run, serving

_stack = ExitStack()
_run: Run
_faults: list[tuple[str, str]] = []


def pytest_configure() -> None:
    global _run
    asked = json.loads(os.environ["SIMMIM_TEST_PTX"])
    order = Order(asked["seed"], asked["switches"])
    _run = _stack.enter_context(serving(asked["backend"], asked["target"], order=order))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    finally:
        _faults.extend((str(fault), item.nodeid) for fault in _run.faults)
        _run.faults.clear()


def pytest_unconfigure() -> None:
    _stack.close()
    outcome = {
        "kernels": sorted(map(_identity, _run.kernels.values())),
        "counts": _run.counts,
        "faults": _faults,
    }
    Path(json.loads(os.environ["SIMMIM_TEST_PTX"])["outcome"]).write_text(json.dumps(outcome))


def _identity(kernel: Kernel) -> str:
    text = "\n".join(instruction.text for instruction in kernel.entry.instructions)
    return f"{kernel.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
