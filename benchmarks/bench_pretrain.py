"""`python -m benchmarks.bench_pretrain`: what a user types, against a plain loop and the step alone.

`simmim pretrain` reads JPEG files of 500 x 375 pixels that are cut from scikit-image's photographs;
ViT-Ti at 192 px, batch 16, all else its defaults; all contenders in the type that it takes by
itself, bfloat16 or float32. Every contender is a process of its own that is stopped (SIGSTOP) while
another one runs, so that turns of 50 updates are interleaved.
`simmim pretrain --cache`, which decodes each file once, shows what decoding costs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from benchmarks.loops import BATCH, SIZE, run_plain_loop, run_step_alone, write_photographs
from benchmarks.memory import peak
from benchmarks.rows.common import OURS

OP = "pretrain"
WHAT = "training run"
FILES = 1024
#: updates of a turn: the rows of `simmim pretrain`'s log, by which it is timed, are as far apart
TURN = 50
#: turns in which `simmim pretrain` finds out how it reads the fastest: two for each of three ways
WARM_UP = 7
#: what must be reached, as times the speed of the other one
TARGETS = {"step alone, compiled": 0.97, "plain loop": 1.6, "plain loop, compiled": 1.25}
INSTALLED = "plain loop, as installed"
#: name -> whether it is compiled, and whether it takes the faster attention path
LOOPS = {
    "plain loop": (False, True),
    "plain loop, compiled": (True, True),
    INSTALLED: (False, False),
}
CACHED = f"{OURS}, --cache"
#: how the lines of `simmim pretrain` begin that are kept
LOG = ("compil", "not compil", "images:", "attention:", "precision:")
#: those that this file runs itself, each in a process started with `--contender`
CONTENDERS = (*TARGETS, INSTALLED)


@dataclass
class Contender:
    """A process that takes part.

    Attributes:
        command: what starts it.
        log: the file whose rows tell of its updates.
        read: the rows of that file.
        seconds: of each measured turn.
    """

    name: str
    command: list[str]
    log: Path
    read: Callable[[Path], list[dict]]
    seconds: list[float] = field(default_factory=list)
    process: subprocess.Popen | None = None

    def start(self, output: Path) -> None:
        paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def take_turn(self) -> float:
        """Run until the next row is there; returns the seconds."""
        rows = len(self.rows())
        began = time.perf_counter()
        os.killpg(self.process.pid, signal.SIGCONT)
        while len(self.rows()) == rows:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} has ended with {self.process.returncode}")
            time.sleep(0.01)
        elapsed = time.perf_counter() - began
        os.killpg(self.process.pid, signal.SIGSTOP)
        return elapsed

    @property
    def is_run(self) -> bool:
        """Whether it is `simmim pretrain`."""
        return self.name in (OURS, CACHED)

    def rows(self) -> list[dict]:
        return self.read(self.log) if self.log.exists() else []

    def end(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def shape() -> str:
    from benchmarks.rows.shapes import type_of_steps

    return f"VIT_TI, 192 px, batch 16, {type_of_steps('cpu')}, JPEG files of 500x375"


def contenders_in(folder: Path, data: Path, turn: int) -> list[Contender]:
    flags = ("--encoder", "vit_tiny_patch16_224", "--img-size", SIZE, "--batch-size", BATCH)
    if turn != TURN:  # a trial
        flags = (*flags, "--log-every", turn)
    found = []
    for name, more in ((OURS, ()), (CACHED, ("--cache",))):
        out = folder / f"run{len(found)}"
        command = ("-m", "simmim", "pretrain", "--data", data, "--out", out, *flags, *more)
        found.append(Contender(name, _python(*command), out / "metrics.csv", _csv_rows))
    for number, name in enumerate(CONTENDERS):
        log = folder / f"{number}.jsonl"
        own = ("--contender", name, "--data", data, "--log", log, "--turn", turn)
        own = ("-m", "benchmarks.bench_pretrain", *own)
        found.append(Contender(name, _python(*own), log, _json_rows))
    return found


def _python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def _csv_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "train"]


def _json_rows(path: Path) -> list[dict]:
    return [
        json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1:] == "\n"
    ]


def measure(rounds: int, turn: int = TURN) -> dict[str, Any]:
    """The row, as `benchmarks.run` stores them; times are microseconds an image.

    Args:
        turn: updates of a turn, of which each contender has one in each round.
    """
    from benchmarks.timing import spread

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "photographs"
        data.mkdir()
        write_photographs(data, FILES)
        contenders = contenders_in(folder, data, turn)
        try:
            for number, contender in enumerate(contenders):
                # the first turns import, compile and try out
                contender.start(folder / f"{number}.txt")
                turns = WARM_UP if contender.is_run else 1
                seconds = sum(contender.take_turn() for _ in range(turns))
                print(f"{contender.name}: ready after {seconds:.0f} s", flush=True)
            for _ in range(rounds):
                for contender in contenders:
                    contender.seconds.append(contender.take_turn())
                speeds = (f"{c.name} {turn * BATCH / c.seconds[-1]:.1f}" for c in contenders)
                print(f"images/s: {', '.join(speeds)}; load {os.getloadavg()[0]:.1f}", flush=True)
            said = (folder / "0.txt").read_text()
            print(said)
            log = [line for line in said.splitlines() if line.startswith(LOG)]
            (path,) = (line.split()[1] for line in log if line.startswith("attention:"))
            notes = {c.name: _notes(c, turn, path) for c in contenders}
            notes[OURS]["log"] = log
        finally:
            for contender in contenders:
                contender.end()
    micro = 1e6 / (turn * BATCH)
    timings = {c.name: vars(spread([s * micro for s in c.seconds])) for c in contenders}
    return {
        "op": OP,
        "shape": shape(),
        "what": WHAT,
        "moved": 0,
        "timings": timings,
        "notes": notes,
        "targets": TARGETS,
    }


def _notes(contender: Contender, turn: int, attention: str) -> dict[str, Any]:
    """What is stored of a contender.

    Args:
        attention: the path that `simmim pretrain` takes.
    """
    from statistics import median

    notes = {
        "images_per_second": turn * BATCH / median(contender.seconds),
        "peak_mib": peak(contender.process.pid),  # without its workers
    }
    if contender.is_run:
        return notes | {"attention": attention, "waiting": float(contender.rows()[-1]["waiting"])}
    return notes | contender.rows()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=int, default=TURN, help="another number is a trial")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        from simmim_kernels import keep_freed_memory

        keep_freed_memory()
        loop = run_step_alone
        if options.contender in LOOPS:
            loop = partial(run_plain_loop, *LOOPS[options.contender])
        with options.log.open("w") as log:
            loop(options.data, log, options.turn)
    from benchmarks.run import Store

    # the contenders are ended whatever ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    row = measure(options.rounds, options.turn)
    if options.turn != TURN:
        print("trial: nothing is stored")
        return 0
    Store(options.out, "cpu").write_rows(OP, [row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
