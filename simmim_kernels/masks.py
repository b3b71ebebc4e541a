"""The mask that every op takes: a bool grid of mask units with its index lists."""

from __future__ import annotations

import weakref
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from simmim_kernels._numbers import to_int, to_sides
from simmim_kernels.grid import whole_scale


class PatchMask(NamedTuple):
    """A mask on the grid of mask units, with the positions of its units.

    Attributes:
        mask: `bool (B, gh, gw)`, `True` = masked.
        masked: `int32 (B, K)`, row-major positions of the masked units, ascending.
        visible: `int32 (B, gh * gw - K)`, those of the visible units, ascending.

    Every sample has the same number `K` of masked units, so all three shapes are known without
    looking at the data. A `NamedTuple` passes through `torch.compile`, data loaders and pytrees, and
    `torch.load` takes it from a checkpoint with `weights_only=True` where this package is imported.
    The three parts may also come as one iterable, as data loops rebuild what they move to a device,
    in compiled code from PyTorch 2.12 on.
    """

    mask: Tensor
    masked: Tensor
    visible: Tensor

    @classmethod
    def from_mask(cls, mask: Tensor, count: int | None = None) -> PatchMask:
        """A bool mask of one's own, with its index lists.

        Args:
            mask: `bool (B, gh, gw)`, `True` = masked, as many in every sample.
            count: masked units of a sample. On a GPU, where counting would be a synchronisation, and
                in traced code (`torch.compile`), where it would break the graph, it is taken at its
                word.

        Raises:
            TypeError: `mask` is no bool tensor.
            ValueError: another shape; samples with different numbers of masked units, or another
                number than `count`; no `count` in traced code or on `meta`.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            came = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor, got {came}")
        if mask.dim() != 3:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; allowed: (B, gh, gw)")
        units = mask.shape[1] * mask.shape[2]
        count = None if count is None else to_int("count", count)
        if count is not None and not 0 <= count <= units:
            raise ValueError(f"count is {count}; allowed: 0 to {units} units")
        if is_traced(mask) or mask.is_meta:
            if count is None:
                where = "on meta" if mask.is_meta else "in traced code"
                raise ValueError(f"count is None {where}; say how many units are masked")
        elif count is None or mask.device.type == "cpu":
            found = mask.flatten(1).sum(1).unique().tolist()
            if len(found) > 1 or (count is not None and found not in ([], [count])):
                allowed = "the same number in every sample" if count is None else f"{count} in each"
                raise ValueError(
                    f"mask has {found} masked units in its samples; allowed: {allowed}"
                )
            count = found[0] if found else count or 0
        return cls._listed(mask, count)

    @classmethod
    def _listed(cls, mask: Tensor, count: int) -> PatchMask:
        order = torch.argsort(~mask.flatten(1), dim=1, stable=True).int()
        return cls(mask, order[:, :count], order[:, count:])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PatchMask:
        """The same mask on `device`."""
        return PatchMask(*(part.to(device, non_blocking=non_blocking) for part in self))

    def on_grid(self, grid: tuple[int, int]) -> PatchMask:
        """The same mask on a finer grid `(h, w)`, for instance that of the encoder's tokens.

        Needs no synchronisation. Raises `ValueError` where `h` or `w` is no whole multiple of
        this mask's own grid, where the finer grid has 2^31 units or more, or where this mask's parts
        disagree.
        """
        h, w = to_sides("grid", grid)
        check_parts(self)
        own = self.mask.shape[1:]
        scale_y = whole_scale("grid height", h, "mask grid height", own[0])
        scale_x = whole_scale("grid width", w, "mask grid width", own[1])
        if scale_y == scale_x == 1:
            return self
        if h * w >= 1 << 31:
            raise ValueError(f"grid is {h} x {w}; allowed: up to 2^31 - 1 units")
        fine = self.mask.repeat_interleave(scale_y, 1).repeat_interleave(scale_x, 2)
        count = self.masked.shape[1] * scale_y * scale_x
        return PatchMask._listed(fine, count)


_from_parts = PatchMask.__new__


@wraps(_from_parts)
def _new(cls, *parts, **named):
    # Data loops rebuild containers as `type(data)(part for part in data)`, transformers' Trainer too.
    if len(parts) == 1 and not named and not isinstance(parts[0], Tensor):
        parts = tuple(parts[0])
    return _from_parts(cls, *parts, **named)


PatchMask.__new__ = _new  # which the body of a NamedTuple can't define


def mask_grid(mask: PatchMask | Tensor) -> Tensor:
    """The bool grid of a `PatchMask`, whose parts are checked, or the plain tensor itself."""
    if isinstance(mask, PatchMask):
        check_parts(mask)
        return mask.mask
    if not isinstance(mask, Tensor):
        advice = "; some samples of a PatchMask are PatchMask(*(part[:n] for part in mask))"
        advice = advice if isinstance(mask, tuple) else ""
        raise TypeError(
            f"mask must be a PatchMask or a bool tensor, got {type(mask).__name__}{advice}"
        )
    return mask


def is_traced(mask: Tensor) -> bool:
    """Whether there is nothing to look at in `mask`, or what is looked at would become a constant: in
    compiled code, of a fake tensor, under `vmap`, and while `make_fx` records."""
    if torch.compiler.is_compiling() or isinstance(mask, FakeTensor):
        return True
    if torch._C._functorch.is_batchedtensor(mask):
        return True
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def count_tokens(mask: PatchMask | Tensor, tokens_per_unit: int, *, masked: bool) -> int:
    """Rows that the masked, or the visible, tokens of the whole batch need.

    A PatchMask knows. For a plain bool mask the CPU counts; elsewhere, and in traced code, where
    looking at the mask would synchronise or break the graph, every token gets a row, and the surplus
    rows are padding.
    """
    if isinstance(mask, PatchMask):
        return (mask.masked if masked else mask.visible).numel() * tokens_per_unit
    units = mask.numel()
    if mask.device.type == "cpu" and not is_traced(mask):
        count = int(mask.count_nonzero())
        units = count if masked else units - count
    return units * tokens_per_unit


def check_parts(mask: PatchMask) -> None:
    """Checks that the index lists of `mask` can be those of its grid.

    Types, devices and shapes are checked always; the positions where they lie in the CPU's memory,
    once for one `PatchMask`. On a GPU reading them would be a synchronisation: there the kernels
    take no position that lies outside the grid.

    Raises `TypeError` for parts that are no tensors or of another type, `RuntimeError` for parts on
    different devices, and `ValueError` where the parts disagree.
    """
    if not torch.compiler.is_compiling() and _is_known(mask):
        return
    grid = mask.mask
    for name, dtype in (("mask", torch.bool), ("masked", torch.int32), ("visible", torch.int32)):
        part = getattr(mask, name)
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(part).__name__}")
        if part.dtype != dtype:
            kinds = (str(kind).removeprefix("torch.") for kind in (part.dtype, dtype))
            raise TypeError("{} has dtype {}; allowed: {}".format(name, *kinds))
        if part.device != grid.device:
            raise RuntimeError(f"{name} is on {part.device}, but mask is on {grid.device}")
    if grid.dim() != 3:
        raise ValueError(f"mask has shape {tuple(grid.shape)}; allowed: (B, gh, gw)")
    batch, units = grid.shape[0], grid.shape[1] * grid.shape[2]
    masked, visible = mask.masked, mask.visible
    if (
        masked.dim() != 2
        or visible.dim() != 2
        or masked.shape[0] != batch
        or visible.shape[0] != batch
        or masked.shape[1] + visible.shape[1] != units
    ):
        raise ValueError(
            f"masked has shape {tuple(masked.shape)} and visible {tuple(visible.shape)}; allowed for a "
            f"mask of shape {tuple(grid.shape)}: ({batch}, K) and ({batch}, {units} - K)"
        )
    if not torch.compiler.is_compiling() and grid.device.type == "cpu":
        _check_positions(mask)


def _check_positions(mask: PatchMask) -> None:
    if (
        type(mask.mask) is not Tensor
        or torch._C._len_torch_dispatch_stack()
        or is_traced(mask.mask)
    ):
        return  # of a fake tensor there is nothing to read
    units = mask.mask.flatten(1)
    for name, positions, value in (("masked", mask.masked, True), ("visible", mask.visible, False)):
        if not positions.numel():
            continue
        least, most = (int(limit) for limit in positions.aminmax())
        if least < 0 or most >= units.shape[1]:
            raise ValueError(
                f"{name} names unit {least if least < 0 else most}; allowed for a mask of shape "
                f"{tuple(mask.mask.shape)}: 0 to {units.shape[1] - 1}"
            )
        if not (positions[:, 1:] > positions[:, :-1]).all():
            raise ValueError(f"{name} names a unit twice, or units in another order than ascending")
        if not (units.gather(1, positions.long()) == value).all():
            raise ValueError(
                f"{name} names a unit that mask has {'visible' if value else 'masked'}; the index lists "
                "of a PatchMask must be those of its mask"
            )
    _remember(mask)


# What was checked last: weak references to the parts, and how often each had been written to.
_known: tuple = ()


def _is_known(mask: PatchMask) -> bool:
    if not _known:
        return False
    grid, masked, visible, versions = _known
    return (
        mask.mask is grid()
        and mask.masked is masked()
        and mask.visible is visible()
        and (mask.mask._version, mask.masked._version, mask.visible._version) == versions
    )


def _remember(mask: PatchMask) -> None:
    global _known
    if not any(part.is_inference() for part in mask):  # which do not count what is written to them
        versions = tuple(part._version for part in mask)
        _known = (*(weakref.ref(part) for part in mask), versions)
