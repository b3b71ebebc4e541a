"""Failures that end a run early, in one line that says what to do and what was saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from simmim.errors import LostProcessError, ProcessError, UserError, first_line


class NotFiniteError(UserError):
    """A loss, a gradient, a weight or a validation became infinite or not a number."""


class AgreedFailure(Exception):
    """A failure that all processes of the run learnt of at the same point; ``error`` is ``None``
    where it was another process's."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def explained() -> Iterator[None]:
    """Turn failures for which PyTorch has long words into ``UserError``: no memory left, or a
    process that read images was killed, which is what a system without memory does."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        explanation = _explain(error)
        if explanation is None:
            raise
        raise explanation from error


@contextmanager
def saved_on_failure(save: Callable[[bool], str]) -> Iterator[None]:
    """Save what there is before an exception ends the run.

    Args:
        save: told whether all processes take part; saves the state after the last whole update
            where it can, and says in words what remains. Called once, for every ``Exception``
            but numbers that are not finite.

    Raises:
        UserError: the failure with what remains, if it is one of those that are explained.
        LostProcessError: the failure was another process's.
        BrokenPipeError: the reader of the output has gone.
    """
    try:
        yield
    except (NotFiniteError, LostProcessError):
        raise
    except AgreedFailure as failure:
        remains = save(True)
        if failure.error is None:
            raise LostProcessError(remains) from None
        raise _with(failure.error, remains) from failure.error
    except Exception as error:
        failure = _with(error, save(False))
        if failure is error:
            raise
        raise failure from error


def _with(error: Exception, remains: str) -> Exception:
    """``error`` as one that also says what remains; errors of unknown kind stay as they are."""
    if isinstance(error, BrokenPipeError):
        return error
    if isinstance(error, RuntimeError | MemoryError):
        error = _explain(error) or error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        error = ProcessError(f"{where}{error.strerror or _innermost(error)}")
    return type(error)(f"{error}; {remains}") if isinstance(error, UserError) else error


def _innermost(error: OSError) -> str:
    """What ``error`` says; of one that a data-loader worker sent, the last line of its traceback."""
    if "DataLoader worker process" in str(error):
        return str(error).strip().splitlines()[-1].strip()
    return first_line(error)


def _explain(error: RuntimeError | MemoryError) -> UserError | None:
    # but for a GPU's memory, these of PyTorch's have no type of their own
    text = str(error)
    if isinstance(error, MemoryError):
        return ProcessError(
            f"out of memory ({first_line(error)}): lower --batch-size or --crops-per-image, or leave "
            "out --cache"
        )
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return ProcessError(
            "out of memory: lower --batch-size (for pretrain and finetune raise --accumulate by as "
            "much, and the run stays the same)"
        )
    if text.startswith("Too many open files"):
        return ProcessError(
            "too many open files: each batch that is handed over takes some, so raise their number, for "
            "example by ulimit -n 4096, or lower --workers"
        )
    if text.startswith("DataLoader worker"):
        return ProcessError(
            "a process that reads images was killed, as systems do that run out of memory: lower "
            "--workers or --batch-size, or leave out --cache"
        )
    return None


def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """The name of the first tensor in nested ``state`` that holds an infinity or a NaN.

    The host waits for the device once, however many tensors there are.
    """
    found = {
        ".".join(str(getattr(key, "key", getattr(key, "idx", None))) for key in path): value
        for path, value in tree_flatten_with_path(state)[0]
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    finite = [torch.isfinite(value).all() for value in found.values()]
    if not finite:
        return None
    device = max((t.device for t in finite), key=lambda d: d.type != "cpu")
    finite = torch.stack([t.to(device, non_blocking=True) for t in finite]).tolist()
    return next((name for name, ok in zip(found, finite, strict=True) if not ok), None)
