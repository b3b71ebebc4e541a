"""`python -m benchmarks.bench_pretrain`: what a user types, against a plain loop and the step alone.

`simmim pretrain` with its default settings reads JPEG files of 500 x 375 pixels that are cut from
scikit-image's photographs; ViT-Ti at 192 px, batch 16, bfloat16. Every contender is a process of its
own that is stopped (SIGSTOP) while another one runs, so that turns of 50 updates are interleaved.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import ROOT
from benchmarks.rows.common import OURS

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.models import Step

OP = "pretrain"
SHAPE = "VIT_TI, 192 px, batch 16, bfloat16, JPEG files of 500x375"
WHAT = "training run"
SIZE, BATCH = 192, 16
FILES = 1024
#: updates of a turn: the rows of `simmim pretrain`'s log, by which it is timed, are as far apart
TURN = 50
#: turns in which `simmim pretrain` finds out how it reads the fastest: two for each of three ways
WARM_UP = 7
#: what must be reached, as times the speed of the other one
TARGETS = {"step alone, compiled": 0.97, "plain loop": 1.6, "plain loop, compiled": 1.25}
LOOPS = {"plain loop": False, "plain loop, compiled": True}


def write_photographs(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels, each another part of one of scikit-image's photographs."""
    import numpy as np
    from PIL import Image
    from skimage import data

    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(sources[number % len(sources)])
        # parts of 400 to 600 pixels' width, so that the files differ in detail and size
        width = min(int(rng.integers(300, 451)), image.width, image.height * 4 // 3)
        height = width * 3 // 4
        left = int(rng.integers(image.width - width + 1))
        top = int(rng.integers(image.height - height + 1))
        image = image.resize((500, 375), box=(left, top, left + width, top + height))
        image.save(folder / f"{number:04d}.jpg", quality=92)


class Log:
    """A line of JSON after every `TURN` updates, in the place of `simmim pretrain`'s metrics."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", buffering=1)

    def write(self, **notes: Any) -> None:
        self.file.write(json.dumps(notes) + "\n")


def run_step_alone(_: Path, log: Log, turn: int) -> None:
    """Our step under `torch.compile` on batches that lie there."""
    from benchmarks.models import ENCODERS, draw_batch, make_step, set_attention

    encoder = ENCODERS["VIT_TI"]
    step = make_step("ours", encoder, SIZE, None, "cpu")
    set_attention(step.model, False)
    step.compile()
    batches = [draw_batch(encoder, SIZE, BATCH) for _ in range(3)]
    while True:
        for number in range(turn):
            step(*batches[number % len(batches)])
        log.write(attention="products")


def run_plain_loop(compile: bool, folder: Path, log: Log, turn: int) -> None:
    """transformers' model, torchvision's decoder and transforms, a DataLoader at its best number of
    workers, each attention path tried."""
    from benchmarks.models import ENCODERS, make_step
    from benchmarks.rows.step import take_faster_attention

    step = make_step("transformers", ENCODERS["VIT_TI"], SIZE, None, "cpu")
    if compile:
        step.compile()
    batch = next(batches_of(folder, 0))
    attention, _ = take_faster_attention(step, batch, min(5, turn))
    speeds = {workers: _speed(step, folder, workers, min(12, turn)) for workers in (0, 1, 2)}
    workers = max(speeds, key=speeds.get)
    batches = batches_of(folder, workers)
    while True:
        for _ in range(turn):
            step(*next(batches))
        log.write(attention=attention, workers=workers)


def _speed(step: Step, folder: Path, workers: int, updates: int) -> float:
    batches = batches_of(folder, workers)
    for _ in range(3):
        step(*next(batches))
    began = time.perf_counter()
    for _ in range(updates):
        step(*next(batches))
    return updates / (time.perf_counter() - began)


class Photographs:
    """A dataset as the documentation of torchvision's second version of transforms has it.

    Items are normalised images and SimMIM's mask on the token grid, `int64 (1, 12, 12)`.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from torchvision.transforms import v2

        from benchmarks.models import MEAN, STD

        self.paths = sorted(folder.glob("*.jpg"))
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(SIZE, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        import torch
        from torchvision.io import ImageReadMode, decode_image

        image = self.transform(decode_image(str(self.paths[index]), mode=ImageReadMode.RGB))
        mask = torch.zeros(36, dtype=torch.int64)
        mask[torch.randperm(36)[:22]] = 1
        mask = mask.view(6, 6).repeat_interleave(2, 0).repeat_interleave(2, 1)
        return image, mask


def batches_of(folder: Path, workers: int) -> Iterator[tuple]:
    """Batches without end, in the order of arguments that a `Step` takes."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Photographs(folder),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        for images, masks in loader:
            yield None, None, images, masks


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

    def rows(self) -> list[dict]:
        return self.read(self.log) if self.log.exists() else []

    def end(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def contenders_in(folder: Path, data: Path, turn: int) -> list[Contender]:
    flags = ("--encoder", "vit_tiny_patch16_224", "--img-size", SIZE, "--batch-size", BATCH)
    command = ("-m", "simmim", "pretrain", "--data", data, "--out", folder / "run", *flags)
    if turn != TURN:  # a trial
        command = (*command, "--log-every", turn)
    found = [Contender(OURS, _python(*command), folder / "run" / "metrics.csv", _csv_rows)]
    for number, name in enumerate(TARGETS):
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
                turns = WARM_UP if contender.name == OURS else 1
                seconds = sum(contender.take_turn() for _ in range(turns))
                print(f"{contender.name}: ready after {seconds:.0f} s", flush=True)
            for _ in range(rounds):
                for contender in contenders:
                    contender.seconds.append(contender.take_turn())
                speeds = (f"{c.name} {turn * BATCH / c.seconds[-1]:.1f}" for c in contenders)
                print(f"images/s: {', '.join(speeds)}; load {os.getloadavg()[0]:.1f}", flush=True)
            said = (folder / "0.txt").read_text()
            print(said)
            notes = {c.name: _notes(c, turn) for c in contenders}
            notes[OURS]["log"] = [
                line
                for line in said.splitlines()
                if line.startswith(("compil", "not compil", "images:", "attention:"))
            ]
        finally:
            for contender in contenders:
                contender.end()
    micro = 1e6 / (turn * BATCH)
    timings = {c.name: vars(spread([s * micro for s in c.seconds])) for c in contenders}
    return {
        "op": OP,
        "shape": SHAPE,
        "what": WHAT,
        "moved": 0,
        "timings": timings,
        "notes": notes,
        "targets": TARGETS,
    }


def _notes(contender: Contender, turn: int) -> dict[str, Any]:
    from statistics import median

    notes = {
        "images_per_second": turn * BATCH / median(contender.seconds),
        "peak_mib": _peak(contender),
    }
    if contender.name == OURS:
        return notes | {"attention": "products", "waiting": float(contender.rows()[-1]["waiting"])}
    return notes | contender.rows()[-1]


def _peak(contender: Contender) -> float:
    """Peak memory of the process in MiB, without its workers."""
    status = Path(f"/proc/{contender.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=int, default=TURN, help="another number is a trial")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--contender", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        from simmim_kernels import keep_freed_memory

        keep_freed_memory()
        loop = run_step_alone
        if options.contender in LOOPS:
            loop = partial(run_plain_loop, LOOPS[options.contender])
        loop(options.data, Log(options.log), options.turn)
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
