"""Who reads the images of a run, how long the run waits for them, and what it says then."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from simmim.config.pretrain import PretrainConfig
from simmim.data.crops import training_crops
from simmim.data.order import Order
from simmim.data.read_ahead import PROCESSES, Way, end_reading, read_batches, ways
from simmim.errors import UserError
from simmim.training.reader import PERIOD, Reader, _Usage

from .pictures import find_images

ORDER = Order(samples=8, batch=2, accumulate=1, seed=1, epochs=50)


def test_who_reads():
    assert ways(3, "cuda", True, 64) == [("processes", 3)]
    few = [("pause", 2), ("threads", 2), ("threads", 8)]
    assert ways("auto", "cpu", False, 2) == few
    assert ways("auto", "cpu", False, 12) == [("processes", n) for n in (4, 8, 12)]
    assert ways("auto", "cuda", False, 2) == [("processes", 2)]
    assert ways("auto", "cuda", False, 200)[-1] == ("processes", 64)
    assert ways("auto", "cuda", True, 8) == [("threads", 8)]
    words = [str(Way(kind, n)) for kind, n in (("pause", 1), ("threads", 2), ("processes", 2))]
    assert words == ["1 thread between updates", "2 threads ahead", "2 processes ahead"]
    assert str(Way("processes", 0)) == "this process between updates"


@pytest.fixture
def dataset(photographs):
    return training_crops(PretrainConfig(img_size=16), find_images(photographs))


def reader(dataset, **options) -> Reader:
    config = PretrainConfig(img_size=16, **options)
    return Reader(dataset, config, ORDER, 0, torch.device("cpu"))


def test_threads_read_ahead_on_a_core_each_and_give_way(dataset, monkeypatch):
    seen = []

    def read(path, channels):
        priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        seen.append((torch.get_num_threads(), priority))
        return torch.zeros(3, 20, 20, dtype=torch.uint8)

    monkeypatch.setattr("simmim.data.crops.read_image", read)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = read_batches(dataset, ORDER.batches(0), Way("threads", 2))
        while len(seen) < 4:
            time.sleep(0.01)
        # two batches, before any was asked for
        assert seen == [(1, 10)] * 4
        assert torch.get_num_threads() == 2
        end_reading(batches)
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [2]
    finally:
        torch.set_num_threads(before)
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "20000"),
        ({"OMP_WAIT_POLICY": "active"}, ""),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_idle_cores_are_left_to_what_reads(given, found):
    """Unless a user has said how OpenMP waits."""
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import os, simmim; print(os.environ.get('GOMP_SPINCOUNT', ''))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=own | given, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == found


def test_threads_that_read_in_the_pauses_are_not_ahead(dataset, monkeypatch):
    seen = []

    def read(path, channels):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return torch.zeros(3, 20, 20, dtype=torch.uint8)

    monkeypatch.setattr("simmim.data.crops.read_image", read)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    batches = read_batches(dataset, ORDER.batches(0), Way("pause", 2))
    for count in (2, 4):
        next(batches)
        time.sleep(0.05)
        assert seen == [own] * count
    end_reading(batches)


def test_no_other_way_is_tried_on_cores_that_are_busy(dataset, monkeypatch):
    """What reads ahead could only read while the model computes, which would wait for it."""
    monkeypatch.setattr("simmim.training.reader.usable_cores", lambda: 2)
    monkeypatch.setattr("simmim.training.reader._Usage.take", lambda _: 0.95)
    reading = reader(dataset)
    reading.judge(1, PERIOD, PERIOD, 1)
    said = reading.judge(100 * PERIOD, PERIOD, 0.3 * PERIOD, 1)
    assert said.startswith("the run is held back: it waits for images 30% of the time")
    assert reading.way == ("pause", 2)
    reading.close()


def test_usage_is_the_share_of_all_cores(monkeypatch):
    monkeypatch.setattr("simmim.training.reader.usable_cores", lambda: 4)
    moments = iter([(0.0, 0.0), (10.0, 20.0), (20.0, 60.0)])
    clocks = {}

    def wall() -> float:
        clocks["now"] = next(moments)
        return clocks["now"][0]

    monkeypatch.setattr("simmim.training.reader.run_clock", wall)
    monkeypatch.setattr("simmim.training.reader.time.process_time", lambda: clocks["now"][1])
    usage = _Usage()
    assert [usage.take(), usage.take()] == [0.5, 1.0]


def test_the_fastest_way_is_found_while_the_run_waits(dataset, monkeypatch):
    monkeypatch.setattr("simmim.training.reader.usable_cores", lambda: 2)
    reading = reader(dataset)
    expected = [reading.read().ids.tolist() for _ in range(4)]
    reading.close()
    reading = reader(dataset)
    assert reading.read().ids.tolist() == expected[0]

    def judge(rate: float, waits: float, update: int = 1) -> str:
        """Of a row of the log, and of the one before it, in which the way is new."""
        reading.judge(1, PERIOD, PERIOD, update)
        assert reading.judge(0, PERIOD / 2, 0.0, update) == ""
        return reading.judge(rate * PERIOD, PERIOD / 2, waits * PERIOD, update)

    assert judge(100, 0.5) == "images: 50% of the time went by waiting; now read by 2 threads ahead"
    assert judge(110, 0.4) == "images: 40% of the time went by waiting; now read by 8 threads ahead"
    assert [reading.read().ids.tolist() for _ in range(2)] == expected[1:3]
    assert judge(90, 0.3, 3) == (
        "images: read by 2 threads ahead again, 110 a second instead of 90"
    )
    assert reading.way == ("threads", 2)
    assert reading.read().ids.tolist() == expected[3]
    assert judge(110, 0.1) == ""
    reading._is_new = True
    assert judge(110, 0.3) == (
        "the run is held back: it waits for images 30% of the time; use a machine with more cores, "
        "smaller image files, or --cache if all images fit into memory"
    )
    reading._is_new = True
    assert judge(110, 0.3) == ""
    reading.close()
    reading = reader(dataset, workers=0, cache=True)
    assert judge(1, 0.3).endswith("30% of the time; leave out --workers 0, use smaller image files")


def test_waiting_is_measured(dataset, monkeypatch):
    def read(path, channels):
        time.sleep(0.05)
        return torch.zeros(3, 20, 20, dtype=torch.uint8)

    monkeypatch.setattr("simmim.data.crops.read_image", read)
    reading = reader(dataset, workers=0)
    reading.read()
    assert reading.take_waited() == 0.0
    reading.read()
    assert reading.take_waited() >= 0.1
    assert reading.take_waited() == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_images_go_to_the_gpu_beside_its_work(dataset):
    config = PretrainConfig(img_size=16, workers=1)
    expected = [reading.read().images for reading in [reader(dataset, workers=0)] for _ in range(3)]
    reading = Reader(dataset, config, ORDER, 0, torch.device("cuda"))
    for images in expected:
        torch.cuda._sleep(10_000_000)
        batch = reading.read()
        assert batch.ids.is_cuda and torch.equal(batch.images.cpu(), images)
    # the GPU was busy for longer than the host waited
    assert reading.take_waited() < 0.05
    reading.close()


def test_a_process_that_is_killed_before_its_batch_is_taken_is_named(dataset):
    """What it has put into the queue is fetched from it, which then fails in any of several ways."""
    batches = read_batches(dataset, ORDER.batches(0), Way("processes", 1))
    next(batches)
    time.sleep(0.5)  # for two more
    (process,) = multiprocessing.active_children()
    process.kill()
    process.join()
    with pytest.raises(RuntimeError, match=r"^DataLoader worker"):
        list(batches)
    end_reading(batches)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_process_that_ends_while_its_batch_is_taken_is_named(dataset, error, monkeypatch):
    """The connection breaks a moment before the system says that the process has ended, a race that
    cannot be had at will."""
    batches = read_batches(dataset, ORDER.batches(0), Way("processes", 1))

    def fail(self):
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", fail)
    with pytest.raises(RuntimeError, match=r"^DataLoader worker") as raised:
        next(batches)
    assert raised.value.__cause__ is error
    end_reading(batches)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PyTorch's own
def test_processes_that_cannot_be_started_are_named_and_those_that_were_end(dataset, monkeypatch):
    genuine, before, started = os.fork, {*multiprocessing.active_children()}, set()

    def fork():
        started.update(multiprocessing.active_children())
        if started - before:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return genuine()

    monkeypatch.setattr(os, "fork", fork)
    words = "cannot start 2 processes to read images: Resource temporarily unavailable; --workers 0"
    with pytest.raises(UserError, match=words):
        read_batches(dataset, ORDER.batches(0), Way("processes", 2))
    (process,) = started - before
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PyTorch's own
def test_a_way_that_cannot_be_started_leaves_the_one_before(dataset, monkeypatch):
    monkeypatch.setattr("simmim.training.reader.usable_cores", lambda: 16)
    genuine, before, most = os.fork, {*multiprocessing.active_children()}, PROCESSES[0]

    def fork():
        if len({*multiprocessing.active_children()} - before) == most:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return genuine()

    monkeypatch.setattr(os, "fork", fork)
    reading = reader(dataset)
    try:
        first = reading.read().ids.tolist()
        assert reading.way == ("processes", most)
        reading.judge(1, PERIOD, PERIOD, 1)
        assert reading.judge(100 * PERIOD, PERIOD, 0.3 * PERIOD, 1) == (
            f"images: 30% of the time went by waiting; cannot start {PROCESSES[1]} processes to read "
            "images: Resource temporarily unavailable; --workers 0 reads without any; read by "
            f"{most} processes ahead again"
        )
        assert (
            reading.read().ids.tolist() == [ids for _, ids in next(iter(ORDER.batches(1)))] != first
        )
        reading.judge(1, PERIOD, PERIOD, 2)
        assert "held back" in reading.judge(100 * PERIOD, PERIOD, 0.3 * PERIOD, 2)
    finally:
        reading.close()
