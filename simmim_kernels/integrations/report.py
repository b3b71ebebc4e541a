"""What was changed in a model of somebody else's, what was left and why, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
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
    _changes: list[_Change] = field(default_factory=list, repr=False)

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

    def _replace_forward(
        self, module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Give `module`, and no other instance of its class, the forward that `make` forms from the
        class's own (a function of `self` and the arguments)."""
        self._changes.append(_Change(module, make))


class _Change:
    """The `forward` of one module."""

    def __init__(
        self, module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        theirs = type(module).forward
        ours = make(theirs)
        self.module, self.active = module, True

        # Its signature is the original's: transformers' Trainer reads it to choose the columns.
        @wraps(theirs)
        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return (ours if self.active else theirs)(module, *args, **kwargs)

        def replicate(module: nn.Module) -> nn.Module:
            replica = type(module)._replicate_for_data_parallel(module)
            replica.forward = MethodType(forward, replica)
            return replica

        self.forward = MethodType(forward, module)
        module.forward = self.forward
        # DataParallel copies an instance's attributes as they are: the replicas on other devices
        # would run this instance's forward, on its weights.
        module._replicate_for_data_parallel = MethodType(replicate, module)

    def undo(self) -> None:
        del self.module._replicate_for_data_parallel
        if self.module.__dict__.get("forward") == self.forward:
            del self.module.forward
        else:
            self.active = False


def is_changed(module: nn.Module) -> bool:
    """Whether this instance has a `forward` of its own."""
    return "forward" in module.__dict__
