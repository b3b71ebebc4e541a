"""The decision to compile a run's model with ``torch.compile``, and its start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from simmim.errors import first_line
from simmim.training.progress import clock

#: updates after which ``auto`` decides, always the same so that a resumed run does what the
#: uninterrupted one did; the last of them is timed
DECIDED_AT = 3
#: estimates: seconds that compiling takes, and the share of an update that it saves at least
COSTS, SAVES = 60.0, 0.1


def is_worth_compiling(seconds: float, updates: int) -> tuple[bool, str]:
    """Whether compiling is earned back in ``updates`` that take ``seconds`` each without it, and
    why."""
    left = f"{clock(seconds * updates)} left at {seconds:.2g} s an update"
    if seconds * updates * SAVES > COSTS:
        return True, f"with {left} it is earned back"
    return False, f"{left} would not earn back the minute that it takes"


def compile_model(model: nn.Module, trial: Callable[[], None]) -> str | None:
    """Compile ``model.forward`` for inputs of fixed shapes; where that fails the model stays as it
    was, and what kept it from being compiled is returned. Names of parameters stay, and random
    numbers are drawn as without compiling.

    Args:
        trial: makes a forward and a backward pass, in which everything is compiled.
    """
    model.forward = torch.compile(model.forward, dynamic=False, options={"fallback_random": True})
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    # the compilers' errors, that of a missing C++ compiler among them
    except RuntimeError as error:
        del model.forward
        return first_line(error)
    return None


def uncompiled() -> AbstractContextManager:
    """Within it, compiled models run as if they were not."""
    return torch.compiler.set_stance("force_eager")
