"""Where numbers go: a CSV file, TensorBoard, and the terminal."""

from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from simmim.errors import printable
from simmim.event_files import event_writer

COLUMNS = (
    *("update", "epoch", "split", "loss", "accuracy", "lr", "grad_norm", "images_per_second"),
)


class MetricsFile:
    """``metrics.csv``: one row a record, kept in step with the checkpoints.

    A row is written whole as soon as it is known. On resuming, the rows after the checkpoint's
    update are cut off, since the run will write them again; ``sync`` before a checkpoint makes sure
    that the rows before it are on the disk.

    Args:
        path: the file; created with its header if it is not there.
        update: updates done; later rows, and a row cut short by a crash, are deleted.
    """

    def __init__(self, path: Path, update: int) -> None:
        rows = read_metrics(path, update) if path.exists() else []
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
            _flush(file)
        temporary.replace(path)
        self._file = path.open("a", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, COLUMNS)

    def write(self, **values: object) -> None:
        """Append one row; columns not named stay empty."""
        self._writer.writerow(values)

    def sync(self) -> None:
        """Return when all rows are on the disk."""
        _flush(self._file)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path, update: int | None = None) -> list[dict[str, str]]:
    """Complete rows of a metrics file, up to and with ``update``."""
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = [row for row in csv.DictReader(lines) if None not in row and None not in row.values()]
    return [row for row in rows if update is None or int(row["update"]) <= update]


def _flush(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class Progress:
    """One line that is redrawn on a terminal; elsewhere one line a record.

    Args:
        total: updates of the whole run.
        done: updates done before this process began.
        global_batch: images in an update.
    """

    def __init__(self, total: int, done: int, global_batch: int) -> None:
        self.total, self.first, self.global_batch = total, done, global_batch
        self.live = sys.stderr.isatty()
        self._open_line = False
        self._paused = 0.0
        self._start = self._last_time = time.perf_counter()
        self._last_update = done

    def images_per_second(self, update: int) -> float:
        """Rate since the last call, time in ``pause`` left out."""
        now = time.perf_counter()
        images = (update - self._last_update) * self.global_batch
        rate = images / max(1e-9, now - self._last_time)
        self._last_time, self._last_update = now, update
        return rate

    def overall_rate(self, update: int) -> float:
        """Training images per second of this process so far."""
        seconds = time.perf_counter() - self._start - self._paused
        return (update - self.first) * self.global_batch / max(1e-9, seconds)

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training (validation, checkpoints)."""
        self._paused += seconds
        self._last_time += seconds

    def show(self, update: int, epoch: int, loss: float, rate: float) -> None:
        """Loss, speed and time left."""
        left = (self.total - update) * self.global_batch / max(1e-9, self.overall_rate(update))
        text = (
            f"update {update}/{self.total}  epoch {epoch}  loss {loss:.4f}  "
            f"{rate:.0f} images/s  {_clock(left)} left"
        )
        if self.live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._open_line = True
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """A line of its own, below the progress line, from the first process of the run."""
        self.cry(text)

    def cry(self, text: str) -> None:
        """A line of its own from any process."""
        if self._open_line:
            print(file=sys.stderr)
            self._open_line = False
        print(printable(text), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Records(Progress):
    """All three places for the numbers of one run.

    Args:
        out: folder of the run; ``metrics.csv`` and ``tensorboard`` come to lie there.
        update: updates done before this process began.
        total: updates of the whole run.
        global_batch: images in an update.
    """

    def __init__(self, out: Path, update: int, total: int, global_batch: int) -> None:
        super().__init__(total, update, global_batch)
        self.metrics = MetricsFile(out / "metrics.csv", update)
        self.board = event_writer(out / "tensorboard", purge_step=update + 1)

    def training(self, update: int, epoch: int, *, loss: float, lr: float, grad_norm: float):
        """Means since the last such record, and the speed."""
        rate = self.images_per_second(update)
        values = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "images_per_second": rate}
        self.metrics.write(update=update, epoch=epoch, split="train", **values)
        for name, value in values.items():
            self.board.add_scalar(f"train/{name}", value, update)
        self.show(update, epoch, loss, rate)

    def validation(self, update: int, epoch: int, **values: float) -> None:
        """What was found on held-out images after ``update`` updates: columns of the file."""
        self.metrics.write(update=update, epoch=epoch, split="val", **values)
        for name, value in values.items():
            self.board.add_scalar(f"val/{name}", value, update)
        found = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"update {update}/{self.total}  validation {found}")

    def sync(self) -> None:
        """Return when every record so far is on the disk."""
        self.metrics.sync()
        self.board.flush()

    def close(self) -> None:
        self.metrics.close()
        self.board.close()


class NoRecords(Progress):
    """The records of a process that leaves them to the first one of its run."""

    def __init__(self, out: Path, update: int, total: int, global_batch: int) -> None:
        super().__init__(total, update, global_batch)

    def training(self, update: int, epoch: int, **values: float) -> None: ...

    def validation(self, update: int, epoch: int, **values: float) -> None: ...

    def say(self, text: str) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...
