"""Memory that a kernel is to fill starts as NaN (or 0x7F), so that an unwritten output shows."""

from __future__ import annotations

import importlib
import pkgutil

import torch

from simmim_kernels import backends


def poison_memory(monkeypatch, name: str) -> None:
    """Of what backend `name` allocates, until `monkeypatch` is undone."""
    package = importlib.import_module(f"{backends.__name__}.{name}")
    names = [f"{package.__name__}.{info.name}" for info in pkgutil.iter_modules(package.__path__)]
    for own in (*names, f"{backends.__name__}._results"):
        module = importlib.import_module(own)
        if hasattr(module, "torch"):
            monkeypatch.setattr(module, "torch", _Poisoned(torch))


class _Poisoned:
    """The torch module with its allocators replaced."""

    def __init__(self, module) -> None:
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)

    def empty(self, *args, **kwargs):
        return _poisoned(torch.empty(*args, **kwargs))

    def empty_like(self, *args, **kwargs):
        return _poisoned(torch.empty_like(*args, **kwargs))


def _poisoned(memory):
    if memory.device.type == "meta" or isinstance(memory, torch._subclasses.FakeTensor):
        return memory
    return memory.fill_(float("nan")) if memory.is_floating_point() else memory.fill_(0x7F)
