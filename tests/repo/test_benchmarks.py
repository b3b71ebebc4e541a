"""The benchmarks: every op has its rows, a trial of the harness, and what it stores and reports."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import (
    bench_pretrain,
    bench_rows,
    counted,
    environment,
    gpu_model,
    interrupt,
    loops,
    report,
    rows,
    run,
    timing,
)
from benchmarks.memory import peak_of_process
from benchmarks.rows.common import Contest, Row
from benchmarks.rows.shapes import CPU, GPU, trial

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("setting", [CPU, GPU], ids=["cpu", "gpu"])
def test_every_op_has_rows_with_names_of_their_own(setting):
    found = list(rows.all_rows(setting))
    names = [(row.op, row.shape, row.what) for row in found]
    assert len(set(names)) == len(names)
    ops = {p.stem for p in (ROOT / "simmim_kernels/ops").glob("[a-z]*.py")}
    assert ops <= {row.op for row in found}
    files = {p.stem for p in (ROOT / "benchmarks/rows").glob("*.py")}
    assert files - {"__init__", "common", "shapes"} == set(rows.FILES)


def test_every_stored_row_still_exists(monkeypatch):
    names = set()
    for fast in (False, True):  # steps are in float32, or in bfloat16
        monkeypatch.setattr(
            "simmim_kernels.fast_types.has_fast_bfloat16", lambda device, fast=fast: fast
        )
        for setting in (CPU, gpu_model.SETTING):
            names |= {(row.op, row.shape, row.what) for row in rows.all_rows(setting)}
        names.add((bench_pretrain.OP, bench_pretrain.shape(), bench_pretrain.WHAT))
    for file in (ROOT / "benchmarks/results").glob("*/*.json"):
        for row in json.loads(file.read_text())["rows"]:
            assert (row["op"], row["shape"], row["what"]) in names


def test_the_pages_are_made_from_the_stored_rows():
    for folder in (ROOT / "benchmarks/results").iterdir():
        page = (folder / "README.md").read_text()
        if folder == report.COUNTED:
            assert page == counted.page(folder)
        else:
            assert "\n\n".join(report.tables(folder)) in page
        for page, kind, make in report.tables_of(folder):
            text = (ROOT / page).read_text()
            assert f"<!-- {kind}:{folder.name} -->" in text
            assert report.fill(text, f"{kind}:{folder.name}", make(folder)) == text


def contest(**contenders):
    return Contest(contenders, lambda: (torch.arange(4.0),), moved=64, tolerance=1e-6)


def test_results_are_compared_before_they_are_timed():
    def fails(x):
        raise RuntimeError("no")

    made = partial(
        contest, ours=lambda x: x * 2, right=lambda x: x + x, wrong=torch.sqrt, fails=fails
    )
    made = partial(made, short=lambda x: x[:1] * 2, nan=lambda x: x * float("nan"))
    result = run.time_row(Row("op", "shape", "forward", made), timing.clock_of("cpu"), 2)
    assert set(result.timings) == {"ours", "right", "copy"}
    assert set(result.errors) == {"wrong", "fails", "short", "nan"}
    assert "ours differ by" in result.errors["wrong"]
    assert result.errors["fails"] == "RuntimeError: no"


def test_a_row_that_cannot_be_built_is_an_error_of_its_own():
    def build():
        raise ImportError("no such model")

    result = run.time_row(Row("op", "shape", "forward", build), timing.clock_of("cpu"), 2)
    assert result.errors == {"ours": "ImportError: no such model"} and not result.timings


def test_contenders_take_turns():
    order = []
    made = partial(contest, ours=lambda x: order.append("ours") or x)
    made = partial(made, theirs=lambda x: order.append("theirs") or x)
    result = run.time_row(Row("op", "shape", "forward", made), timing.clock_of("cpu"), 5)
    assert order[-10:] == ["ours", "theirs"] * 5
    spread = result.timings["ours"]
    assert spread.low <= spread.median <= spread.high


def test_ours_runs_on_every_backend_that_can_serve():
    (row,) = [
        row
        for row in rows.all_rows(trial("cpu"))
        if row.op == "mask_tokens" and "float32" in row.shape
    ]
    result = run.time_row(row, timing.clock_of("cpu"), 1, ("cpu", "cuda", "reference"), False)
    assert list(result.timings) == ["cpu", "reference", "eager", "copy"]
    assert result.left_out == ["compiled", "where, compiled"]


def test_results_are_stored_without_git(monkeypatch, tmp_path):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    store = run.Store(tmp_path, "cpu")
    store.add(run.Result("op", "shape", "forward", 8, {"ours": timing.Timing(1.0, 1.0, 1.0)}))
    content = json.loads((tmp_path / "op.json").read_text())
    assert content["environment"]["commit"] == "unknown"
    assert set(content) == {"environment", "rows"}
    measured = (f for f in report.RESULTS.glob("*/mask_tokens.json") if f.parent != report.COUNTED)
    stored = json.loads(next(measured).read_text())
    assert set(content["environment"]) == set(stored["environment"])
    assert set(content["rows"][0]) == set(stored["rows"][0])
    assert [path.name for path in tmp_path.iterdir()] == ["op.json"]


def test_a_part_of_an_ops_rows_does_not_replace_them_all():
    every = [row for row, _ in run.passes(CPU)]
    part = [row for row in every if row.op != "mask_tokens" or "vit-b" in row.shape]
    assert part != every
    assert bench_rows.ops_in_full(every) == {row.op for row in every}
    assert bench_rows.ops_in_full(part) == {row.op for row in every} - {"mask_tokens"}


class _Dropping:
    """A contender whose first call gets Ctrl-C where Python drops what it raises."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)

    @classmethod
    def call(cls, x):
        cls()
        return -x


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("dropped", [False, True])
def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch, dropped):
    monkeypatch.setattr(interrupt, "asked", False)
    before = signal.getsignal(signal.SIGINT)
    interrupt.catch()
    try:
        check_what_an_interrupt_keeps(tmp_path, dropped)
    finally:
        signal.signal(signal.SIGINT, before)


def check_what_an_interrupt_keeps(tmp_path, dropped):
    def interrupted():
        if dropped:
            return contest(ours=_Dropping.call)
        signal.raise_signal(signal.SIGINT)

    plan = [
        (Row("op", "first", "forward", partial(contest, ours=torch.neg)), True),
        (Row("op", "second", "forward", interrupted), True),
        (Row("other", "third", "forward", partial(contest, ours=torch.neg)), True),
    ]
    store = run.Store(tmp_path, "cpu")
    run.run_rows(plan, trial("cpu"), store, seconds=60, rounds=2)
    content = json.loads((tmp_path / "op.json").read_text())
    assert [row["shape"] for row in content["rows"]] == ["first"]
    assert content["not measured"] == ["second with torch.compile"]
    assert json.loads((tmp_path / "other.json").read_text())["rows"] == []
    assert any("Not measured, out of time: second" in table for table in report.tables(tmp_path))


def test_a_row_with_compiled_peers_runs_again_and_replaces_the_first(tmp_path):
    calls = []

    def build(name):
        calls.append(name)
        return (
            contest(ours=torch.neg, compiled=torch.neg) if name == "a" else contest(ours=torch.neg)
        )

    both = [Row("op", name, "forward", partial(build, name)) for name in ("a", "b")]
    store = run.Store(tmp_path, "cpu")
    plan = [(row, compile) for compile in (False, True) for row in both]
    run.run_rows(plan, trial("cpu"), store, seconds=60, rounds=2)
    assert calls == ["a", "b", "a"]
    content = json.loads((tmp_path / "op.json").read_text())
    assert [list(row["timings"]) for row in content["rows"]] == [
        ["ours", "compiled", "copy"],
        ["ours", "copy"],
    ]


class FakeEvent:
    """Records the GPU's time, in microseconds, when the work queued before it is done."""

    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self):
        self.at = self.gpu.done = max(self.gpu.done, self.gpu.now)

    def query(self):
        return self.gpu.now >= self.at

    def synchronize(self):
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, end):
        return (end.at - self.at) / 1e3


class FakeGpu:
    """A queue: `now` is the time of Python, `done` that at which all queued work is finished."""

    def __init__(self, monkeypatch):
        self.now = self.done = 0.0
        self.sleeps = 0
        for name, value in {
            "Event": lambda enable_timing: FakeEvent(self),
            "_sleep": self.sleep,
            "synchronize": self.synchronize,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value, raising=False)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now / 1e6)

    def sleep(self, cycles):
        self.sleeps += 1
        self.work(cycles / 1e3)  # a thousand cycles a microsecond

    def work(self, microseconds):
        self.done = max(self.done, self.now) + microseconds

    def synchronize(self):
        self.now = max(self.now, self.done)


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu(monkeypatch)


def kernel(gpu, launch, work, waits=False):
    def call():
        gpu.now += launch
        gpu.work(work)
        if waits:
            gpu.synchronize()

    return timing.Run("kernel", call, [()], calls=4)


def test_python_does_not_count_on_a_gpu(gpu):
    clock = timing.CudaClock()
    elapsed, launch = clock.measure(kernel(gpu, launch=300.0, work=20.0), 0, queued=True)
    assert elapsed == pytest.approx(20.0) and launch == pytest.approx(300.0)


def test_the_cost_of_a_call_counts_where_the_row_is_about_it(gpu):
    clock = timing.CudaClock()
    elapsed, _ = clock.measure(kernel(gpu, launch=300.0, work=20.0), 0, queued=False)
    assert elapsed == pytest.approx(300.0, rel=0.1)


def test_a_call_that_waits_for_the_gpu_is_timed_as_it_is(gpu):
    clock, run_ = timing.CudaClock(), kernel(gpu, launch=10.0, work=20.0, waits=True)
    elapsed, _ = clock.measure(run_, 0, queued=True)
    assert elapsed == pytest.approx(30.0, rel=0.1) and run_.waits
    before = gpu.sleeps
    clock.measure(run_, 0, queued=True)
    assert gpu.sleeps == before


def make_memory(mib):
    return lambda: torch.ones(mib * 2**18)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own():
    assert peak_of_process(make_memory, 64) == pytest.approx(64, abs=8)


def test_the_folder_of_a_machine_is_named_after_processor_or_gpu():
    facts = {"processor": "AMD EPYC", "instruction_set": "avx512", "threads": 2}
    assert environment.machine(facts) == "amd-epyc-avx512-2-threads"
    assert environment.machine(facts | {"gpu": "NVIDIA H200"}) == "nvidia-h200"


@pytest.mark.slow
def test_every_benchmark_is_collected():
    """`make bench` and the tables have the same rows."""
    command = ["-m", "pytest", "benchmarks", "--collect-only", "-p", "no:cacheprovider"]
    listed = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stdout[-2000:]
    found = [row for row in rows.all_rows(CPU) if all(map(importlib.util.find_spec, row.needs))]
    assert listed.stdout.count("bench_rows.py::test_row[") == len(found)


def test_the_photographs_of_a_run(tmp_path):
    from PIL import Image

    loops.write_photographs(tmp_path, 6)
    files = sorted(tmp_path.iterdir())
    assert {Image.open(file).size for file in files} == {(500, 375)}
    assert len({file.read_bytes() for file in files}) == 6
    images, masks = loops.Photographs(tmp_path)[0]
    assert (images.shape, images.dtype) == ((3, 192, 192), torch.float32)
    assert masks.shape == (12, 12) and masks.sum() == 22 * 4


def test_a_contender_runs_in_its_turns_only(tmp_path):
    code = "import sys, time\nfor _ in iter(int, 1): time.sleep(.05); print('{}', flush=True)"
    log = tmp_path / "log"
    command = [sys.executable, "-c", code]
    contender = bench_pretrain.Contender("one", command, log, bench_pretrain._json_rows)
    contender.start(log)
    try:
        for turn in (1, 2):
            contender.take_turn()
            time.sleep(0.2)  # what it was writing when it was stopped has arrived
            count = len(contender.rows())
            assert count >= turn
            time.sleep(0.2)
            assert len(contender.rows()) == count
    finally:
        contender.end()
    ended = bench_pretrain.Contender("two", [sys.executable, "-c", ""], log, lambda _: [])
    ended.start(tmp_path / "output")
    with pytest.raises(RuntimeError, match="two has ended with 0"):
        ended.take_turn()


@pytest.mark.slow
def test_a_row_is_counted_on_both_backends():
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    pytest.importorskip("triton")
    (row,) = [
        row
        for row in gpu_model.counted_rows()
        if str(row).startswith("random_mask: 2 masks of 6x6")
    ]
    stored = gpu_model.count_row(row)
    assert stored["numbers"] == 2 * 36
    for backend in ("cuda", "triton"):
        (launch,) = stored["counted"][backend]
        assert launch["instructions"] > 72 and launch["registers"] > 0
        assert launch["sectors"] >= launch["least_sectors"] > 0
