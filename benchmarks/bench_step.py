"""Whole training steps in bfloat16: ours against published arithmetic, transformers, compiled.

Each contender first runs with either attention path and keeps the faster one, which its name tells.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

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
PROFILES = 9  # profiled steps of every contender
# name -> (model, takes uint8)
MODELS = {
    "ours": (simmim(plain=False), True),
    "ours --plain": (simmim(plain=True), True),
    "published": (published, False),
    "transformers": (transformers, False),
}
# What a step must reach: against the published algorithm as it is, and both compiled.
TARGETS = {"VIT_TI": (1.25, 1.15), "VIT_S": (1.15, 1.1)}
ENCODERS = {"VIT_TI": VIT_TI, "VIT_S": VIT_S}
# Where a step's time goes: parts of the names that the profiler gives.
PARTS = {
    "matrix products": ("::mm", "addmm", "bmm", "convolution"),
    "softmax, attention": ("softmax", "scaled_dot_product"),
    "activations, norms": ("gelu", "layer_norm"),
    "optimiser, clipping": ("adamw", "vector_norm", "foreach"),
    "compiled code": ("Compiled", "fused"),
    "kernels of this library": ("_Mask", "_Take", "_Place"),
}


def make(name, encoder, window, fused, compile=False):
    model, uint8 = MODELS[name]
    torch.manual_seed(0)
    built = model(encoder, SIZE, window)
    set_attention(built, fused)
    return Step(built, "cpu", uint8=uint8, compile=compile)


def faster_attention(name, encoder, window, batch, compile):
    """Build the contender with either attention path; keep the one with the faster step.

    Returns it, the name of its path and the loss of its first step.
    """
    taken = {}
    for fused in (False, True):
        contender = make(name, encoder, window, fused, compile)
        loss = float(contender.step(batch))
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            contender.step(batch)
            seconds.append(time.perf_counter() - start)
        taken[min(seconds)] = (contender, fused)
    contender, fused = taken[min(taken)]
    return contender, "sdpa" if fused else "products", loss


def milliseconds(steps, batch):
    """Where the time of a step goes: contender -> part -> milliseconds, from the profiler.

    The contenders take turns and each part is a median: the machine's speed drifts from one second
    to the next by more than they differ.
    """
    spent = {name: {part: [] for part in [*PARTS, "everything else"]} for name in steps}
    for _ in range(PROFILES):
        for name, contender in steps.items():
            for part, value in profiled(contender, batch).items():
                spent[name][part].append(value)
    return {
        name: {part: median(values) for part, values in parts.items()}
        for name, parts in spent.items()
    }


def profiled(contender, batch):
    """The parts of one step in milliseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        contender.step(batch)
    spent = dict.fromkeys([*PARTS, "everything else"], 0.0)
    for event in profile.key_averages():
        part = next((p for p, names in PARTS.items() if any(n in event.key for n in names)), None)
        spent[part or "everything else"] += event.self_cpu_time_total / 1e3
    return spent


def peak_memory(name, encoder, window, attention):
    """Growth of the process's peak memory over three steps, in MiB, in a process of its own.

    Its own peak is VmHWM: `getrusage` starts with that of the process it was forked from.
    """
    code = (
        "import json; from benchmarks import bench_step as b;"
        f"s = b.make({name!r}, b.ENCODERS[{encoder!r}], {window!r}, {attention == 'sdpa'});"
        "x = b.batch_of(b.SIZE, b.BATCH, 'cpu');"
        "status = lambda: open('/proc/self/status').read();"
        "peak = lambda: int(status().split('VmHWM:')[1].split()[0]) / 1024;"
        "before = peak(); [s.step(x) for _ in range(3)]; print(json.dumps(peak() - before))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    return json.loads(ran.stdout.splitlines()[-1])


def measure(compare, encoder, window, names, compile, rounds):
    batch = batch_of(SIZE, BATCH, "cpu")
    what = "compiled training step" if compile else "training step"
    targets = f", window-{window} targets" if window else ""
    row = Row("step", f"{encoder}, {SIZE} px, batch {BATCH}, bfloat16{targets}", what, 0)
    row.targets = {"published": 5.0 if window else TARGETS[encoder][compile]}
    steps, losses = {}, {}
    for name in names:
        steps[name], attention, losses[name] = faster_attention(
            name, ENCODERS[encoder], window, batch, compile
        )
        row.notes[name] = {"attention": attention}
        if not compile:
            row.notes[name]["peak_mib"] = peak_memory(name, encoder, window, attention)
    inputs = lambda: (batch_of(SIZE, BATCH, "cpu"),)  # noqa: E731
    # Not the same weights but the same distributions of them, whose predictions are still small.
    assert max(losses.values()) < 1.2 * min(losses.values()), losses
    contenders = {name: step.step for name, step in steps.items()}
    compare(row, contenders, inputs, tolerance=None, rounds=rounds, keep_compiled=True)
    for name, parts in milliseconds(steps, batch).items():
        row.notes[name]["images_per_second"] = BATCH / row.timings[name].median * 1e6
        row.notes[name]["milliseconds"] = parts


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_step(compare, request, encoder, compile):
    names = ["ours", "published", "transformers"] if compile else list(MODELS)
    rounds = request.config.getoption("--rounds")
    measure(compare, encoder, None, names, compile, rounds)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_step_with_window_targets(compare, encoder):
    measure(compare, encoder, WINDOW, ["ours", "published"], False, rounds=4)
