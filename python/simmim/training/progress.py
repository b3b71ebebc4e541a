"""A run's output on the terminal: a progress bar, or plain lines."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from simmim.errors import printable, require, say
from simmim.launchers import is_first
from simmim.training.clock import run_clock

#: seconds without a word after which a log that is no terminal gets a line
QUIET = 20.0
#: seconds after which a preparation that is still going on is named
PATIENCE = 3.0


def _say_quietly(text: str) -> None:
    """Print to stderr; a line that only informs is no reason to fail."""
    with suppress(OSError, ValueError):
        say(text)


@contextmanager
def named_if_slow(
    text: str, say: Callable[[str], None] = _say_quietly, patience: float = PATIENCE
) -> Iterator[None]:
    """Say ``text``, what the block does, in the first process of the run if that takes longer than
    ``patience`` seconds; ``say`` is called from another thread."""
    if not is_first():
        yield
        return
    timer = threading.Timer(patience, say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class FallibleOutput:
    """Calls functions that write to the place ``where`` until one of them fails, by a closed pipe
    or a full disk; that first failure stays in ``error``."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.error: OSError | None = None

    def __call__(self, write: Callable[..., object], *args: object, **options: object) -> bool:
        """Call ``write``, unless something failed before; whether it succeeded."""
        if self.error is not None:
            return False
        try:
            write(*args, **options)
        except OSError as error:
            # OSError picks the subclass that belongs to the number
            self.error = OSError(error.errno, error.strerror or str(error), self.where or None)
            return False
        return True


class Progress:
    """The bar on a terminal; elsewhere a line for the first update, for each record, and after
    ``QUIET`` seconds without either.

    No ``OSError`` is raised here: once the output takes no more, ``error`` says why.

    Args:
        total: updates of the whole run.
        done: updates done before this process began.
        images: how many images a number of updates trains on.
    """

    def __init__(self, total: int, done: int, images: Callable[[int], int]) -> None:
        self.total, self.first, self.images = total, done, images
        self.terminal = FallibleOutput("")
        self._paused = 0.0
        self._start = self._last_time = run_clock()
        self._last_word = time.perf_counter()
        self._last_update = done
        self._bar = None

    @property
    def error(self) -> OSError | None:
        """Why something could not be written, ``None`` as long as everything could."""
        return self.terminal.error

    @property
    def complete(self) -> bool:
        """Whether every row of the metrics so far was written."""
        return True

    def open(self) -> None:
        """Show the bar, where there is a terminal."""
        if sys.stderr is not None and sys.stderr.isatty():
            self.terminal(self._open_bar)

    def _open_bar(self) -> None:
        tqdm = require("tqdm").tqdm
        # the monitor is a thread for bars with a stride, and data loaders fork
        tqdm.monitor_interval = 0
        # terminals inside other programs may not know their width
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
        self._bar = tqdm(
            total=self.total,
            initial=self.first,
            unit=" updates",
            miniters=1,
            dynamic_ncols=known,
            ncols=None if known else 80,
            nrows=None if known else 20,
            file=sys.stderr,
        )

    def advance(self, update: int) -> None:
        """Show that ``update`` updates are done."""
        if self._bar is not None:
            self.terminal(self._bar.update, update - self._bar.n)
        elif (update == self.first + 1 and update < self.total) or (
            time.perf_counter() - self._last_word > QUIET
        ):
            speed = f"{self.overall_rate(update):.3g} images/s"
            self.say(f"update {update}/{self.total}  {speed}  {self._time_left(update)}")

    def since_last(self, update: int) -> tuple[int, float]:
        """Images, and the seconds that they took, since the last call; ``pause`` left out."""
        now = run_clock()
        images = self.images(update) - self.images(self._last_update)
        seconds = max(1e-9, now - self._last_time)
        self._last_time, self._last_update = now, update
        return images, seconds

    def overall_rate(self, update: int) -> float:
        """Training images per second of this process so far."""
        seconds = run_clock() - self._start - self._paused
        return (self.images(update) - self.images(self.first)) / max(1e-9, seconds)

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training (validation, checkpoints)."""
        self._paused += seconds
        self._last_time += seconds

    def show(self, update: int, epoch: int, loss: float, rate: float, waiting: float) -> None:
        """Loss, speed, and, where there is room, share of the time spent waiting for images and time
        left."""
        speed = f"{rate:.0f} images/s"
        if self._bar is not None:
            text = f"epoch {epoch}, loss {loss:.4f}, {speed}"
            self.terminal(self._bar.set_postfix_str, text)
        else:
            self.say(
                f"update {update}/{self.total}  epoch {epoch}  loss {loss:.4f}  "
                f"{speed}, {waiting:.0%} waiting  {self._time_left(update)}"
            )

    def say(self, text: str) -> None:
        """A line of its own, from the first process of the run."""
        self.say_from_any(text)

    def say_from_any(self, text: str) -> None:
        """A line of its own, from any process."""
        self._last_word = time.perf_counter()
        if self._bar is not None:
            self.terminal(self._bar.write, printable(text), file=sys.stderr)
        else:
            self.terminal(say, text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self.terminal(self._bar.close)
            self._bar = None

    def _time_left(self, update: int) -> str:
        left = self.images(self.total) - self.images(update)
        left /= max(1e-9, self.overall_rate(update))
        return f"{clock(left)} left"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as ``1:02:03``; without hours where there are none."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
