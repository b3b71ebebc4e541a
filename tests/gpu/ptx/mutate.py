"""Removes barriers from compiled kernels, to see whether the machine notices."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from simmim_kernels import backends
from tests.gpu.ptx.kernel import FALLING, RISING, Kernel, Order
from tests.gpu.ptx.launches import running, serving
from tests.ops.calls import CALLS, arguments_of, results

ORDERS = (Order(RISING), Order(FALLING), Order(3), Order(4, switches=True))
# By kernel and the function that holds the barrier: why none of its barriers is missed.
REDUNDANT = {
    (
        "_block_mask",
        "_take",
    ): "with 65 units or more a thread loads the marks that it stored itself, "
    "with 33 to 64 the sum's own barriers lie between; needed for fewer",
}
Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Barrier:
    """One of a kernel, by the number of its instruction."""

    kernel: Kernel
    number: int

    @property
    def source(self) -> tuple[str, str]:
        """The kernel's name without types, and the function or the line that holds the barrier."""
        instruction = self.kernel.entry.instructions[self.number]
        where = _function_at(instruction.path, instruction.line) or instruction.place
        return self.kernel.name.partition("<")[0], where

    def __str__(self) -> str:
        instruction = self.kernel.entry.instructions[self.number]
        return f"{self.kernel.name} {instruction.place} `{instruction.text}`, number {self.number}"


@cache
def _function_at(path: str, line: int) -> str | None:
    """The innermost function of a Python file that has this line."""
    if not path.endswith(".py"):
        return None
    import triton

    # Triton's cache may hold what another environment has compiled, under paths that are gone.
    folders = Path(backends.__file__).parent / "triton", Path(triton.__file__).parent
    copies = (folder / path.rpartition("/triton/")[2] for folder in folders)
    path = next((copy for copy in copies if copy.is_file()), Path(path))
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno
    ]
    return max(functions, key=lambda node: node.lineno).name if functions else None


@contextmanager
def removed(barrier: Barrier) -> Iterator[None]:
    """The kernel without that barrier, inside the `with` block."""
    encoded = barrier.kernel.encoded
    row = encoded.rows[barrier.number]
    before = row.copy()
    row["handler"] = encoded.opcodes.setdefault("nothing", len(encoded.opcodes))
    row["inputs"], row["lanes"] = 0, -1
    barrier.kernel.forget()
    try:
        yield
    finally:
        encoded.rows[barrier.number] = before
        barrier.kernel.forget()


def reached_by(call: Call, backend: str, target: str) -> tuple[list[Barrier], tuple[Tensor, ...]]:
    """The barriers of blocks and warps that a call's kernels come to, and the call's results."""
    with running(backend, target, keeps=True) as run:
        results = call()
    assert not run.faults, run.faults
    reached = {
        Barrier(launch.kernel, number): None
        for launch in run.launches
        for number, instruction in enumerate(launch.kernel.entry.instructions)
        if instruction.opcode[0] in ("bar", "barrier") and launch.counts["executed"][number]
    }
    return list(reached), results


def notice(
    barrier: Barrier, call: Call, backend: str, target: str, expected: tuple[Tensor, ...]
) -> str | None:
    """What the machine says when a barrier is away: a fault, or another result than `expected`, in
    the first order of warps that shows one. None: nothing."""
    with removed(barrier):
        for order in ORDERS:
            with running(backend, target, order=order) as run:
                found = call()
            if run.faults:
                return f"{run.faults[0]} ({order})"
            if not all(map(_same, found, expected)):
                return f"another result ({order})"
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def remove_all(calls: Iterable[Call], backend: str, target: str) -> dict[Barrier, str | None]:
    """Remove every barrier in turn, under each call that reaches it, until it is noticed; with what
    the machine said then."""
    tried: dict[Barrier, str | None] = {}
    for call in calls:
        barriers, expected = reached_by(call, backend, target)
        for barrier in barriers:
            if tried.get(barrier) is None:
                tried[barrier] = notice(barrier, call, backend, target, expected)
    return tried


def missed(tried: dict[Barrier, str | None]) -> list[Barrier]:
    """The barriers that are neither noticed nor known to be redundant. The same line of source
    becomes several kernels; one that is noticed in some may be redundant in others, for instance
    where no number is held by two threads."""
    needed = {barrier.source for barrier, said in tried.items() if said}
    return [b for b, said in tried.items() if not said and b.source not in needed | {*REDUNDANT}]


def calls_of(backend: str, target: str) -> list[Call]:
    """Calls of every op that between them reach every loop: small ones, grids of several sizes."""
    sizes = {name: [(2, (2, 3))] for name in CALLS}
    for name, call in CALLS.items():
        if len(call.modules) == 1 and call.modules[0].endswith("_mask"):
            sizes[name] += [(2, (7, 7)), (2, (14, 14)), (1, (40, 40))]
    sizes["avg_dist"].append((2, (14, 14)))
    for name in ("mask_tokens", "mask_tokens map", "masked_l1 tokens", "masked_mse image"):
        sizes[name].append((2, (6, 6)))
    with serving(backend, target):
        served = [
            name
            for name, call in CALLS.items()
            if not any(backends.why_not(backend, module, "cpu") for module in call.modules)
        ]

    def call_of(name: str, batch: int, grid: tuple[int, int]) -> Call:
        arguments = arguments_of(name, batch, grid)
        return lambda: results(name, arguments)

    return [call_of(name, *size) for name in served for size in sizes[name]]
