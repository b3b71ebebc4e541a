"""The one place that turns a schema, its checks and its backends into a `torch.library` op.

An op file calls `define` for each of its ops and `differentiate` for its autograd Function; no op
repeats how dispatch, fake kernels, transforms or second derivatives are handled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

from simmim_kernels import backends
from simmim_kernels.backends._loss_spec import LossSpec
from simmim_kernels.ops import _call_signature as signatures

NAMESPACE = "simmim_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_KEYS = ("CPU", "CUDA")
_MOST_PASSED = 256  # signatures that an op keeps

_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_active = torch._C._are_functorch_transforms_active
_is_jit_tracing = torch._C._is_tracing


@dataclass(eq=False)
class Op:
    """A registered op. Called with tensors in plain eager mode it runs the backend at once, which
    saves the dispatcher's round trip through Python; under compilation, dispatch modes or tensor
    subclasses it goes through the dispatcher, so that those see it."""

    name: str
    module: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    spec_at: int | None  # which argument is a LossSpec, whose fields the dispatcher sees
    # What runs on every device in place of a backend's function.
    composed: Callable[..., Any] | None
    passed: set[tuple[Any, ...]] = field(default_factory=set)  # signatures that passed the check

    def __post_init__(self) -> None:
        self.overload = getattr(torch.ops.simmim_kernels, self.name).default

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.overload(*self.flat(args))
        refuse_transforms(self, args)
        signature = None if _dispatch_modes() else signatures.call_signature(args)
        if signature is None:
            self.check(*args)  # says more plainly than the dispatcher what is not allowed
            return self.overload(*self.flat(args))
        return self._run(signature, args)

    def flat(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of the registered schema."""
        at = self.spec_at
        return args if at is None else (*args[:at], *args[at], *args[at + 1 :])

    def grouped(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inverse of `flat`."""
        at = self.spec_at
        if at is None:
            return args
        end = at + len(LossSpec._fields)
        return (*args[:at], LossSpec(*args[at:end]), *args[end:])

    def run(self, *args: Any) -> Any:
        """Check the arguments and run the backend that serves the first tensor's device."""
        return self._run(signatures.call_signature(args), args)

    def _run(self, signature: tuple[Any, ...] | None, args: tuple[Any, ...]) -> Any:
        try:
            passed = signature in self.passed
        except TypeError:  # an argument of a type that no op takes
            signature, passed = None, False
        if not passed:
            self.check(*args)
            self._remember(signature, args)
        if self.composed is not None:
            return self.composed(*args)
        device = args[0].device
        return backends.serve(self.module, self.name, device.type, device.index)(*args)

    def _remember(self, signature: tuple[Any, ...] | None, args: tuple[Any, ...]) -> None:
        # The tensors of a list seldom have the same shapes twice.
        if signature is None or any(type(a) is list for a in args):
            return
        if len(self.passed) >= _MOST_PASSED:
            self.passed.clear()
        self.passed.add(signature)


def _expand(schema: str) -> tuple[str, int | None]:
    """The schema with the fields of a LossSpec in place of `LossSpec spec`, and which argument that
    is; None where it has none."""
    before, found, after = schema.partition("LossSpec spec")
    if not found:
        return schema, None
    kinds = {str: "str", float: "float", int: "SymInt"}
    fields = [f"{kinds[kind]} {name}" for name, kind in get_type_hints(LossSpec).items()]
    return before + ", ".join(fields) + after, before.count(",")


def define(
    schema: str,
    *,
    module: str,
    check: Callable[..., None],
    fake: Callable[..., Any],
    run: Callable[..., Any] | None = None,
    gradient: Callable[..., Any] | None = None,
    tags: tuple[torch.Tag, ...] = (),
) -> Op:
    """Register the op of `schema`, whose first argument is a tensor.

    Args:
        schema: the `torch.library` schema, without namespace and without defaults. An argument
            `LossSpec spec` stands for its fields; `check`, `fake` and backends get one LossSpec.
        module: the file that holds the op in every backend, for instance `"mask_tokens"`.
        check: raises on bad arguments, which are the schema's; runs before the backend and before the
            fake kernel.
        fake: allocates outputs of the right shape, type and strides from fake tensors.
        run: what runs on every device, for an op that is made of others; without it the function of
            that name in the backend that serves.
        gradient: the op's result with a gradient, from its autograd Function; None for arguments of
            which that has none. Exported programs hold the op alone, without the Function around it.
    """
    name = schema.partition("(")[0]
    schema, spec_at = _expand(schema)
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    op = Op(name, module, check, fake, spec_at, run)

    def run_grouped(*args: Any) -> Any:
        return op.run(*op.grouped(args))

    for key in _KEYS:
        _LIBRARY.impl(name, run_grouped, key)

    def run_with_gradient(*args: Any) -> Any:
        # Here, too, for compiled code and exported programs, where `Op` looks at nothing.
        refuse_forward_mode(op, args)
        result = gradient(*op.grouped(args)) if gradient and needs_grad(*args) else None
        if result is not None:
            return result
        with torch._C._AutoDispatchBelowAutograd():
            return op.overload(*args)

    _LIBRARY.impl(name, run_with_gradient, "Autograd")

    def checked_fake(*args: Any) -> Any:
        args = op.grouped(args)
        check(*args)
        return fake(*args)

    torch.library.register_fake(f"{NAMESPACE}::{name}", checked_fake, lib=_LIBRARY)
    return op


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd wants a gradient for any of `tensors`."""
    if torch.is_grad_enabled():
        for t in tensors:
            if isinstance(t, Tensor) and t.requires_grad:
                return True
    return False


class _NoContext:
    """What a Function's forward leaves to a backward that is not called."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        pass


def differentiate(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, refusing the transforms that no kernel here supports."""
    if torch.compiler.is_exporting():
        # A strict export would keep the Function as a part without gradients; the op has its own.
        return function.forward(_NoContext(), *args)
    if torch.compiler.is_compiling():
        return function.apply(*args)
    refuse_transforms(function, args)
    return apply(function, *args)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, whose backward keeps the choice of backend."""
    result = function.apply(*args)
    forced = backends.forced()
    if forced is not None:
        # Autograd runs backward passes on a GPU in a thread of its own, without our override.
        first = result if isinstance(result, Tensor) else result[0]
        first.grad_fn.backend = forced
    return result


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a Function's backward: its result can't be differentiated again, and says so."""

    @wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> Any:
        if torch.compiler.is_compiling():
            with torch.no_grad():
                return backward(ctx, *grads)
        forced = getattr(ctx, "backend", None)
        if forced is None and not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad(), nullcontext() if forced is None else backends.backend(forced):
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return results
        wanted = [t for t in (*grads, *_leaves_behind(ctx)) if t is not None and t.requires_grad]
        name = type(ctx).__name__.strip("_").removesuffix("Backward")
        message = f"simmim_kernels: {name} has no second derivative"
        # With the incoming gradients and the leaves among its inputs the error stands on the way to
        # both, so that `torch.autograd.grad` meets it too. The results want a gradient even where
        # those do not: the derivative left out would be missed.
        refuse = torch._C._functions.DelayedError(message.encode(), 1 + len(wanted))

        def refused(result: Any) -> Any:
            if not isinstance(result, Tensor):
                return result
            result = refuse(result.detach().requires_grad_(), *wanted)
            return result[0] if wanted else result

        return tuple(map(refused, results))

    return staticmethod(wrapper)


def _leaves_behind(ctx: Any) -> list[Tensor]:
    """The tensors at the ends of the graph that made a Function's inputs."""
    nodes, seen, leaves = [node for node, _ in ctx.next_functions], set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        nodes += [inner for inner, _ in node.next_functions]
    return leaves


def refuse_transforms(caller: Op | type, args: tuple[Any, ...]) -> None:
    """`RuntimeError` under `torch.func` transforms and `torch.jit.trace`, and for dual (forward-mode)
    tensors."""
    if _functorch_active():
        raise RuntimeError(
            f"simmim_kernels: {_name(caller)} does not support torch.func transforms (vmap, grad, jvp); "
            "batch over the first dimension, and use torch.autograd for gradients"
        )
    if _is_jit_tracing():  # which would record the allocation of a result and not what fills it
        raise RuntimeError(
            f"simmim_kernels: {_name(caller)} can't be recorded by torch.jit.trace; use torch.export"
        )
    refuse_forward_mode(caller, args)


def refuse_forward_mode(caller: Op | type, args: tuple[Any, ...]) -> None:
    """`RuntimeError` for dual tensors, whose tangents no kernel here has."""
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(a).tangent is not None for a in _tensors(args)
    ):
        raise RuntimeError(f"simmim_kernels: {_name(caller)} has no forward-mode derivative")


def _name(caller: Op | type) -> str:
    return caller.module if isinstance(caller, Op) else caller.__name__.strip("_")


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among arguments and in their lists."""
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif type(a) is list:
            yield from _tensors(a)


def are_plain(args: tuple[Any, ...]) -> bool:
    """Whether nothing but a backend has to see these arguments: no dispatch mode, no tensor that is
    more than its memory."""
    return not _dispatch_modes() and signatures.call_signature(args) is not None
