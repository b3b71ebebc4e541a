"""Records of a run: a CSV file, TensorBoard, and the terminal."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simmim.errors import UserError, require
from simmim.storage.files import cause_of, is_utf8
from simmim.training.metrics import MetricsFile
from simmim.training.progress import FallibleOutput, Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def event_writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """A writer of event files in ``folder``, which is made; TensorBoard forgets earlier records
    from ``purge_step`` on."""
    tensorboard = require("torch.utils.tensorboard")
    folder.mkdir(parents=True, exist_ok=True)
    name = str(folder)
    if not is_utf8(folder):
        # TensorBoard takes text only; Linux, where names are bytes, knows an open folder by a number
        # as well, and it stays open as long as the process writes
        name = f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"
    return tensorboard.SummaryWriter(name, purge_step=purge_step)


class Records(Progress):
    """All three places for the numbers of one run, ``metrics.csv`` and ``tensorboard`` in its
    folder ``out``.

    As on the terminal, a disk that takes no more raises nothing: ``error`` says so, and the run
    ends in order.

    Raises:
        UserError: a disk that takes nothing from the start.
    """

    def __init__(self, out: Path, total: int, done: int, images: Callable[[int], int]) -> None:
        super().__init__(total, done, images)
        self._excepthook = threading.excepthook
        threading.excepthook = self._report_thread
        try:
            self.metrics = MetricsFile(out / "metrics.csv", done)
            self.board = event_writer(out / "tensorboard", purge_step=done + 1)
        except OSError as error:
            threading.excepthook = self._excepthook
            raise UserError(f"cannot write the records in {out}: {cause_of(error)}") from error
        self._to_metrics = FallibleOutput(str(out / "metrics.csv"))
        self._to_board = FallibleOutput(str(out / "tensorboard"))
        self.open()
        if self.metrics.set_aside:
            self.say(
                f"not everything in {out / 'metrics.csv'} is a record of this program: what was "
                f"there is kept in {self.metrics.set_aside}"
            )

    @property
    def error(self) -> OSError | None:
        outputs = (self._to_metrics, self._to_board, self.terminal)
        return next((output.error for output in outputs if output.error is not None), None)

    @property
    def complete(self) -> bool:
        return self._to_metrics.error is None

    def training(self, update: int, epoch: int, **values: float) -> None:
        """Record means since the last such record, the speed, and the share of waiting: columns of
        the file. ``epoch`` is counted from 1."""
        self._write(update, epoch, "train", values)
        self.show(update, epoch, values["loss"], values["images_per_second"], values["waiting"])

    def validation(self, update: int, epoch: int, **values: float) -> None:
        """Record what was found on held-out images after ``update`` updates and ``epoch`` epochs:
        columns of the file."""
        self._write(update, epoch, "val", values)
        found = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"update {update}/{self.total}  validation {found}")

    def note(self, update: int, text: str) -> None:
        """A line that TensorBoard shows too."""
        self._to_board(self.board.add_text, "run", text, update)
        self.say(text)

    def sync(self) -> None:
        """Return when every record so far is on the disk."""
        self._to_metrics(self.metrics.sync)
        self._to_board(self.board.flush)

    def close(self) -> None:
        super().close()
        self._to_metrics(self.metrics.close)
        self._to_board(self.board.close)
        threading.excepthook = self._excepthook

    def _write(self, update: int, epoch: int, split: str, values: dict[str, float]) -> None:
        self._to_metrics(self.metrics.write, update=update, epoch=epoch, split=split, **values)
        for name, value in values.items():
            self._to_board(self.board.add_scalar, f"{split}/{name}", value, update)

    def _report_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Leave out TensorBoard's thread, whose failure the next record reports."""
        if not isinstance(failure.exc_value, OSError):
            self._excepthook(failure)


class NoRecords(Progress):
    """The records of a process that leaves them to the first one of its run."""

    def training(self, update: int, epoch: int, **values: float) -> None: ...

    def validation(self, update: int, epoch: int, **values: float) -> None: ...

    def advance(self, update: int) -> None: ...

    def note(self, update: int, text: str) -> None: ...

    def say(self, text: str) -> None: ...

    def sync(self) -> None: ...
