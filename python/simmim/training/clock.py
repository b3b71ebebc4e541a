"""A clock that stands still while the process is stopped: by Ctrl-Z, by a batch system that suspends
its jobs, by whoever sends SIGSTOP. While the machine sleeps, the system's own clock stands still."""

from __future__ import annotations

import time


class RunClock:
    """Seconds that the process was not stopped, for its main thread, and in ``stopped`` those that
    it was.

    A stop cannot be noticed, going on can: what lies between the last reading of the clock and that
    moment counts as stopped, so it is to be read often, at least with every update.
    """

    def __init__(self) -> None:
        self.stopped, self._read = 0.0, time.perf_counter()

    def __call__(self) -> float:
        """Seconds since an arbitrary moment."""
        self._read = time.perf_counter()
        return self._read - self.stopped

    def go_on(self, _number: int, _frame: object) -> None:
        """A handler of SIGCONT, for the main thread: leave out the time since the last reading."""
        now = time.perf_counter()
        self.stopped += now - self._read
        self._read = now


#: by which everything is timed that a run says about its speed
run_clock = RunClock()
