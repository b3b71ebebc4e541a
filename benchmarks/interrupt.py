"""Ctrl-C that is never lost.

Python drops an exception that a signal raises inside a destructor or a weak reference's callback, of
which PyTorch has many. The request is kept, too, and raised again before the next call is timed.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

asked = False
_raises = False


def catch() -> None:
    """Handle Ctrl-C here, also in a shell's background job, which ignores it by default."""
    signal.signal(signal.SIGINT, _handle)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise `KeyboardInterrupt` inside, at once; outside, Ctrl-C only sets `asked`."""
    global _raises
    _raises = True
    try:
        raise_if_asked()
        yield
    finally:
        _raises = False


def raise_if_asked() -> None:
    if asked:
        raise KeyboardInterrupt


def _handle(*_: object) -> None:
    global asked
    asked = True
    if _raises:
        raise KeyboardInterrupt
