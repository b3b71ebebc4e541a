"""A gradient formed in the forward pass, times the gradient of its loss: nearly always 1."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch._functorch import config

from simmim_kernels import backends
from simmim_kernels.ops._define import are_plain, define

_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph


def _check(grad: Tensor, factor: Tensor, *_: bool) -> None:
    if factor.dim() > 1 or (factor.dim() and factor.shape[0] != grad.shape[0]):
        raise ValueError(f"factor has shape {tuple(factor.shape)}; allowed: (), ({grad.shape[0]},)")


def _rows(grad: Tensor, factor: Tensor) -> Tensor:
    """The factor, or that of each row of `grad`, in a shape that multiplies it: with dimensions, because
    GPUs round a number without to the type of `grad` first."""
    return factor.view(-1, *(1,) * (grad.dim() - 1))


def _multiplied(grad: Tensor, factor: Tensor) -> Tensor:
    return (grad * _rows(grad, factor)).to(grad.dtype)


def _scaled_copy(grad: Tensor, factor: Tensor, *_: bool) -> Tensor:
    grad = grad.clone()
    _scale_in_place(grad, factor)
    return grad


def _fake(grad: Tensor, factor: Tensor, donated: bool) -> Tensor:
    _lower_in_place()
    return torch.empty_like(grad)


# What compiled backward passes call. `donated`, PyTorch's setting, is an argument because Inductor's cache
# of compiled code does not tell apart graphs that differ in it alone.
_scaled_gradient = define(
    "scaled_gradient(Tensor grad, Tensor factor, bool donated) -> Tensor",
    module="masked_loss",
    check=_check,
    fake=_fake,
    run=_scaled_copy,
)


def _scale_in_place(grad: Tensor, factor: Tensor) -> None:
    # Whatever the order of its dimensions in memory, a dense gradient is a row of numbers.
    order = sorted(range(grad.dim()), key=grad.stride, reverse=True)
    flat = grad if grad.is_contiguous() else grad.permute(order)
    if flat.is_contiguous() and (not factor.dim() or order[0] == 0):
        device = grad.device
        backends.serve("masked_loss", "scale_gradient_", device.type, device.index)(flat, factor)
    else:
        grad.mul_(_rows(grad, factor))


_scale_gradient_ = define(
    "scale_gradient_(Tensor(a!) grad, Tensor factor) -> ()",
    module="masked_loss",
    check=_check,
    fake=lambda grad, factor: None,
    run=_scale_in_place,
)


def _lower_in_place() -> None:
    """Let Inductor's backward passes scale a gradient in its own memory, where they own it and
    nothing else reads it: the functional op would always write another.

    Inductor copies what an op changes, unless the graph itself made it; a saved tensor it may only
    use again (`DonatedBuffer`), which the graph can't say. Where these names are not found, the
    functional op runs.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    op = torch.ops.simmim_kernels.scaled_gradient.default
    if lowering is None or op in lowering.lowerings or not hasattr(lowering.ir, "DonatedBuffer"):
        return
    ir = lowering.ir

    def lower(grad, factor, donated):
        node = lowering.V.graph.current_node.args[0]
        grad.realize()
        buffer = grad.data.data if isinstance(grad.data, ir.StorageBox) else None
        if isinstance(buffer, ir.DonatedBuffer) and len(node.users) == 1:
            in_place = torch.ops.simmim_kernels.scale_gradient_.default
            ir.FallbackKernel.create(in_place, grad, factor)
            return grad
        return lowering.fallback_handler(op, add_to_fallback_set=False)(grad, factor, donated)

    lowering.register_lowering(op, type_promotion_kind=None)(lower)


def scaled(grad: Tensor, factor: Tensor, shared: bool) -> Tensor:
    """The saved gradient times a factor for all of it, or one for each of its first dimension.

    A factor of exactly 1 costs no pass over memory, and a graph that is not kept gives its memory
    away: nobody else can see the saved tensor then, unless it is `shared` with a hook for saved
    tensors. The CPU looks at one factor here; on a GPU that would be a synchronisation, so that the
    kernel does.
    """
    if torch.compiler.is_compiling():
        return _scaled_gradient(grad, factor, config.donated_buffer)
    if not are_plain((grad, factor)):
        return _multiplied(grad, factor)
    if grad.device.type == "cpu" and not factor.dim():
        number = factor.item()
        if shared or _keeps_graph():
            return grad * number
        return grad if number == 1.0 else grad.mul_(number)
    if shared or _keeps_graph():
        return _scaled_copy(grad, factor)
    _scale_in_place(grad, factor)
    return grad
