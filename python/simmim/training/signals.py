"""End in order when asked to: Ctrl-C, SIGTERM, SIGHUP from a terminal that closes, and SIGUSR1 or SIGUSR2
from a batch system before a job's time is over (``sbatch --signal``)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
#: those that programs give meanings of their own
_USER_DEFINED = (signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect the signals of ``STOPPING`` instead of dying; a second one takes its usual effect.

    Only SIGHUP stays caught: where a terminal closes, the shell and the system send one each. A
    signal that the process was started to ignore (SIGHUP under ``nohup``, SIGINT in the background
    of a shell script) stays ignored, and SIGUSR1 and SIGUSR2 stay with handlers that they have.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {}

    def note(number: int, _frame: object) -> None:
        caught.append(number)
        if number != signal.SIGHUP:
            signal.signal(number, before[number])

    for number in STOPPING:
        current = signal.getsignal(number)
        if current is not signal.SIG_IGN and (
            number not in _USER_DEFINED or current is signal.SIG_DFL
        ):
            before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def handled(
    number: int, handler: Callable[[int, object], None] | signal.Handlers
) -> Iterator[None]:
    """Let ``handler`` take signal ``number`` within the block; in other threads than the main one, which
    can set none, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def leave_signals_to_parent(_worker: int) -> None:
    """In a data-loader worker: the parent finishes its update first and stops the workers then.

    Ctrl-C and a closed terminal reach the whole process group, and so do the signals of some batch
    systems.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
