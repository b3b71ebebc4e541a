"""A run that is stopped and goes on later, as by Ctrl-Z and fg: the time between is not its own."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from .conftest import environment
from .runs import start_command

STOP = 2.0
WAITS = """
import os, signal, sys, torch
from pathlib import Path
from simmim.config.pretrain import PretrainConfig
from simmim.data import crops
from simmim.data.order import Order
from simmim.training.clock import run_clock
from simmim.training.reader import Reader
from simmim.training.signals import handled

paths = sorted(Path(sys.argv[1]).rglob("*.png"))
genuine = crops.read_image
def read(*args):
    os.kill(os.getpid(), signal.SIGSTOP)
    return genuine(*args)
for workers in (0, "auto"):  # in the process itself, and in threads
    config = PretrainConfig(img_size=16, workers=workers)
    order = Order(samples=8, batch=2, accumulate=1, seed=1, epochs=50)
    reader = Reader(crops.training_crops(config, paths), config, order, 0, torch.device("cpu"))
    before = run_clock.stopped
    with handled(signal.SIGCONT, run_clock.go_on):
        reader.read()
        crops.read_image = read
        reader.read()
        crops.read_image = genuine
        print(reader.take_waited(), run_clock.stopped - before)
    reader.close()
"""


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_reads_does_not_wait(photographs):
    """Between the images that its process or its threads read."""
    command = [sys.executable, "-c", WAITS, str(photographs)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    stops = 0
    try:
        while os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1]):
            stops += 1
            time.sleep(STOP / 2)
            process.send_signal(signal.SIGCONT)
        said = process.stdout.read().splitlines()
    finally:
        process.kill()
    waited, stopped = zip(*(map(float, line.split()) for line in said), strict=True)
    assert len(said) == 2 and min(stopped) >= STOP / 2
    assert sum(stopped) >= stops * STOP / 2
    assert max(waited) < STOP / 2


def rows_of(out) -> list[dict]:
    with contextlib.suppress(FileNotFoundError), (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
    return []


@pytest.mark.slow
def test_what_a_run_says_of_its_speed_leaves_stops_out(photographs, tmp_path):
    out, flags = tmp_path / "run", ("--img-size", 32, "--mask-unit", 8, "--batch-size", 2)
    encoder = ("--encoder", "cnn", "--encoder-args", "widths", "4,4,4", "--device", "cpu")
    command = ("pretrain", "--data", photographs, "--out", out, *flags, *encoder)
    command += ("--epochs", 10000, "--log-every", 20, "--warmup-epochs", 0, "--compile", "off")
    process = start_command(*command, output=tmp_path / "output", errors=tmp_path / "errors")
    while not rows_of(out):
        assert process.is_alive()
        time.sleep(0.01)
    began, first = time.perf_counter(), len(rows_of(out))
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(STOP)
    os.kill(process.pid, signal.SIGCONT)
    while len(rows_of(out)) < first + 3:
        assert process.is_alive()
        time.sleep(0.01)
    found, elapsed = rows_of(out)[first:], time.perf_counter() - began
    trained = sum(20 * 2 / float(row["images_per_second"]) for row in found)
    assert trained < elapsed - STOP / 2
