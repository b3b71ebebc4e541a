"""Batches read beside the model or between its updates, by threads or by processes of their own.

Which batches there are, and what is in them, does not depend on it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simmim.data.batches import Batch, Sample, collate
from simmim.data.crops import Crops
from simmim.data.order import Order, piece
from simmim.errors import UserError, system_words
from simmim.training.signals import leave_signals_to_parent

#: an index of ``Crops``: epoch and sample id
Index = tuple[int, int]
#: cores up to which threads read: beyond, they wait for each other in Python
FEW_CORES = 4
#: worker processes that are tried, one number after the other
PROCESSES = (4, 8, 16, 32, 64)
#: what a thread's share of a core is lowered by (nice) beside the model: to a tenth of what the
#: model's own threads get; less would leave nothing on a machine that others keep busy
NICE = 10
#: batches that are read before they are asked for
AHEAD = 2
#: samples that a thread reads at a time
PART = 4


class Way(NamedTuple):
    """Who reads, and when.

    Attributes:
        kind: ``"pause"``: threads of this process, while nothing else runs; ``"threads"`` of this
            process, ahead of what is asked for; ``"processes"``, ahead too, of which 0 stand for
            this one.
        count: how many.
    """

    kind: Literal["pause", "threads", "processes"]
    count: int

    def __str__(self) -> str:
        if not self.count:
            return "this process between updates"
        one = "process" if self.kind == "processes" else "thread"
        several = {"process": "processes", "thread": "threads"}[one]
        when = "between updates" if self.kind == "pause" else "ahead"
        return f"{self.count} {several if self.count > 1 else one} {when}"


def ways(workers: int | Literal["auto"], device: str, cache: bool, cores: int) -> list[Way]:
    """How images can be read: the way to begin with, then what to try where the run waits.

    On few cores a model leaves none to read on: what a reader takes from one core, the others wait
    for at the end of each of the model's loops, so that all together between updates is the least
    loss; unless a disk or a network is what takes the time. Beside a GPU threads would keep Python
    from feeding it, so there, and on many cores, processes read; but with ``cache`` threads, which
    share what is decoded.

    Args:
        workers: what was asked for.
        device: ``"cpu"`` or ``"cuda"``, where the model is.
        cores: that this process may use.
    """
    if workers != "auto":
        return [Way("processes", workers)]
    if cache and device == "cuda":
        return [Way("threads", cores)]
    if cache or (device == "cpu" and cores <= FEW_CORES):
        return [Way("pause", cores), Way("threads", cores), Way("threads", 4 * cores)]
    counts = [*(n for n in PROCESSES if n < cores), min(cores, PROCESSES[-1])]
    return [Way("processes", count) for count in counts]


def way_to_validate(workers: int | Literal["auto"], device: str, cores: int) -> Way:
    """Who reads what a run is validated on: threads, which are there at once. Arguments as of
    ``ways``."""
    if workers == 0:
        return Way("processes", 0)
    few = device == "cpu" and cores <= FEW_CORES
    return Way("pause" if few else "threads", cores if workers == "auto" else workers)


def validation_batches(dataset: Crops, order: Order, way: Way) -> Iterator[tuple[Batch, int]]:
    """This process's part of ``dataset`` at epoch 0, in batches of at most ``order.batch`` samples.

    Yields:
        a batch, and how many of its samples count, if they are marked as read: all, or none of its
        single one where the last samples are fewer than the processes, which all must take part.
    """
    together = order.batch * order.world
    starts = range(0, len(dataset), together)
    own = [piece(min(together, len(dataset) - n), order.rank, order.world) for n in starts]
    asked = [
        [(0, start + sample) for sample in part or range(1)]
        for start, part in zip(starts, own, strict=True)
    ]
    batches = read_batches(dataset, asked, way)
    try:
        for part in own:
            yield next(batches), len(part)
    finally:
        end_reading(batches)


def read_batches(
    dataset: Crops, batches: Iterable[list[Index]], way: Way, pin: bool = False
) -> Iterator[Batch]:
    """``batches``, each a list of ``(epoch, sample id)``, to be ended by ``end_reading``; with
    ``pin`` their images lie where a GPU copies them from without waiting; raises ``UserError`` where
    processes cannot be started."""
    if way.kind != "processes":
        return _Threads(dataset, batches, way.count, AHEAD if way.kind == "threads" else 0)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=way.count,
        collate_fn=_collate_in_process if way.count else collate,
        pin_memory=pin,
        worker_init_fn=leave_signals_to_parent,
        # forkserver, Python 3.14's default, imports everything anew: seconds before the first batch
        multiprocessing_context="fork" if way.count else None,
        # a loader without its own generator draws from the default one, which drop-path uses
        generator=torch.Generator(),
    )
    if not way.count:
        return iter(loader)
    others = multiprocessing.active_children()
    try:
        return _Processes(iter(loader), pin)
    except OSError as error:  # a limit on processes or memory, no shared memory
        # those that were started ignore SIGTERM, and the interpreter would wait for them at its exit
        for process in {*multiprocessing.active_children()}.difference(others):
            process.kill()
            process.join()
        raise UserError(
            f"cannot start {way.count} processes to read images: {system_words(error)}; --workers 0 "
            "reads without any"
        ) from error


def _collate_in_process(samples: list[Sample]) -> Batch:
    """A batch in shared memory, or of arrays, which go through a pipe, where that is full: Docker gives
    a container 64 MB. The loader shares memory later, where a failure is lost and the run waits for
    ever."""
    batch = collate(samples)
    try:
        for part in batch:
            if isinstance(part, Tensor):
                part.share_memory_()
    except RuntimeError:
        return Batch(*(part.numpy() if isinstance(part, Tensor) else part for part in batch))
    return batch


def end_reading(batches: Iterator[Batch]) -> None:
    """End the workers behind ``batches``. Processes ignore SIGTERM, by which the interpreter's exit
    would end them, and an exception's traceback keeps the iterator alive until then."""
    # there is no public way; without workers there is no such method
    end = getattr(batches, "_shutdown_workers", None)
    if end is not None:
        end()


class _Processes(Iterator[Batch]):
    """Batches of a loader's processes, whose end in the middle of handing one over is named as any
    other end of theirs. Arrays become tensors, pinned ones if asked for."""

    def __init__(self, batches: Iterator[Batch], pin: bool) -> None:
        self._batches, self._pin = batches, pin
        self._shutdown_workers = batches._shutdown_workers

    def __next__(self) -> Batch:
        try:
            return Batch(*map(self._tensor, next(self._batches)))
        except (ConnectionError, EOFError) as error:
            if "DataLoader worker process" in str(error):  # what reading an image raised there
                raise
            raise RuntimeError("DataLoader worker ended while it handed over a batch") from error

    def _tensor(self, part: Any) -> Any:
        if not isinstance(part, np.ndarray):
            return part
        return torch.from_numpy(part).pin_memory() if self._pin else torch.from_numpy(part)


class _Threads(Iterator[Batch]):
    """Batches read by ``count`` threads, ``ahead`` of them before they are asked for."""

    def __init__(
        self, dataset: Crops, batches: Iterable[list[Index]], count: int, ahead: int
    ) -> None:
        self._dataset, self._batches = dataset, iter(batches)
        self._pool = ThreadPoolExecutor(count, initializer=self._begin, initargs=(ahead > 0,))
        self._started = threading.Barrier(count + 1)
        own = torch.get_num_threads()
        for _ in range(count):
            self._pool.submit(int)
        self._started.wait()
        # what _begin has told PyTorch counts for all threads that are still to come
        torch.set_num_threads(own)
        self._asked: deque[list[Future[list[Sample]]]] = deque()
        for _ in range(ahead):
            self._ask()

    def _begin(self, beside_model: bool) -> None:
        """One core a thread, of which the model has the larger share."""
        torch.get_num_threads()  # what PyTorch sets at the first question must not come later
        torch.set_num_threads(1)
        if beside_model:
            # on Linux a thread has a priority of its own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        self._started.wait()

    def _ask(self) -> None:
        batch = next(self._batches, None)
        if batch is not None:
            parts = (batch[start : start + PART] for start in range(0, len(batch), PART))
            self._asked.append([self._pool.submit(self._dataset.__getitems__, p) for p in parts])

    def __next__(self) -> Batch:
        self._ask()
        if not self._asked:
            self._shutdown_workers()
            raise StopIteration
        return collate([sample for part in self._asked.popleft() for sample in part.result()])

    def _shutdown_workers(self) -> None:
        self._pool.shutdown(cancel_futures=True)
