"""The signature of a call, by which an op knows that it has checked such arguments before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from simmim_kernels.backends._compiled import load

_PLAIN_TENSORS = (Tensor, torch.nn.Parameter)  # no mode overrides them

_is_batched = torch._C._functorch.is_legacy_batchedtensor


def call_signature_in_python(args: Sequence[Any]) -> tuple[Any, ...] | None:
    """All that a check looks at: shape, strides, type and device of a tensor, type and value of
    another argument. None where a tensor is more than its memory, so that the dispatcher has to see
    it: a subclass; on `meta`; sparse or nested; with a lazy sign, as of `complex.conj().imag`; zeros
    without memory; the batched gradients of `torch.autograd.grad(..., is_grads_batched=True)`."""
    signature: list[Any] = []
    for a in args:
        kind = type(a)
        if kind in _PLAIN_TENSORS:
            if a.is_meta or a.layout is not torch.strided or a.is_nested:
                return None
            if a.is_neg() or a._is_zerotensor() or _is_batched(a):
                return None
            signature.append((a.shape, a.stride(), a.dtype, a.device))
        elif isinstance(a, Tensor):
            return None
        elif kind is list:
            if (inner := call_signature_in_python(a)) is None:
                return None
            signature.append(inner)
        else:
            signature.append((kind, a))
    return tuple(signature)


def _load_and_find(args: Sequence[Any]) -> tuple[Any, ...] | None:
    """The first call: from now on the compiled module for CPUs finds the signatures, of calls on every
    device, where it can be loaded (csrc/call_signature.h)."""
    global call_signature
    compiled, _ = load("_cpu")
    call_signature = call_signature_in_python
    if compiled is not None:
        call_signature = compiled.make_call_signature(*_PLAIN_TENSORS)
    return call_signature(args)


call_signature: Callable[[Sequence[Any]], tuple[Any, ...] | None] = _load_and_find
