"""Whole training steps in bfloat16: ours against published arithmetic, transformers, compiled.

Each contender first runs with either attention path and keeps the faster one, which its name tells.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.harness import Row
from benchmarks.step_models import (
    VIT_S,
    VIT_TI,
    Step,
    batch_of,
    published,
    set_attention,
    simmim,
    transformers,
)

SIZE, BATCH, WINDOW = 192, 16, 47
# name -> (model, takes uint8, compiled)
CONTENDERS = {
    "ours": (simmim(plain=False), True, False),
    "ours compiled": (simmim(plain=False), True, True),
    "ours --plain": (simmim(plain=True), True, False),
    "eager": (published, False, False),
    "compiled": (published, False, True),
    "transformers": (transformers, False, False),
    "transformers compiled": (transformers, False, True),
}


def make(name, encoder, window, fused):
    model, uint8, compile = CONTENDERS[name]
    torch.manual_seed(0)
    built = model(encoder, SIZE, window)
    set_attention(built, fused)
    return Step(built, "cpu", uint8=uint8, compile=compile)


def faster_attention(name, encoder, window, batch):
    """Build the contender with either attention path; keep the one with the faster step."""
    taken = {}
    for fused in (False, True):
        contender = make(name, encoder, window, fused)
        contender.step(batch)
        contender.step(batch)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            contender.step(batch)
            seconds.append(time.perf_counter() - start)
        taken[min(seconds)] = (contender, fused)
        torch._dynamo.reset()
    contender, fused = taken[min(taken)]
    return contender, "sdpa" if fused else "products"


def peak_memory(name, encoder, window, attention):
    """Growth of the process's peak memory over three steps, in MiB, in a process of its own."""
    code = (
        "import resource, json; from benchmarks import bench_step as b, step_models as m;"
        f"s = b.make({name!r}, m.{encoder}, {window!r}, {attention == 'sdpa'});"
        "x = b.batch_of(b.SIZE, b.BATCH, 'cpu');"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before = peak(); [s.step(x) for _ in range(3)]; print(json.dumps(peak() - before))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("window", [None, WINDOW], ids=["pixels", "window47"])
@pytest.mark.parametrize("encoder", ["VIT_TI", "VIT_S"])
def test_step(compare, encoder, window):
    sizes = {"VIT_TI": VIT_TI, "VIT_S": VIT_S}[encoder]
    batch = batch_of(SIZE, BATCH, "cpu")
    names = ["ours", "eager"] if window else list(CONTENDERS)
    row = Row("step", f"{encoder}, 192 px, batch {BATCH}, bfloat16", "training step", 0)
    if window:
        row.shape += ", window-47 targets"
    contenders = {}
    for name in names:
        contender, attention = faster_attention(name, sizes, window, batch)
        contenders[name] = contender.step
        row.notes[name] = {"attention": attention}
        if "compiled" not in name:
            row.notes[name]["peak_mib"] = peak_memory(name, encoder, window, attention)
    compare(
        row,
        contenders,
        lambda: (batch_of(SIZE, BATCH, "cpu"),),
        tolerance=None,
        rounds=4 if window else 9,
    )
    for name in names:
        row.notes[name]["images_per_second"] = BATCH / row.timings[name].median * 1e6
