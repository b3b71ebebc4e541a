"""CUDA's launches: the launchers compiled for the host hand their parameters to nvcc's PTX."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from simmim_kernels.backends import cuda as package
from tests.gpu.ptx import build
from tests.gpu.ptx.kernel import Kernel
from tests.gpu.ptx.launches import Run, modules_of, storage_range
from tests.gpu.ptx.parser import Module

_HOOK = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,  # the kernel's function
    ctypes.POINTER(ctypes.c_uint),  # grid, three sizes
    ctypes.POINTER(ctypes.c_uint),  # block
    ctypes.c_int64,  # bytes of dynamic shared memory
    ctypes.c_int,  # parameters: how many, where, and their bytes
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_int64),
)


@contextmanager
def handing(target: str, run: Run) -> Iterator[None]:
    """Hand launches to the machine."""
    module, functions, kernels = host_module(), _functions(), _kernels(target)
    base = _load_address()
    ranges: list[tuple[int, int]] = []
    errors: list[BaseException] = []

    def hand_over(function, grid, block, dynamic, count, values, sizes):
        try:
            kernel = kernels(functions[function - base])
            slots = list(kernel.entry.parameters.values())
            assert sizes[:count] == [size for _, size in slots], f"{kernel.name}: {sizes[:count]}"
            parameters = bytearray(kernel.entry.parameter_bytes)
            for value, (at, size) in zip(values[:count], slots, strict=True):
                parameters[at : at + size] = ctypes.string_at(value, size)
            run.add(
                kernel.launch(
                    grid[:3],
                    block[:3],
                    bytes(parameters),
                    ranges,
                    dynamic_shared_bytes=dynamic,
                    order=run.order,
                    checks_races=run.checks_races,
                )
            )
        except BaseException as error:  # ctypes would print and forget it
            errors.append(error)

    def launcher(function):
        def call(*args):
            ranges[:] = [storage_range(value) for value in args if isinstance(value, torch.Tensor)]
            result = function(*args)
            if errors:
                raise errors.pop()
            return result

        return call

    hook = _HOOK(hand_over)
    address = ctypes.c_void_p.in_dll(ctypes.CDLL(module.__file__), "launch_hook")
    served = {
        name: launcher(value) if callable(value) else value
        for name, value in vars(module).items()
        if name[0] != "_"
    }
    users = [m for m in (package, *modules_of(package)) if hasattr(m, "kernels")]
    before = package.kernels
    address.value = ctypes.cast(hook, ctypes.c_void_p).value
    for user in users:
        user.kernels = SimpleNamespace(**served)
    try:
        yield
    finally:
        address.value = None
        for user in users:
            user.kernels = before


@cache
def host_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simmim_kernels._cuda", build.host_module())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.connect(torch.Tensor)
    return module


def _readable(names: list[str]) -> list[str]:
    """C++ names as people write them, without the return type of templates."""
    shown = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return [name.removeprefix("void ") for name in shown.stdout.splitlines()]


@cache
def _functions() -> dict[int, str]:
    """The functions of the host module by their place in it."""
    command = ["nm", "--defined-only", build.host_module()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    places, names = zip(
        *((line.split()[0], line.split()[2]) for line in shown.splitlines() if line[17] in "tTwW"),
        strict=True,
    )
    return {int(place, 16): name for place, name in zip(places, _readable(names), strict=True)}


@cache
def _load_address() -> int:
    name = str(build.host_module())
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(name):
            return int(line.split("-")[0], 16)
    raise RuntimeError(f"{name} is not loaded")


@cache
def _kernels(target: str):
    """Finds a kernel of nvcc's PTX by its readable name."""
    found: dict[str, tuple[Module, str]] = {}
    for path in build.cuda_ptx(target):
        module = Module(path.read_text())
        found |= {
            readable: (module, name)
            for name, readable in zip(module.names, _readable(module.names), strict=True)
        }

    @cache
    def kernel(name: str) -> Kernel:
        module, entry = found[name]
        return Kernel(module.entry(entry), _short(name))

    return kernel


def _short(name: str) -> str:
    """`kernel<types>` of `simmim::cuda::source_file::kernel<types>(parameters)`."""
    name = re.sub(r"simmim::cuda::|\b\w+_file::", "", name)
    return name.partition("(")[0]
