"""The decision to compile a run's model with ``torch.compile``, and its start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from timm.models import SwinTransformer, SwinTransformerV2
from torch import nn

from simmim.errors import first_line
from simmim.training.progress import clock

#: updates after which ``auto`` decides, always the same so that a resumed run does what the
#: uninterrupted one did; the last of them is timed
DECIDED_AT = 3
#: estimates: seconds that compiling takes, and how many times as many for the windows of a Swin
COSTS, SWIN_COSTS = 60.0, 4
#: estimates of the share of an update that it saves: 0 to 20 % were measured in bfloat16 (the rows ``step``
#: and ``transformers``), 1 to 4 % in float32 on a CPU with AVX2, where products take more of an update
#: (``transformers``), and -4 % for Swin-T there (by hand)
SAVES, SAVES_IN_FLOAT32 = 0.1, 0.02


def is_worth_compiling(
    model: nn.Module, device: str, precision: str, seconds: float, updates: int
) -> tuple[bool, str]:
    """Whether compiling ``model`` is earned back, and why.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        precision: Fabric's name, for instance ``"bf16-mixed"``.
        seconds: that an update takes uncompiled.
        updates: that are left.
    """
    swin = any(isinstance(m, SwinTransformer | SwinTransformerV2) for m in model.modules())
    on_cpu_in_float32 = device == "cpu" and precision == "32-true"
    if swin and on_cpu_in_float32:
        return False, "a Swin is no faster compiled, in float32 on a CPU"
    costs = COSTS * SWIN_COSTS if swin else COSTS
    saves = SAVES_IN_FLOAT32 if on_cpu_in_float32 else SAVES
    left = f"{clock(seconds * updates)} left at {seconds:.2g} s an update"
    if seconds * updates * saves > costs:
        return True, f"with {left} it is earned back"
    minutes = "4 minutes" if swin else "minute"
    return False, f"{left} would not earn back the {minutes} that it takes"


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
