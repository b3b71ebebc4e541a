"""Compiles what the machine needs, once for each content of its sources: results stay in build/."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.gpu import host_build

ROOT = Path(__file__).parents[3]
CSRC = ROOT / "csrc"
MACHINE = Path(__file__).parent / "machine"
CUDA_TARGETS = ("compute_80", "compute_90")


def machine() -> Path:
    """The library of machine/."""

    def make(folder: Path) -> None:
        _call([*command, *sorted(MACHINE.glob("*.cpp")), "-o", folder / "machine.so"])

    command = ["g++", "-O2", "-std=c++17", "-Wall", "-Wextra", "-shared", "-fPIC"]
    return _cached("ptx-machine", list(MACHINE.iterdir()), make, str(command)) / "machine.so"


def host_module() -> Path:
    """The module `_cuda` compiled for the host, whose launches can be handed to the machine."""
    sources = [path for path in CSRC.rglob("*.*") if path.suffix in (".cu", ".h", ".cpp")]
    sources += [host_build.EMULATOR / "cuda_runtime.h", Path(host_build.__file__)]
    return _cached("cuda-on-host", sources, host_build.build) / "_cuda.so"


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def ptxas(backend: str, architecture: str) -> str:
    """The assembler that a backend's compiler calls: Triton brings its own."""
    if backend == "cuda":
        return str(Path(nvcc()).resolve().with_name("ptxas"))
    from triton.backends.nvidia.compiler import get_ptxas

    return get_ptxas(int(re.search(r"\d+", architecture)[0])).path


def compiled(sources: Iterable[Path], *options: str, suffix: str = "ptx") -> list[Path]:
    """What nvcc makes of CUDA sources with `options`: a file each, PTX or machine code."""
    sources = list(sources)
    version = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True)
    headers = list(CSRC.rglob("*.h"))
    flags = ["-std=c++17", "-O3", "-lineinfo", f"-I{CSRC}", "-DSIMMIM_ISA=cuda", *options]

    def make(folder: Path) -> None:
        def compile_one(source: Path) -> None:
            target = folder / f"{source.name}.{suffix}"
            _call([nvcc(), f"-{suffix}", *flags, source, "-o", target])

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(compile_one, sources))

    name = "-".join([suffix, *(option.lstrip("-").split("=")[-1] for option in options[:1])])
    folder = _cached(name, [*sources, *headers], make, f"{version.stdout}{flags}")
    return [folder / f"{source.name}.{suffix}" for source in sources]


def cuda_ptx(target: str) -> list[Path]:
    """The PTX of every CUDA source for a `compute_..`."""
    return compiled(sorted((CSRC / "cuda").glob("*.cu")), f"-arch={target}")


def _call(command: list) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-4000:]}")


def _cached(name: str, inputs: list[Path], make: Callable[[Path], object], more: str = "") -> Path:
    """The folder that `make` fills, kept for the contents of `inputs`; an older one goes."""
    digest = hashlib.sha256(more.encode())
    for path in sorted(inputs):
        digest.update(path.name.encode() + path.read_bytes())
    base = ROOT / "build" / "tests"
    base.mkdir(parents=True, exist_ok=True)
    folder = base / f"{name}-{digest.hexdigest()[:16]}"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            for old in base.glob(f"{name}-*"):
                shutil.rmtree(old)
            folder.mkdir()
            make(folder)
            (folder / "done").touch()
    return folder
