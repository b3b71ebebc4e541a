"""What one instance of a module has that its class has not: hooks, a forward of its own."""

from __future__ import annotations

from torch import nn


def has_hooks(*modules: nn.Module | None) -> bool:
    """Whether somebody wants a module to be called, and not its weights to be used."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules
        if m is not None
    )


def is_changed(module: nn.Module) -> bool:
    """Whether this instance has a `forward` of its own."""
    return "forward" in module.__dict__
