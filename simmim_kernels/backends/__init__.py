"""Which backend serves an op on a device, and why the others don't.

`reference` is plain PyTorch and defines every op; `cpu` and `cuda` are C++, `triton` is Triton. Their
functions take what those of `reference` take, whose signatures give the types. The first backend of a
device's order that is available and has the op serves it. `SIMMIM_KERNELS_BACKEND` or `with
backend(name)` overrides the order; a backend asked for by name that can't serve is an error, never a
silent fallback.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

NAMES = ("reference", "cpu", "triton", "cuda")
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
# Why a device's backends are tried in that order.
REASONS = {
    "cuda": "cuda before triton: of every op that both have it executes fewer instructions a number; "
    "counted from the compiled kernels, not measured"
}


def _named(name: str, source: str = "backend") -> str:
    if name not in NAMES:
        raise ValueError(f"{source} is {name!r}; allowed: {', '.join(NAMES)}")
    return name


_environment = os.environ.get("SIMMIM_KERNELS_BACKEND") or None
_override: ContextVar[str | None] = ContextVar(
    "simmim_kernels_backend",
    default=_named(_environment, "SIMMIM_KERNELS_BACKEND") if _environment else None,
)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Serve every op from one backend inside the `with` block.

    Args:
        name: `"reference"`, `"cpu"`, `"triton"` or `"cuda"`.

    The choice holds for the calling thread (and asyncio task); a backward pass keeps the choice of
    its forward pass, whichever thread runs it. Code under `torch.compile` follows the choice of the
    thread that runs it, which for a backward pass on a GPU is a thread of autograd. Raises
    `ValueError` for an unknown name; an op that the backend can't serve on its tensors' device raises
    `RuntimeError` when it is called.
    """
    token = _override.set(_named(name))
    try:
        yield
    finally:
        _override.reset(token)


def forced() -> str | None:
    """The backend that is asked for by name here, if any."""
    return _override.get()


def serve(module: str, name: str, device: str, index: int | None = None) -> Callable[..., Any]:
    """The function that runs op `name` of file `module` on the device of that type and number."""
    return _served(module, name, device, _override.get(), index)


@cache
def _served(
    module: str, name: str, device: str, forced: str | None, index: int | None = None
) -> Callable[..., Any]:
    reasons = []
    for candidate in (forced,) if forced else ORDER.get(device, ("reference",)):
        reason = why_not(candidate, module, device, index)
        if reason is None:
            return getattr(importlib.import_module(f"{__name__}.{candidate}.{module}"), name)
        reasons.append(f"{candidate}: {reason}")
    raise RuntimeError(f"no backend serves {name} on {device} ({'; '.join(reasons)})")


@cache
def why_not(candidate: str, module: str, device: str, index: int | None = None) -> str | None:
    """Why backend `candidate` can't serve the ops of `module` on the device of that type and number,
    by default the first; None where it can."""
    try:
        package = importlib.import_module(f"{__name__}.{candidate}")
    except ModuleNotFoundError as error:
        if error.name == f"{__name__}.{candidate}":
            return "is not part of this version"
        raise
    if device not in package.devices:
        return f"runs on {' and '.join(package.devices)} tensors, not on {device}"
    if package.unavailable is not None:
        return package.unavailable
    if hasattr(package, "why_not") and (reason := package.why_not(index or 0)) is not None:
        return reason
    try:
        importlib.import_module(f"{__name__}.{candidate}.{module}")
    except ModuleNotFoundError as error:
        if error.name == f"{__name__}.{candidate}.{module}":
            return f"has no {module}"
        raise
    return None
