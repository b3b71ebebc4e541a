"""Fixtures that every test uses."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sys

import hypothesis
import pytest

# PyTorch is imported where it is needed: the process that starts pytest's workers has no use for it.
from tests.backends import BACKENDS, CASES, DEVICE, EXAMPLES

# Emulation is too slow to look for the smallest case that fails.
PHASES = [phase for phase in hypothesis.Phase if not (CASES and phase is hypothesis.Phase.shrink)]
# The same cases in every clone; `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile("search", deadline=None, max_examples=EXAMPLES, phases=PHASES)
hypothesis.settings.register_profile(
    "same", hypothesis.settings.get_profile("search"), derandomize=True
)
hypothesis.settings.load_profile("same")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.interpreter import remember_types_and_patches, round_bfloat16, share_shapes

    round_bfloat16()
    share_shapes()
    remember_types_and_patches()
# `nohup` and shells that put a command in the background have it ignore signals, and every process
# that is started here would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if DEVICE != "cpu":
    import torch

    torch.set_default_device(DEVICE)
if "SIMMIM_TEST_CUDA_MODULE" in os.environ:  # the CUDA sources, compiled for the host
    _spec = importlib.util.spec_from_file_location(
        "simmim_kernels._cuda", os.environ["SIMMIM_TEST_CUDA_MODULE"]
    )
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])


# Fixtures that start processes or build something: the tests that ask for them are slow.
SLOW_FIXTURES = {"simmim", "start_simmim", "wheel", "bare"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks what is slow, and puts it first, what compiles or builds before the application: pytest's
    workers then end with what is quick, together. Emulation is slower still: of each test's cases it
    runs CASES, the same ones every time."""
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: (item.get_closest_marker("slow") is None, item.path.parent.name == "app")
    )
    if not CASES:
        return
    tests = {}
    for item in items:
        if BACKENDS[0] in item.name:
            tests.setdefault(getattr(item, "originalname", item.name), []).append(item)
    draw = random.Random(0).sample
    kept = {id(case) for cases in tests.values() for case in draw(cases, min(CASES, len(cases)))}
    items[:] = [item for item in items if id(item) in kept]


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    from tests.poison import poison_memory

    for name in BACKENDS:
        if name != "reference":
            poison_memory(monkeypatch, name)
