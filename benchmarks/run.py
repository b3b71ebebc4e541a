"""`python -m benchmarks.run OUT`: run rows on a device and store them, one JSON file an op.

On a GPU all rows first run without `torch.compile`, the larger batch size first; between the two batch
sizes the rows of the first run again with their compiled peers, which take most of the time. Every row
is stored as it ends, so that an interrupt (Ctrl-C, or the end of `--seconds`) loses nothing but the row
that runs; what was not reached is named in the files. `--trial` runs every kind of row at a tiny size
on either device and stores nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import interrupt
from benchmarks.environment import ROOT, environment, machine
from benchmarks.rows import all_rows
from benchmarks.rows.common import OURS, Contest, Row
from benchmarks.rows.shapes import CPU, GPU, Setting, trial
from benchmarks.timing import (
    Clock,
    Run,
    Timing,
    clock_of,
    largest_difference,
    spread,
    take_rounds,
    tensors,
)
from simmim_kernels import backend, backends, keep_freed_memory


@dataclass
class Result:
    """What a row gave, as it is stored.

    Attributes:
        op, shape, what, moved, targets: those of the row and its contest.
        timings: contender -> `Timing`; the contender `copy` moves as many bytes with a clone.
        notes: contender -> whatever else was measured; `error` where it failed.
        left_out: contenders that did not run because nothing was to be compiled; not stored.
    """

    op: str
    shape: str
    what: str
    moved: int = 0
    timings: dict[str, Timing] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        content = asdict(self)
        del content["left_out"]
        return content

    @property
    def errors(self) -> dict[str, str]:
        return {name: note["error"] for name, note in self.notes.items() if "error" in note}

    def fail(self, name: str, error: Exception) -> None:
        self.notes.setdefault(name, {})["error"] = f"{type(error).__name__}: {error}"[:300]


def time_row(
    row: Row, clock: Clock, rounds: int, names: Sequence[str] = (), compile: bool = True
) -> Result:
    """Build a row on the clock's device, compare its contenders' results and time them.

    Args:
        rounds: before the row's own factor is applied.
        names: backends that "ours" runs on, a contender each; none: "ours" on the default one.
        compile: whether contenders under `torch.compile` take part.

    What fails or differs is left out, with the reason in the result's notes.
    """
    result = Result(row.op, row.shape, row.what)
    torch.compiler.reset()  # a function compiled for many shapes meets its recompile limit
    try:
        with torch.device(clock.device):
            contest = row.build()
            sets = clock.input_sets(contest.inputs)
    except Exception as error:
        result.fail(OURS, error)
        return result
    result.moved, result.targets = contest.moved, dict(contest.targets)
    result.notes = {name: dict(note) for name, note in contest.notes.items()}
    functions = on_backends(contest, clock.device, names)
    if not compile:
        result.left_out = [name for name in functions if name.endswith("compiled")]
    runs = {
        name: Run(name, f, sets) for name, f in functions.items() if name not in result.left_out
    }
    check_results(runs, contest.tolerance, result)
    if contest.moved:  # half of the bytes are read, half written
        half = max(contest.moved // 8, 1)
        copies = clock.input_sets(lambda: (torch.rand(half, device=clock.device),))
        runs["copy"] = Run("copy", torch.clone, copies)
    rounds = max(1, round(rounds * contest.effort))
    for name, error in take_rounds(runs, clock, rounds, contest.queued).items():
        result.fail(name, error)
    for name, run in runs.items():
        result.timings[name] = spread(run.samples)
        if run.notes:
            result.notes.setdefault(name, {}).update(run.notes)
    if contest.finish is not None:
        medians = {name: timing.median for name, timing in result.timings.items()}
        contest.finish(result.notes, medians)
    return result


def on_backends(contest: Contest, device: str, names: Sequence[str]) -> dict[str, Callable]:
    """The contenders, with "ours" on each of the named backends that can serve it on the device."""

    def run_on(name: str) -> Callable:
        def run(*arguments: Any) -> Any:
            with backend(name):
                return contest.contenders[OURS](*arguments)

        return run

    kernel = contest.kernel
    able = [n for n in names if kernel and backends.why_not(n, kernel, device) is None]
    if not able:
        return dict(contest.contenders)
    others = {name: f for name, f in contest.contenders.items() if name != OURS}
    return {name: run_on(name) for name in able} | others


def check_results(runs: dict[str, Run], tolerance: float | None, result: Result) -> None:
    """Run each contender once and compare its results with those of the first, which is ours.

    What fails or differs by more than `tolerance` times the largest number is taken out of `runs`.
    """
    expected: list[Tensor] | None = None
    first = ""
    for name, run in list(runs.items()):
        try:
            # The products are compared in full precision, and timed as PyTorch does them.
            with torch.backends.cudnn.flags(allow_tf32=False):
                found = tensors(run.function(*run.sets[0]))
            if tolerance is None:
                continue
            if expected is None:
                expected, first = found, name
            difference = largest_difference(found, expected)
            if not difference <= tolerance:
                raise ValueError(f"{name} and {first} differ by {difference:.2e}")
        except Exception as error:
            result.fail(name, error)
            del runs[name]


class Store:
    """The results of a run in a folder: `<op>.json` with versions, commit and rows.

    Args:
        folder: where the files go; default: `benchmarks/results/<machine>`.
        device: `"cpu"` or `"cuda"`.
    """

    def __init__(self, folder: Path | None, device: str) -> None:
        self.environment = environment(device)
        self.folder = folder or ROOT / "benchmarks" / "results" / machine(self.environment)
        self.results: dict[tuple[str, str, str], Result] = {}
        self.missing: dict[str, list[str]] = {}

    def add(self, result: Result) -> None:
        """Keep a result, in the place of an earlier one of the same row, and write the op's file."""
        self.results[result.op, result.shape, result.what] = result
        self.write(result.op)

    def miss(self, row: Row, what: str) -> None:
        """Note that a row, or a part of it, was not reached."""
        self.missing.setdefault(row.op, []).append(f"{row.shape}{what}")
        self.write(row.op)

    def write(self, op: str) -> None:
        self.write_rows(op, [r.as_dict() for r in self.results.values() if r.op == op])

    def write_rows(self, op: str, rows: list[dict[str, Any]]) -> None:
        """Write the file of an op, with rows in the form of `Result.as_dict`."""
        content: dict[str, Any] = {"environment": self.environment, "rows": rows}
        if op in self.missing:
            content["not measured"] = self.missing[op]
        self.folder.mkdir(parents=True, exist_ok=True)
        # An interrupt must not leave half a file.
        part = self.folder / f"{op}.json.part"
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(self.folder / f"{op}.json")


def passes(setting: Setting) -> Iterator[tuple[Row, bool]]:
    """Rows in the order in which they should run, and whether with their compiled peers.

    On a CPU all at once. On a GPU a row that comes a second time is run again if contenders were left
    out the first time.
    """
    if not setting.on_gpu:
        yield from ((row, setting.compile) for row in runnable_rows(setting))
        return
    for number, batch in enumerate(setting.batches):
        one = replace(setting, batches=(batch,))
        yield from ((row, False) for row in runnable_rows(one))
        if setting.compile and number == 0:
            yield from ((row, True) for row in runnable_rows(one))


def runnable_rows(setting: Setting) -> Iterator[Row]:
    """The rows whose packages are installed."""
    for row in all_rows(setting):
        if all(importlib.util.find_spec(name) for name in row.needs):
            yield row


def run_rows(
    rows: Iterable[tuple[Row, bool]], setting: Setting, store: Store, seconds: float, rounds: int
) -> None:
    """Time rows until `seconds` are over or Ctrl-C comes; what was not reached is noted."""
    clock, begin = clock_of(setting.device), time.monotonic()
    for row, compile in rows:
        key = (row.op, row.shape, row.what)
        before = store.results.get(key)
        if before is not None and not (compile and before.left_out):
            continue
        if interrupt.asked or time.monotonic() - begin > seconds:
            store.miss(row, " with torch.compile" if compile else "")
            continue
        try:
            with interrupt.raised():
                result = time_row(row, clock, rounds, setting.backends, compile)
        except KeyboardInterrupt:
            interrupt.asked = True
            store.miss(row, " with torch.compile" if compile else "")
            continue
        store.add(result)
        print(describe(result), flush=True)
        if setting.on_gpu:
            torch.cuda.empty_cache()


def describe(result: Result) -> str:
    """A row in one line: medians in microseconds, and times ours."""
    base = next(iter(result.timings.values()), None)
    shown = [
        f"{name} {timing.median:.0f} us ({timing.median / base.median:.2f}x)"
        for name, timing in result.timings.items()
    ]
    shown += [f"{name}: {error}" for name, error in result.errors.items()]
    return f"{result.op} {result.shape} {result.what}: {'  '.join(shown)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ops", nargs="*", help="only the rows of these ops")
    parser.add_argument("--skip", nargs="*", default=[], help="no rows of these ops")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--trial", action="store_true", help="tiny sizes, nothing stored")
    options = parser.parse_args()
    interrupt.catch()
    keep_freed_memory()
    setting = trial(options.device) if options.trial else {"cpu": CPU, "cuda": GPU}[options.device]
    rows = [
        (row, compile)
        for row, compile in passes(setting)
        if (not options.ops or row.op in options.ops) and row.op not in options.skip
    ]
    if options.trial:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder), setting.device)
            run_rows(rows, setting, store, options.seconds, options.rounds)
        print(f"trial: {len(store.results)} rows ran; their times mean nothing")
    else:
        print(f"{len(rows)} rows; Ctrl-C stores those that have run", flush=True)
        store = Store(options.out, setting.device)
        run_rows(rows, setting, store, options.seconds, options.rounds)
    failed = {str(key): r.errors for key, r in store.results.items() if r.errors}
    for key, errors in failed.items():
        print(f"failed: {key}: {errors}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
