"""A transformers output of which one field is computed when it is first read."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, ValuesView
from contextlib import nullcontext
from dataclasses import fields
from functools import cache, partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


def may_defer(model: nn.Module, return_dict: bool | None) -> bool:
    """Whether this call of `model` may leave a field to be computed later: in training steps, where
    nothing reads the output at once, and with weights of its own.

    FSDP reads the whole output when the weights are gone: `fully_shard` in a hook on the model, its
    wrapper around it, which lends tensors that are no parameters for the call.
    """
    training = model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not training or not return_dict or model._forward_hooks:
        return False
    weights = list(model.decoder.parameters())
    return bool(weights) and all(isinstance(p, nn.Parameter) for p in weights)


def deferred_output(
    output_class: type, name: str, make: Callable[[], Tensor], loss: Tensor, **others: Any
) -> Any:
    """An instance of `output_class` for whose field `name` `make` is called at the first read.

    Reading is any access that yields its value: the attribute, the key, an index other than that of
    the loss, `items()`, `values()`, `popitem()`, `to_tuple()`, pickling.
    """
    # The loss holds the place of the field that is not there yet, in the dict, where a key needs one.
    output = _deferring(output_class, name)(loss=loss, **{name: loss}, **others)
    del output.__dict__[name]
    output.__dict__["_make"] = make
    return output


class Prediction:
    """What `predict` gives when it is called for, by `module` as it was and under the autocast of the
    call that made this.

    Args:
        like: a tensor on the device of that call.
        name: of the output's field and of the module, for the error where the module has other
            weights by then.
    """

    def __init__(
        self, predict: Callable[[], Tensor], module: nn.Module, like: Tensor, name: str
    ) -> None:
        self.predict, self.module, self.name = predict, module, name
        self.parameters = list(module.parameters())  # kept, so that no other gets the id of one
        self.weights, self.watch = self._weights(), _Watch(map(id, self.parameters))
        if not torch.compiler.is_compiling():
            _watch_optimizers()
            _WATCHES.add(ref(self.watch, _WATCHES.discard))
        device = like.device.type
        self.autocast = nullcontext
        if device != "meta":  # which has no autocast
            options = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
            self.autocast = partial(torch.autocast, device, *options)

    def _weights(self) -> list[tuple[int, int, int | None]]:
        # Memory, too: what is written to `.data` is in no version.
        return [(id(p), p._version, _memory_of(p)) for p in self.module.parameters()]

    def __call__(self) -> Tensor:
        if self.watch.stepped or self._weights() != self.weights:
            raise RuntimeError(
                f"{self.name} has other weights than when this output was made; read it before the "
                "optimizer's step, or call with return_dict=False where the weights are lent for one "
                "call (torch.func.functional_call)"
            )
        with torch.enable_grad(), self.autocast():
            return self.predict()


def _memory_of(p: Tensor) -> int | None:
    return p.data_ptr() if type(p) is nn.Parameter or type(p) is Tensor else None


class _Watch:
    """Whether an optimizer has changed any of these parameters, by their ids.

    It holds no tensor: another thread's optimizer must neither read a gradient that a backward pass
    is writing, nor be the last to let go of a graph.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids, self.stepped = frozenset(ids), False


# No WeakSet: looking through one fails where another thread puts something in.
_WATCHES: set[ref[_Watch]] = set()


@cache
def _watch_optimizers() -> None:
    # Fused optimizers leave the versions of what they change as they were.
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # A step that is traced may run at any time.
    if torch.compiler.is_compiling() or not _WATCHES:
        return
    own = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for each in _WATCHES.copy():
        if (watch := each()) is not None and not watch.stepped:
            watch.stepped = any(own[i].grad is not None for i in watch.ids & own.keys())


class _Deferring:
    """Goes before a `ModelOutput`, which is an `OrderedDict` whose fields are attributes too."""

    _name: str  # of the field

    def _resolve(self) -> None:
        make = self.__dict__.get("_make")
        if make is not None:
            value = make()
            del self.__dict__["_make"]
            self[self._name] = value

    def __getitem__(self, key: Any) -> Any:
        if key in ("loss", 0):
            return self.loss
        self._resolve()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._resolve()
        return super().get(key, default)

    def items(self) -> ItemsView:
        self._resolve()
        return super().items()

    def values(self) -> ValuesView:
        self._resolve()
        return super().values()

    def popitem(self, last: bool = True) -> tuple[str, Any]:
        self._resolve()
        return super().popitem(last)

    def to_tuple(self) -> tuple:
        self._resolve()
        return super().to_tuple()

    def __reduce__(self) -> tuple:
        # The class was made at run time and can't be found by name: the copy is of transformers'.
        return type(self).__mro__[2], tuple(getattr(self, f.name) for f in fields(self))


def _field(name: str) -> property:
    """The attribute that is computed when it is first read."""

    def read(self: _Deferring) -> Tensor | None:
        self._resolve()
        return self.__dict__[name]

    def write(self: _Deferring, value: Tensor | None) -> None:
        self.__dict__.pop("_make", None)
        self.__dict__[name] = value

    return property(read, write)


@cache
def _deferring(output_class: type, name: str) -> type:
    content = {"__module__": __name__, "_name": name, name: _field(name)}
    return type(f"Deferred{output_class.__name__}", (_Deferring, output_class), content)
