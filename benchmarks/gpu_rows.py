"""The rows of the GPU's op table: contenders, inputs, and the bytes that must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.gpu_timing import CALLS
from benchmarks.shapes import RATIO, Shape
from simmim_kernels import backends

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WINDOW = 47
NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
LOSSES = {"l1": sk.masked_l1, "mse": sk.masked_mse, "smooth_l1": sk.masked_smooth_l1}


@dataclass(frozen=True)
class GpuRow:
    """Contenders of one comparison, on the inputs that `make` draws anew.

    Attributes:
        moved: bytes that must move, for a copy of as many; 0 where that says nothing.
        calls: between two readings of the clock.
    """

    op: str
    shape: str
    moved: int
    contenders: dict[str, Callable]
    make: Callable[[], tuple]
    calls: int = CALLS


def step(function: Callable, differentiable: tuple[int, ...]) -> Callable:
    """`function` and the gradients of its arguments at the `differentiable` places."""

    def run(*arguments: Any) -> Any:
        out = function(*arguments)
        wanted = [arguments[i] for i in differentiable]
        ones = torch.ones((), dtype=out.dtype, device=out.device).expand(out.shape)
        return out, *torch.autograd.grad(out, wanted, ones)

    return run


def ours(room: str, function: Callable, device: str) -> dict[str, Callable]:
    """`function` on each backend that can serve it."""

    def on(name: str) -> Callable:
        def run(*arguments: Any) -> Any:
            with sk.backend(name):
                return function(*arguments)

        return run

    names = ("triton", "cuda") if device == "cuda" else ("reference", "cpu", "triton")
    return {name: on(name) for name in names if backends.why_not(name, room, device) is None}


@dataclass(frozen=True)
class Problem:
    """One shape, batch size and element type on one device, and the rows it has.

    Attributes:
        compile: whether `torch.compile` runs beside; it takes most of the time.
    """

    device: str
    shape: Shape
    batch: int
    dtype: torch.dtype
    compile: bool

    @property
    def label(self) -> str:
        return f"{self.shape.name} x{self.batch} {NAMES[self.dtype]}"

    @property
    def image(self) -> tuple[int, ...]:
        return (self.batch, self.shape.channels, self.shape.size, self.shape.size)

    @property
    def pixels(self) -> int:
        return self.batch * self.shape.channels * self.shape.size**2

    def peers(self, function: Callable) -> dict[str, Callable]:
        contenders = {"eager": function}
        if self.compile:
            contenders["compiled"] = torch.compile(function, fullgraph=True, dynamic=False)
        return contenders

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, device=self.device).to(self.dtype)

    def mask(self) -> sk.PatchMask:
        return sk.random_mask(self.batch, self.shape.grid, RATIO, device=self.device)

    def predictions(self) -> tuple:
        """Tokens of a head, the float32 image, the mask, and the published int64 one."""
        side = self.shape.size // self.shape.stride
        numbers = self.shape.channels * self.shape.stride**2
        mask, pred = self.mask(), self.normal(self.batch, side * side, numbers)
        target = torch.randn(self.image, device=self.device)
        return pred.requires_grad_(), target, mask, mask.mask.long()

    def rows(self) -> Iterator[GpuRow]:
        yield from self.losses()
        yield self.mask_tokens()
        yield self.mask_image()
        yield self.normalize_targets()
        yield self.window_loss()
        yield self.masked_linear()

    def losses(self) -> Iterator[GpuRow]:
        size, shape = self.dtype.itemsize, self.shape
        moved = int(self.pixels * (shape.masked * (size + 4) + size))
        for kind, loss in LOSSES.items():

            def published(pred, target, _, coarse, kind=kind):
                full = peers.tokens_to_image(pred, shape.channels, shape.stride)
                return peers.masked_loss(full, target, coarse, shape.unit, kind)

            run = step(lambda p, t, m, _, loss=loss: loss(p, t, m), (0,))
            contenders = ours("masked_loss", run, self.device) | self.peers(step(published, (0,)))
            yield GpuRow(f"masked_{kind}", self.label, moved, contenders, self.predictions)

    def mask_tokens(self) -> GpuRow:
        shape, tokens = self.shape, self.shape.tokens
        moved = self.batch * tokens**2 * shape.width * self.dtype.itemsize

        def make():
            mask = self.mask()
            fine = mask.on_grid((tokens, tokens)).mask.long()
            x, token = self.normal(self.batch, tokens**2, shape.width), self.normal(shape.width)
            return x.requires_grad_(), mask, token.view(1, 1, -1).detach().requires_grad_(), fine

        run = step(lambda x, m, t, _: sk.mask_tokens(x, m, t), (0, 2))
        contenders = ours("mask_tokens", run, self.device)
        contenders |= self.peers(step(lambda x, _, t, f: peers.mask_tokens(x, f, t), (0, 2)))
        return GpuRow("mask_tokens", self.label, int(moved * (4 - shape.masked)), contenders, make)

    def mask_image(self) -> GpuRow:
        mean, std = (torch.tensor(values, device=self.device) for values in (MEAN, STD))
        dtype, unit = self.dtype, self.shape.unit

        def make():
            image = torch.randint(0, 256, self.image, dtype=torch.uint8, device=self.device)
            return image, self.mask()

        run = lambda i, m: sk.mask_image(i, m, mean=MEAN, std=STD, dtype=dtype)  # noqa: E731
        published = lambda i, m: peers.mask_image(i, m.mask, unit, mean, std).to(dtype)  # noqa: E731
        contenders = ours("mask_image", run, self.device) | self.peers(published)
        moved = int(self.pixels * (1 - self.shape.masked + dtype.itemsize))
        return GpuRow("mask_image", self.label, moved, contenders, make)

    def normalize_targets(self) -> GpuRow:
        run = lambda i: sk.normalize_targets(i, WINDOW)  # noqa: E731
        contenders = ours("normalize_targets", run, self.device)
        contenders["eager"] = lambda i: peers.normalize_targets(i, WINDOW)
        with torch.device(self.device):  # the rewrite makes its matrices where it is made
            banded = peers.normalize_targets_banded(WINDOW, self.shape.size, self.shape.size)
        rewrite = lambda i: banded(i.float()).to(i.dtype)  # noqa: E731
        contenders["banded"] = (
            torch.compile(rewrite, fullgraph=True, dynamic=False) if self.compile else rewrite
        )
        make = lambda: (torch.rand(self.image, device=self.device).to(self.dtype),)  # noqa: E731
        moved = 2 * self.pixels * self.dtype.itemsize
        return GpuRow("normalize_targets", self.label, moved, contenders, make)

    def window_loss(self) -> GpuRow:
        """Eager: our own two ops one after the other. `alone`: what it may exceed by a tenth."""

        def fused(pred, target, mask, _):
            return sk.masked_l1(pred, target, mask, target_norm=sk.WindowNorm(WINDOW))

        def apart(pred, target, mask, _):
            return sk.masked_l1(pred, sk.normalize_targets(target, WINDOW), mask)

        contenders = ours("masked_loss", step(fused, (0,)), self.device)
        contenders["eager"] = step(apart, (0,))
        contenders["alone"] = lambda pred, target, *_: sk.normalize_targets(target, WINDOW)
        moved = int(
            self.pixels * (4 + self.shape.masked * self.dtype.itemsize + self.dtype.itemsize)
        )
        return GpuRow("window_loss", self.label, moved, contenders, self.predictions)

    def masked_linear(self) -> GpuRow:
        """Eager: the dense head and our loss, one after the other."""
        shape, side = self.shape, self.shape.size // self.shape.stride
        # The last stage of Swin is wider than its tokens.
        width = shape.width * (side and shape.tokens // side)

        def make():
            tokens = self.normal(self.batch, side * side, width).requires_grad_()
            weight = self.normal(shape.channels * shape.stride**2, width) * width**-0.5
            target = torch.randn(self.image, device=self.device)
            return tokens, weight.detach().requires_grad_(), target, self.mask()

        def masked(tokens, weight, target, mask):
            return sk.masked_linear_l1(tokens, weight, None, target, mask)

        def dense(tokens, weight, target, mask):
            return sk.masked_l1(F.linear(tokens, weight), target, mask)

        contenders = ours("masked_linear", step(masked, (0, 1)), self.device)
        contenders["eager"] = step(dense, (0, 1))
        return GpuRow("masked_linear", self.label, 0, contenders, make)


def draw(device: str, shape: Shape, batch: int) -> GpuRow:
    """A mask with its index lists. There is no eager form: the published generator is NumPy's."""
    run = lambda ids, grid: sk.random_mask(ids, grid, RATIO, seed=1)  # noqa: E731
    make = lambda: (torch.arange(batch, device=device), shape.grid)  # noqa: E731
    contenders = ours("random_mask", run, device)
    contenders["eager"] = lambda ids, grid: peers.random_mask(batch, grid[0], RATIO).to(device)
    return GpuRow("random_mask", f"{shape.name} x{batch}", 0, contenders, make)


def call_overhead(device: str) -> GpuRow:
    """The smallest useful input. Eager: `F.l1_loss` of as many pixels."""

    def make():
        pred, target = (torch.randn(1, 3, 32, 32, device=device) for _ in range(2))
        return pred.requires_grad_(), target, sk.random_mask(1, (4, 4), RATIO, device=device)

    contenders = ours("masked_loss", step(lambda p, t, m: sk.masked_l1(p, t, m), (0,)), device)
    contenders["eager"] = step(lambda p, t, _: F.l1_loss(p, t), (0,))
    return GpuRow("call_overhead", "1x3x32x32 float32", 0, contenders, make, calls=200)


def rows(device: str, shapes: tuple[Shape, ...], batches: tuple[int, ...]) -> Iterator[GpuRow]:
    """All rows, those first that must not be missed when time is short: of the first batch size,
    with `torch.compile` beside, then of the others without."""
    yield call_overhead(device)
    for batch in batches:
        for shape in shapes:
            yield draw(device, shape, batch)
        for dtype in NAMES:
            for shape in shapes:
                compile = device == "cuda" and batch == batches[0]
                yield from Problem(device, shape, batch, dtype, compile).rows()
