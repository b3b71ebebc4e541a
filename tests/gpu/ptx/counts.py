"""What the launches of one call cost: instructions, and what they move."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.gpu.ptx import build
from tests.gpu.ptx.kernel import Kernel, Launch
from tests.gpu.ptx.launches import running

_GLOBAL, _SHARED = 0, 1


@dataclass(frozen=True)
class LaunchCounts:
    """One launch.

    Attributes:
        kernel: its name.
        instructions: of all lanes.
        requests, sectors, least_sectors: accesses of warps to global memory, the sectors of 32
            bytes that they move, and how many would hold the same bytes.
        distinct_sectors: sectors that are read and sectors that are written, each counted once.
        bytes, wide_bytes: what those accesses move, and what of it in 16 bytes or more a lane.
        wavefronts, least_wavefronts: of shared memory, the same.
    """

    kernel: str
    instructions: int
    requests: int
    sectors: int
    least_sectors: int
    distinct_sectors: int
    bytes: int
    wide_bytes: int
    wavefronts: int
    least_wavefronts: int


def launches_of(
    backend: str, target: str, call: Callable[[], object], checks_races: bool = True
) -> list[Launch]:
    """The launches of one call; raises `ValueError` where the machine finds a fault."""
    with running(backend, target, keeps=True, checks_races=checks_races) as run:
        call()
    if run.faults:
        raise ValueError("\n".join(map(str, run.faults)))
    return run.launches


def count(launch: Launch) -> LaunchCounts:
    rows = launch.kernel.encoded.rows
    # A load has its address as only input, a store as the first of them.
    wide = rows["size"] * np.maximum(rows["outputs"], rows["inputs"] - 1) >= 16

    def total(space: int, what: str, of: np.ndarray | bool = True) -> int:
        return int(launch.counts[what][(rows["space"] == space) & of].sum())

    return LaunchCounts(
        launch.kernel.name,
        launch.instructions,
        total(_GLOBAL, "requests"),
        total(_GLOBAL, "units"),
        total(_GLOBAL, "least"),
        launch.sectors_read + launch.sectors_written,
        total(_GLOBAL, "bytes"),
        total(_GLOBAL, "bytes", wide),
        total(_SHARED, "units"),
        total(_SHARED, "least"),
    )


def count_call(backend: str, target: str, call: Callable[[], object]) -> list[LaunchCounts]:
    """Run `call` with its kernels compiled for `target`, and count every launch."""
    return [count(launch) for launch in launches_of(backend, target, call)]


@dataclass(frozen=True)
class Resources:
    """What ptxas gives each thread of a kernel: registers, and bytes that it spills."""

    registers: int
    spilled: int


def resources_of(kernel: Kernel, backend: str) -> Resources:
    """Has ptxas compile the text that the kernel comes from, for the GPU that the text names."""
    text = kernel.entry.module.text
    architecture = re.search(r"\.target\s+(\w+)", text)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(text)
        command = [build.ptxas(backend, architecture), "-v", f"-arch={architecture}", source]
        command += ["--entry", kernel.entry.name, "-o", Path(folder, "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
    return Resources(int(re.search(r"Used (\d+) registers", done.stderr)[1]), spilled)


def blocks_per_multiprocessor(launch: Launch, registers: int) -> int:
    """How many blocks an H100 holds at once on each of its multiprocessors: 65,536 registers, given
    to warps by 256; 2,048 threads; 32 blocks; 227 KiB of shared memory, 1 KiB of it reserved for
    each block."""
    warps = -(-launch.threads // 32)
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = 227 * 1024 // (launch.shared_bytes + 1024)
    return min(by_registers, 2048 // (32 * warps), 32, by_shared)
