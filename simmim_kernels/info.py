"""`python -m simmim_kernels.info`: what is installed, which backend serves which op, and why.

Every probe is guarded, so that the report is printed whatever is broken. It ends with a real call
of a kernel on each device. Exit status 0 when that call succeeded, 1 otherwise.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent
LIBRARIES = ("torch", "triton", "numpy", "timm", "transformers", "torchvision", "lightning-fabric")
SETTINGS = ("SIMMIM_KERNELS_BACKEND", "SIMMIM_KERNELS_ISA", "OMP_NUM_THREADS")


def modules() -> list[str]:
    """The names of all ops, which are the names of the files in `ops/`."""
    return sorted(f.stem for f in (PACKAGE / "ops").glob("*.py") if not f.stem.startswith("_"))


def _guarded(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tool(name: str, line: int) -> str:
    path = shutil.which(name)
    if path is None:
        return "not found"
    output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    return output.stdout.strip().splitlines()[line]


def _build() -> str:
    record = PACKAGE / "_build_info.json"
    if not record.exists():
        return "no record: the compiled parts were never built"
    return ", ".join(f"{part} {how}" for part, how in json.loads(record.read_text()).items())


def _compiled_cpu() -> str:
    import torch  # noqa: F401  it loads the OpenMP runtime that the module shares

    module = importlib.import_module("simmim_kernels._cpu")
    return f"instruction set {module.isa}, threads {'on' if module.openmp else 'off'}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"none that PyTorch can use (PyTorch built for CUDA {torch.version.cuda})"
    return ", ".join(
        f"{torch.cuda.get_device_name(i)} sm_{''.join(map(str, torch.cuda.get_device_capability(i)))}"
        for i in range(torch.cuda.device_count())
    )


def _served(module: str, device: str) -> str:
    from simmim_kernels import backends

    forced = backends.forced()
    order = (forced,) if forced else backends.ORDER[device]
    reasons = {name: backends.why_not(name, module, device) for name in order}
    serving = next((name for name in order if reasons[name] is None), "nothing")
    refused = "; ".join(
        f"{name}: {reason}" for name, reason in reasons.items() if reason and name != serving
    )
    why = "; ".join(
        filter(None, ("asked for by SIMMIM_KERNELS_BACKEND" if forced else "", refused))
    )
    return serving + (f"   ({why})" if why else "")


def _order(device: str) -> Iterator[str]:
    """Why a device's backends are tried in their order."""
    try:
        from simmim_kernels import backends
    except Exception:  # the lines of the ops say what is broken
        return
    if device in backends.REASONS and not backends.forced():
        yield f"  ({backends.REASONS[device]})"


def _smoke(device: str) -> str:
    import torch

    import simmim_kernels as sk

    mask = sk.random_mask(2, (2, 2), 0.5, seed=0, device=device)
    x = torch.arange(64.0, device=device).view(2, 4, 8).requires_grad_()
    out = sk.mask_tokens(x, mask, torch.zeros(8, device=device))
    out.sum().backward()
    hidden = mask.mask.flatten(1)
    if out[hidden].any() or x.grad[hidden].any() or not (x.grad[~hidden] == 1).all():
        raise AssertionError("the kernels gave a wrong result")
    return "random_mask, mask_tokens and its gradient ran and are right"


def lines() -> Iterator[str]:
    """The report, line by line."""
    yield f"simmim-kernels   {_version('simmim-kernels')}"
    yield f"python           {platform.python_version()} on {platform.platform()}"
    for name in LIBRARIES:
        yield f"{name:<16} {_version(name)}"
    yield f"g++              {_guarded(lambda: _tool('g++', 0))}"
    yield f"nvcc             {_guarded(lambda: _tool('nvcc', -1))}"
    yield f"build            {_guarded(_build)}"
    yield f"cpu kernels      {_guarded(_compiled_cpu)}"
    yield f"gpu              {_guarded(_gpu)}"
    for name in SETTINGS:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"
    for device in ("cpu", "cuda"):
        yield ""
        yield f"{device} tensors are served by"
        yield from _order(device)
        for module in modules():
            yield f"  {module:<22} {_guarded(lambda module=module, device=device: _served(module, device))}"
    yield ""


def main() -> int:
    faulthandler.enable()  # a damaged module can kill the process: this then says which
    for line in lines():
        print(line, flush=True)
    devices = ["cpu"]
    if not _gpu_missing():
        devices.append("cuda")
    results = {device: _guarded(lambda device=device: _smoke(device)) for device in devices}
    for device, result in results.items():
        print(f"smoke call on {device}: {result}")
    return int(any(result.startswith("failed") for result in results.values()))


def _gpu_missing() -> bool:
    try:
        import torch

        return not torch.cuda.is_available()
    except Exception:
        return True


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `... | head` ends it without a traceback
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
