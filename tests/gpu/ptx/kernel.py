"""A kernel that the machine can launch, and what it says of a launch."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tests.gpu.ptx import build
from tests.gpu.ptx.encode import Encoder
from tests.gpu.ptx.parser import Entry, Module

RISING, FALLING = 0, 1
# How often an instruction ran, once for each lane; then of its accesses to memory how many there
# were, by how many lanes, of how many bytes, in how many sectors (of shared memory: wavefronts),
# and how many of these would do.
COUNTS = np.dtype(
    [(name, np.uint64) for name in ("executed", "requests", "lanes", "bytes", "units", "least")]
)
_REPORT_ROOM = 1 << 16
_MOST_INSTRUCTIONS = 4_000_000_000  # of a launch, counted for every lane: a minute


@dataclass(frozen=True)
class Order:
    """How the warps of a block, and the blocks, take turns: by number, rising or falling, or as a
    seed of 2 or more draws. `switches`: warps also take turns between barriers."""

    seed: int = RISING
    switches: bool = False


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("parameters", ctypes.c_char_p),
        ("parameter_bytes", ctypes.c_int64),
        ("dynamic_shared_bytes", ctypes.c_int64),
        ("ranges", ctypes.c_void_p),
        ("range_count", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        ("switches", ctypes.c_int64),
        ("checks_races", ctypes.c_int64),
        ("most_instructions", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Fault:
    """What a launch did wrong, once for every instruction: where, and the first thread that did."""

    kind: str
    kernel: str
    place: str
    instruction: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.kernel} {self.place} `{self.instruction}` {self.detail}"


@dataclass(frozen=True)
class Launch:
    """One launch: threads and bytes of shared memory of a block, the instructions that all lanes
    ran, the sectors of global memory that were read and written, each once, and of each instruction
    `COUNTS`."""

    kernel: Kernel
    threads: int
    shared_bytes: int
    instructions: int
    sectors_read: int
    sectors_written: int
    counts: np.ndarray
    faults: list[Fault]


class Kernel:
    """A kernel of a PTX text. `name` is what people call it, `entry.name` what the text does."""

    def __init__(self, entry: Entry, name: str | None = None) -> None:
        self._program: int | None = None
        self.entry, self.name = entry, name or entry.name
        self.encoded = Encoder(entry)

    @classmethod
    def of_text(cls, text: str) -> Kernel:
        """The only kernel of a PTX text."""
        module = Module(text)
        (name,) = module.names
        return cls(module.entry(name))

    def __del__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drops what the machine made of the rows: they have changed."""
        if self._program:
            _library().ptx_free(self._program)
        self._program = None

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        parameters: bytes,
        ranges: Iterable[tuple[int, int]],
        dynamic_shared_bytes: int = 0,
        order: Order = Order(),
        checks_races: bool = True,
        most_instructions: int = _MOST_INSTRUCTIONS,
    ) -> Launch:
        """Run the kernel on this process's memory.

        Args:
            grid, block: one to three sizes.
            parameters: the bytes of all parameters, laid out as the entry says.
            ranges: first address and the one behind the last of each buffer that may be accessed.
            dynamic_shared_bytes: shared memory of a block behind what the kernel declares.
            order: how warps and blocks take turns.
            checks_races: whether races are looked for.
            most_instructions: of all lanes; beyond them the launch is ended, which is a fault.

        Raises `NotImplementedError` for a kernel with an opcode that the machine lacks.
        """
        buffers = np.array(sorted(set(ranges)) or [(0, 0)], dtype=np.uint64)
        counts = np.zeros(len(self.encoded.rows), dtype=COUNTS)
        report, totals = ctypes.create_string_buffer(_REPORT_ROOM), (ctypes.c_uint64 * 3)()
        launch = _Launch(
            *((ctypes.c_uint32 * 3)(*[*sizes, 1, 1][:3]) for sizes in (grid, block)),
            parameters,
            len(parameters),
            dynamic_shared_bytes,
            buffers.ctypes.data,
            len(buffers),
            order.seed,
            order.switches,
            checks_races,
            most_instructions,
        )
        _library().ptx_launch(
            self._machine_program(),
            ctypes.byref(launch),
            ctypes.c_void_p(counts.ctypes.data),
            totals,
            report,
            ctypes.c_int64(_REPORT_ROOM),
        )
        faults = [self._fault(line) for line in report.value.decode().splitlines()]
        shared_bytes = self.entry.shared_bytes + dynamic_shared_bytes
        return Launch(self, math.prod(block), shared_bytes, *totals, counts, faults)

    def _fault(self, line: str) -> Fault:
        kind, number, who, address, text = line.split("|")
        instruction = self.entry.instructions[int(number)]
        detail = " ".join(filter(None, (who, address, text)))
        return Fault(kind, self.name, instruction.place, instruction.text, detail)

    def _machine_program(self) -> ctypes.c_void_p:
        if self._program is None:
            encoded, missing = self.encoded, ctypes.create_string_buffer(1000)
            constants = np.array(list(encoded.constants.items()) or [(0, 0)], dtype=np.uint64)
            self._program = _library().ptx_program(
                ctypes.c_void_p(encoded.rows.ctypes.data),
                ctypes.c_int64(len(encoded.rows)),
                "\n".join(encoded.opcodes).encode(),
                ctypes.c_int64(encoded.register_count),
                ctypes.c_void_p(constants.ctypes.data),
                ctypes.c_int64(len(constants)),
                ctypes.c_int64(self.entry.shared_bytes),
                missing,
                ctypes.c_int64(len(missing)),
            )
            if not self._program:
                unknown = missing.value.decode()
                raise NotImplementedError(
                    f"{self.name} has opcodes that the machine lacks: {unknown}"
                )
        return ctypes.c_void_p(self._program)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.machine()))
    library.ptx_program.restype = ctypes.c_void_p
    library.ptx_free.argtypes = [ctypes.c_void_p]
    return library
