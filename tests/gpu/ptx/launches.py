"""Launches of this project's kernels, handed to the machine while `running` is entered."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

from torch import Tensor

import simmim_kernels as sk
from simmim_kernels import backends
from tests.gpu.ptx import build
from tests.gpu.ptx.kernel import Fault, Kernel, Launch, Order

TRITON_TARGETS = ("sm_80", "sm_90", "sm_100")
TARGETS = {"cuda": build.CUDA_TARGETS, "triton": TRITON_TARGETS}


@dataclass
class Run:
    """How launches are run, what has been launched, and what was wrong.

    Attributes:
        order: how warps take turns.
        keeps: whether `launches` holds every launch, with what each of its instructions did.
        checks_races: whether races are looked for, which takes most of the time.
        faults: of all launches.
        kernels: those that were launched, by `id`.
        counts: "launches" and "instructions" of their lanes.
    """

    order: Order = field(default_factory=Order)
    keeps: bool = False
    checks_races: bool = True
    launches: list[Launch] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    kernels: dict[int, Kernel] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, launch: Launch) -> None:
        self.faults += launch.faults
        self.kernels[id(launch.kernel)] = launch.kernel
        self.counts["launches"] += 1
        self.counts["instructions"] += launch.instructions
        if self.keeps:
            self.launches.append(launch)


def why_not(backend: str) -> str | None:
    """Why the machine can't run what this backend launches; None where it can."""
    if backend == "cuda" and build.nvcc() is None:
        return "nvcc is not installed"
    if backend == "triton" and not importlib.util.find_spec("triton"):
        return "Triton is not installed"
    return None


@contextmanager
def running(backend: str, target: str, **options) -> Iterator[Run]:
    """`serving`, and every op is served by this backend."""
    with serving(backend, target, **options) as run, sk.backend(backend):
        yield run


@contextmanager
def serving(backend: str, target: str, **options) -> Iterator[Run]:
    """Let `backend` serve ops on CPU tensors: kernels are compiled for `target`, the machine runs
    them.

    Args:
        backend: `"cuda"` or `"triton"`.
        target: one of `TARGETS[backend]`.
        options: fields of `Run`.
    """
    package = importlib.import_module(f"{backends.__name__}.{backend}")
    handing = importlib.import_module(f"{__package__}.{backend}_launches").handing
    before = package.devices, package.unavailable
    run = Run(**options)
    package.devices, package.unavailable = ("cpu",), None
    _forget_choices()
    try:
        with handing(target, run):
            yield run
    finally:
        package.devices, package.unavailable = before
        _forget_choices()


def _forget_choices() -> None:
    backends.why_not.cache_clear()
    backends._served.cache_clear()


def storage_range(tensor: Tensor) -> tuple[int, int]:
    """First address and the one behind the last of the memory that a tensor is a part of."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{info.name}")
