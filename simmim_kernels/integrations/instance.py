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


def must_be_called(*modules: nn.Module | None) -> bool:
    """Whether calling a module does more, or something else, than its class does with its weights:
    hooks, or a forward of the instance (accelerate's offloading, an adapter)."""
    return has_hooks(*modules) or any(is_changed(m) for m in modules if m is not None)


def has_forward_of(module: nn.Module, package: str) -> bool:
    """Whether the forward of a module's class is code of `package`, and not of a class of one's own."""
    return type(module).forward.__module__.partition(".")[0] == package


def is_changed(module: nn.Module) -> bool:
    """Whether this instance has a `forward` of its own."""
    return "forward" in module.__dict__
