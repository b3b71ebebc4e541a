"""What a run can run out of, told in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simmim.errors import UserError


@contextmanager
def explained() -> Iterator[None]:
    """Turn the failures below, for which PyTorch has long words, into ``UserError``.

    Raises:
        UserError: no memory left, or a process that read images was killed, which is what a system
            without memory does.
    """
    try:
        yield
    except RuntimeError as error:
        # but for a GPU's memory, these have no type of their own
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
            raise UserError(
                "out of memory: lower --batch-size (for pretrain and finetune raise --accumulate "
                "by as much, and the run stays the same)"
            ) from error
        if text.startswith("DataLoader worker"):
            raise UserError(
                "a process that reads images was killed, as systems do that run out of memory: "
                "lower --workers or --batch-size, or leave out --cache"
            ) from error
        raise
