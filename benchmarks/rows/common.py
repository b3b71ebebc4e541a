"""What a row is, and the pieces that the rows of all ops are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

import simmim_kernels as sk
from benchmarks.rows.shapes import RATIO, Setting, Shape

OURS = "ours"
BOTH = "forward + backward"


@dataclass(frozen=True)
class Contest:
    """What a row runs.

    Attributes:
        contenders: name -> function of the inputs; `"ours"` comes first.
        inputs: draws the inputs anew.
        moved: bytes that the op must move: each needed input once, each output once.
        tolerance: how far results may differ, relative to the largest number; None: not compared.
        kernel: the op's file in the backends, where "ours" can run on each of them.
        effort: rounds of this row for each round that was asked for.
        queued: time the kernels alone on a GPU, with the launches queued before; false where the cost
            of a call is what the row is about.
        targets: peer -> the ratio that must be reached, where it is this row's own.
        notes: contender -> name -> what was found out while the contenders were made.
        finish: takes the notes of the result and the medians in microseconds, and adds to the notes
            what is measured beside the time.
    """

    contenders: dict[str, Callable[..., Any]]
    inputs: Callable[[], tuple]
    moved: int = 0
    tolerance: float | None = None
    kernel: str | None = None
    effort: float = 1.0
    queued: bool = True
    targets: dict[str, float] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    finish: Callable[[dict[str, dict], dict[str, float]], None] | None = None


@dataclass(frozen=True)
class Row:
    """One comparison of contenders that compute the same thing.

    Attributes:
        op: the op, and name of the results file.
        shape: name of the shape, batch and element type.
        what: what is timed, for instance `forward + backward`.
        build: makes the contenders; called with the row's device as the default one.
        needs: packages without which the row can't run.
    """

    op: str
    shape: str
    what: str
    build: Callable[[], Contest]
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}: {self.shape}, {self.what}"


@dataclass(frozen=True)
class Case:
    """A shape, a batch size and an element type; what it draws lies on the default device."""

    setting: Setting
    batch: int
    dtype: torch.dtype
    shape: Shape

    @property
    def label(self) -> str:
        return f"{self.shape.name} x{self.batch} {type_name(self.dtype)}"

    @property
    def image(self) -> tuple[int, int, int, int]:
        return self.batch, self.shape.channels, self.shape.size, self.shape.size

    @property
    def pixels(self) -> int:
        return self.batch * self.shape.channels * self.shape.size**2

    @property
    def token_bytes(self) -> int:
        """Size of the encoder's first token map."""
        return self.batch * self.shape.tokens**2 * self.shape.width * self.dtype.itemsize

    def tolerance(self, float32: float, bfloat16: float) -> float:
        return float32 if self.dtype == torch.float32 else bfloat16

    def mask(self) -> sk.PatchMask:
        """A random mask on the grid of mask units."""
        return draw_mask(self.batch, self.shape.grid)

    def on_tokens(self, mask: sk.PatchMask) -> Tensor:
        """The int64 mask of the published code on the encoder's tokens."""
        return mask.on_grid((self.shape.tokens, self.shape.tokens)).mask.long()

    def leaf(self, *size: int, scale: float = 1.0) -> Tensor:
        """Normal numbers that require a gradient."""
        return (torch.randn(size) * scale).to(self.dtype).requires_grad_()


def cases(setting: Setting, types: Sequence[torch.dtype] | None = None) -> Iterator[Case]:
    """All cases of a setting, with other element types if given."""
    for batch, dtype, shape in product(setting.batches, types or setting.types, setting.shapes):
        yield Case(setting, batch, dtype, shape)


def rows_of(
    op: str, what: str, *, images: bool = False
) -> Callable[[Callable[[Case], Contest]], Callable]:
    """Make the `rows(setting)` of an op from a function that builds the contest of one case; with
    `images` of the setting's types of images."""

    def decorate(build: Callable[[Case], Contest]) -> Callable[[Setting], Iterator[Row]]:
        def rows(setting: Setting) -> Iterator[Row]:
            for case in cases(setting, setting.image_types if images else None):
                yield Row(op, case.label, what, partial(build, case))

        return rows

    return decorate


def rates(count: int) -> Callable[[dict[str, dict], dict[str, float]], None]:
    """`finish` of a contest whose calls take `count` images each."""

    def finish(notes: dict[str, dict[str, Any]], medians: dict[str, float]) -> None:
        for name, median_us in medians.items():
            notes[name]["images_per_second"] = count / median_us * 1e6

    return finish


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def draw_mask(batch: int, grid: tuple[int, int]) -> sk.PatchMask:
    return sk.random_mask(batch, grid, RATIO, device=torch.get_default_device())


def against(
    ours: Callable,
    published: Callable,
    inputs: Callable[[], tuple],
    *,
    gradients: Sequence[int] = (),
    own: dict[str, Callable] | None = None,
    rewrites: dict[str, Callable] | None = None,
    **options: Any,
) -> Contest:
    """Ours against the published arithmetic, eager and compiled.

    Args:
        gradients: places of the inputs whose gradients are part of the call; none: forward only.
        own: further contenders made of this library's own ops.
        rewrites: better forms of the published arithmetic, run under `torch.compile`.
        options: of the `Contest`.
    """

    def step(function: Callable) -> Callable:
        return forward_backward(function, gradients) if gradients else function

    contenders = {OURS: ours, **(own or {}), "eager": published, "compiled": compiled(published)}
    for name, rewrite in (rewrites or {}).items():
        contenders[f"{name}, compiled"] = compiled(rewrite)
    return Contest({name: step(f) for name, f in contenders.items()}, inputs, **options)


def forward_backward(function: Callable[..., Tensor], differentiable: Sequence[int]) -> Callable:
    """A step: `function` of the inputs, then gradients for those at the `differentiable` places.

    A result that is no scalar is given a gradient of ones, made once outside the timing.
    """
    ones: dict[tuple, Tensor] = {}

    def step(*arguments: Any) -> list[Tensor]:
        wanted = [arguments[i] for i in differentiable]
        out = function(*arguments)
        key = (tuple(out.shape), out.dtype)
        if key not in ones:
            ones[key] = torch.ones_like(out, memory_format=torch.contiguous_format)
        return [out.detach(), *torch.autograd.grad(out, wanted, ones[key])]

    return step


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under `torch.compile`, with a compilation cache of its own."""
    return torch.compile(function, fullgraph=True, dynamic=False)
