"""What was changed in a model of somebody else's, what was left and why, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature, unwrap
from types import MethodType
from typing import Any

from torch import nn


@dataclass
class Report:
    """The changes that were made to one instance.

    Attributes:
        model: the name of its class.
        replaced: part of the model -> what it runs on now.
        left: part of the model -> why it stays as it was.
    """

    model: str
    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _changes: list[_Change | _Attribute] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Make the instance what it was before. A second call does nothing.

        Where somebody has since wrapped a replaced `forward` in their own (accelerate does, for
        mixed precision), theirs stays and runs the original.
        """
        while self._changes:
            self._changes.pop().undo()
        self.replaced.clear()

    def __str__(self) -> str:
        lines = [f"{self.model}:"]
        lines += [f"  replaced  {part}: {what}" for part, what in self.replaced.items()]
        lines += [f"  left      {part}: {why}" for part, why in self.left.items()]
        return "\n".join(lines)

    def _set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Give one object another value of an attribute."""
        self._changes.append(_Attribute(owner, name, value))

    def _replace_forward(
        self, module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Give `module`, and no other instance of its class, the forward that `make` forms from the
        class's own (a function of `self` and the arguments). `make` can be pickled."""
        self._changes.append(_Change(module, make))


class _Attribute:
    """An attribute of one object, which keeps what somebody else has set since."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self.owner, self.name, self.value = owner, name, value
        self.before = getattr(owner, name)
        setattr(owner, name, value)

    def undo(self) -> None:
        if getattr(self.owner, self.name) == self.value:
            setattr(self.owner, self.name, self.before)


class _Change:
    """The `forward` of one module."""

    def __init__(
        self, module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self.module, self.forward = module, _Forward(module, make)
        module.forward = self.forward
        # DataParallel copies an instance's attributes as they are: the replicas on other devices
        # would run this instance's forward, on its weights.
        module._replicate_for_data_parallel = self.forward.replicate

    def undo(self) -> None:
        del self.module._replicate_for_data_parallel
        if self.module.__dict__.get("forward") is self.forward:
            del self.module.forward
        else:
            self.forward.active = False


class _Forward:
    """What an instance has in the place of a `forward`; its copies and pickles have one of theirs.

    An object and not a function made at run time, which could not be pickled.
    """

    def __init__(
        self, module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self.__setstate__({"module": module, "make": make, "active": True})

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("module", "make", "active")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.theirs = type(self.module).forward
        self.ours = self.make(self.theirs)
        # That of the original: transformers' Trainer reads it to choose the columns.
        self.__signature__ = signature(MethodType(self.theirs, self.module))
        # torch.export names the place of the code; a partial has none.
        self.__code__ = getattr(unwrap(self.theirs), "__code__", None)

    def __func__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As a method has it, from which accelerate makes its own method of `module`."""
        return (self.ours if self.active else self.theirs)(module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.ours if self.active else self.theirs)(self.module, *args, **kwargs)

    def replicate(self) -> nn.Module:
        """What `DataParallel` asks `module` for: a replica that runs on its own weights."""
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        replica.forward = _Forward(replica, self.make)
        return replica
