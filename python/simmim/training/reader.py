"""Reads a run's batches onto the model's device, and measures how long the run waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simmim.config.run import RunConfig
from simmim.cores import usable_cores
from simmim.data.batches import Batch
from simmim.data.crops import Crops, check_readable
from simmim.data.order import Order
from simmim.data.read_ahead import Way, end_reading, read_batches, ways
from simmim.errors import UserError
from simmim.training.clock import run_clock

#: seconds of training after which it is judged whether images come fast enough
PERIOD = 10.0
#: share of the time spent waiting for images above which another way to read them is tried
WAITS = 0.02
#: share of the cores' time above which reading beside the model only takes cores away from it
BUSY = 0.9
#: and above which the log says what a user can do
HELD_BACK = 0.1


class Reader:
    """Reads the batches of this process from ``update`` on, onto ``device``.

    Attributes:
        failure: why this process of several could not read a batch, ``None`` as long as it can.
        way: who reads.
    """

    def __init__(
        self, train_set: Crops, config: RunConfig, order: Order, update: int, device: torch.device
    ) -> None:
        self.train_set, self.config, self.order, self.device = train_set, config, order, device
        self.failure: Exception | None = None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ways = ways(config.workers, device.type, config.cache, usable_cores())
        self._waiting = _Waiting(self._copies is not None)
        # images, seconds and seconds of waiting since the last judgement
        self._seen: tuple[int, float, float] = (0, 0.0, 0.0)
        self._usage = _Usage()
        # the way that was left to try another, with its images per second
        self._other: tuple[Way, float] | None = None
        self._told = False
        self._start(self._ways.pop(0), update)

    def _start(self, way: Way, update: int) -> None:
        self.way, self._is_new = way, True
        rest = self.order.batches(update)
        self._batches = read_batches(self.train_set, rest, self.way, pin=self._copies is not None)
        self._is_first = True

    def read(self) -> Batch:
        """The next batch, its images, ids and where they hold data on the device.

        Where other processes wait for this one, its failure is kept in ``failure`` until all learn
        of it, and a batch of zeros stands in that long.

        Raises:
            UnreadableImageError: images that cannot be read.
            RuntimeError: a worker that was killed.
        """
        if self.failure is None:
            try:
                return self._upload(self._next())
            except Exception as error:
                if self.order.world == 1:
                    raise
                self.failure = error
        return self.blank()

    def blank(self) -> Batch:
        """A full batch of black images, all of them sample 0."""
        count, size, device = self.order.batch, self.config.size, self.device
        dtype = getattr(torch, self.config.pixel_type)
        images = torch.zeros((count, self.config.channels, *size), dtype=dtype, device=device)
        none, with_data = torch.zeros(count, dtype=torch.int64), None
        if self.config.nodata:
            with_data = torch.ones((count, *size), dtype=torch.bool, device=device)
        return Batch(images, none.to(device), none, [], none.bool(), [], False, with_data)

    def close(self) -> None:
        """End the workers."""
        end_reading(self._batches)

    def take_waited(self) -> float:
        """Seconds that the device had nothing to do for want of images, since the last call."""
        return self._waiting.take()

    def judge(self, images: int, seconds: float, waited: float, update: int) -> str:
        """Try the next way to read while the run waits, and keep it if it is the faster one;
        returns what to say about it, or "".

        Args:
            images: trained on since the last call.
            seconds, waited: that they took, and those of them that went by waiting for images.
            update: updates done.
        """
        if self._is_new:
            # compiling, starting, filling caches
            self._is_new = False
            self._usage.take()
            return ""
        self._seen = tuple(
            a + b for a, b in zip(self._seen, (images, seconds, waited), strict=True)
        )
        images, seconds, waited = self._seen
        if seconds < PERIOD:
            return ""
        rate, share, self._seen = images / seconds, waited / seconds, (0, 0.0, 0.0)
        busy = self._usage.take()
        if self._other is not None and self._other[1] > rate:
            way, before = self._other
            self._other, self._ways = None, []
            self._change(way, update)
            return f"images: read by {way} again, {before:.0f} a second instead of {rate:.0f}"
        self._other = None
        # on busy cores, threads that read ahead would take time from the model
        cores_busy = self.way.kind == "pause" and busy > BUSY
        if share > WAITS and self._ways and not cores_busy:
            why, before = f"images: {share:.0%} of the time went by waiting", self.way
            try:
                self._change(self._ways.pop(0), update)
            except UserError as error:
                self._ways = []
                self._start(before, update)
                return f"{why}; {error}; read by {before} again"
            self._other = before, rate
            return f"{why}; now read by {self.way}"
        if share <= HELD_BACK or self._told:
            return ""
        self._told = True
        advice = "use a machine with more cores, smaller image files"
        if self.config.workers != "auto":
            advice = f"leave out --workers {self.config.workers}, use smaller image files"
        cache = "" if self.config.cache else ", or --cache if all images fit into memory"
        return f"the run is held back: it waits for images {share:.0%} of the time; {advice}{cache}"

    def _change(self, way: Way, update: int) -> None:
        self.close()
        self._start(way, update)

    def _next(self) -> Batch:
        if self._is_first:
            # processes and the disk need a moment, which says nothing about what follows
            self._is_first = False
            batch = next(self._batches)
        else:
            with self._waiting.measured():
                batch = next(self._batches)
        check_readable(batch, self.config.on_bad_image)
        return batch

    def _upload(self, batch: Batch) -> Batch:
        """Begin to copy to the GPU, beside the updates that are still at work there.

        The host, which waits for nothing, is here while the GPU is at an earlier update, so the copy
        needs a stream of its own to run at the same time; only what comes after waits for it.
        """
        if self._copies is None:
            return batch
        with torch.cuda.stream(self._copies):
            copies = {
                name: (t if t.is_pinned() else t.pin_memory()).to(self.device, non_blocking=True)
                for name in ("images", "ids", "with_data")
                if (t := getattr(batch, name)) is not None
            }
        compute = torch.cuda.current_stream(self.device)
        compute.wait_stream(self._copies)
        for tensor in copies.values():
            # its memory belongs to the other stream, which must not reuse it before this one is done
            tensor.record_stream(compute)
        return batch._replace(**copies)


class _Usage:
    """What share of the cores' time this process uses."""

    def __init__(self) -> None:
        self._began = run_clock(), time.process_time()

    def take(self) -> float:
        """The share since the last call."""
        began, used = self._began
        self._began = now = run_clock(), time.process_time()
        return (now[1] - used) / max(1e-9, now[0] - began) / usable_cores()


class _Waiting:
    """How long a device has nothing to do while the host waits.

    On a GPU that is not the host's time, since the GPU may still be busy then: it is the time between
    two marks in its queue, before and after the host's waiting, that follow each other at once where
    there is other work in front of them.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu, self._seconds = on_gpu, 0.0
        # with the seconds between them that the process was stopped
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run_clock()
            stopped = run_clock.stopped
            yield
            end.record()
            self._marks.append((begin, end, run_clock.stopped - stopped))
        else:
            began = run_clock()
            yield
            self._seconds += run_clock() - began

    def take(self) -> float:
        for begin, end, stopped in self._marks:
            end.synchronize()
            self._seconds += max(0.0, begin.elapsed_time(end) / 1e3 - stopped)
        seconds, self._seconds, self._marks = self._seconds, 0.0, []
        return seconds
