"""Whole training steps: ours against published arithmetic, transformers, compiled.

Each contender first runs with either attention path and keeps the faster one, which its notes tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.memory import peak_of_process
from benchmarks.rows.common import OURS, Contest, Row, rates
from benchmarks.rows.shapes import TRIAL_SIZE, Setting, type_of_steps

if TYPE_CHECKING:
    from benchmarks.models import Batch, Step

WINDOW = 47
KERNELS = 25  # of a GPU, that are noted
# What a step must reach against the published algorithm: as it is, both compiled, window targets.
TARGETS = {
    "VIT_TI": (1.25, 1.15, 5.0),
    "VIT_S": (1.15, 1.1, 5.0),
    "VIT_B": (1.8, 1.05, 5.0),
    "SWIN_B": (1.0, 1.0, 2.0),
    "SWIN_V2_B": (1.0, 1.0, 2.0),
}
# Where a step's time goes: parts of the names that the profiler gives.
PARTS = {
    "matrix products": ("::mm", "addmm", "bmm", "convolution"),
    "softmax, attention": ("softmax", "scaled_dot_product"),
    "activations, norms": ("gelu", "layer_norm"),
    "optimiser, clipping": ("adamw", "vector_norm", "foreach"),
    "compiled code": ("Compiled", "fused"),
    "kernels of this library": ("_Mask", "_Take", "_Place"),
}
REST = "everything else"


@dataclass(frozen=True)
class Plan:
    """A training step: a name of `models.ENCODERS`, and how it is run.

    Attributes:
        batch: images of a step.
        device: where it runs.
        peaks: whether peak memory is measured in processes of their own.
        tiny: a trial, with as few steps as there can be.
    """

    encoder: str
    size: int
    batch: int
    device: str
    window: int | None = None
    compile: bool = False
    peaks: bool = False
    tiny: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        peers = ("published",) if self.window else ("published", "transformers")
        # Window targets take the published pooling seconds on a CPU: no need of a third contender.
        plain = not self.compile and (not self.window or self.device == "cuda")
        return (OURS, *(["ours --plain"] if plain else []), *peers)


def plans(setting: Setting) -> Iterator[Plan]:
    if setting.tiny:
        yield Plan("TRIAL_VIT", TRIAL_SIZE, 2, setting.device, tiny=True)
        yield Plan("TRIAL_SWIN", TRIAL_SIZE, 2, setting.device, window=7, tiny=True)
    elif setting.on_gpu:  # the compiled one last, for compiling takes a minute
        yield Plan("VIT_B", 224, 256, "cuda")
        yield Plan("SWIN_B", 192, 256, "cuda", window=WINDOW)
        yield Plan("SWIN_V2_B", 192, 256, "cuda", window=WINDOW)
        yield Plan("VIT_B", 224, 256, "cuda", compile=True)
    else:
        for encoder in ("VIT_TI", "VIT_S"):
            yield Plan(encoder, 192, 16, "cpu", peaks=True)
            yield Plan(encoder, 192, 16, "cpu", compile=True)
        for encoder in ("VIT_TI", "VIT_S"):
            yield Plan(encoder, 192, 16, "cpu", window=WINDOW, peaks=True)


def rows(setting: Setting) -> Iterator[Row]:
    for plan in plans(setting):
        targets = f", window-{plan.window} targets" if plan.window else ""
        dtype = type_of_steps(plan.device)
        shape = f"{plan.encoder}, {plan.size} px, batch {plan.batch}, {dtype}{targets}"
        what = "compiled training step" if plan.compile else "training step"
        needs = ("timm", "transformers") if "transformers" in plan.names else ("timm",)
        yield Row("step", shape, what, partial(build, plan), needs)


def build(plan: Plan) -> Contest:
    from benchmarks.models import ENCODERS, draw_batch

    inputs = partial(draw_batch, ENCODERS[plan.encoder], plan.size, plan.batch)
    batch = inputs()
    contenders, notes, losses = {}, {}, {}
    for name in plan.names:
        try:
            contenders[name], notes[name], losses[name] = make_contender(plan, name, batch)
        except Exception as error:  # for instance of memory: the others still run
            notes[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    # Not the same weights but the same distributions of them, whose predictions are still small.
    if losses and max(losses.values()) >= 1.2 * min(losses.values()):
        raise ValueError(f"the losses of the first step differ: {losses}")

    def finish(notes: dict[str, dict[str, Any]], medians: dict[str, float]) -> None:
        steps = {name: contenders[name] for name in medians}
        rates(plan.batch)(notes, medians)
        if plan.device == "cpu":
            for name, parts in milliseconds(steps, batch, 1 if plan.tiny else 9).items():
                notes[name]["milliseconds"] = parts
        elif OURS in steps:
            notes[OURS]["kernels"] = longest_kernels(steps[OURS], batch)

    eager, compiled, window = TARGETS.get(plan.encoder, (1.0, 1.0, 1.0))
    return Contest(
        contenders,
        inputs,
        effort=0.16 if plan.window and plan.device == "cpu" else 1.0,
        queued=False,
        targets={"published": window if plan.window else compiled if plan.compile else eager},
        notes=notes,
        finish=finish,
    )


def make_contender(plan: Plan, name: str, batch: Batch) -> tuple[Step, dict[str, Any], float]:
    """A contender on its faster attention path, its notes, and the loss of its first step."""
    from benchmarks.models import ENCODERS, make_step

    step = make_step(name, ENCODERS[plan.encoder], plan.size, plan.window, plan.device)
    # On a GPU compiling takes a minute: there the path is chosen before.
    if plan.compile and plan.device == "cpu":
        step.compile()
    attention, loss = take_faster_attention(step, batch, 1 if plan.tiny else 3)
    if plan.compile and plan.device != "cpu":
        step.compile()
    notes = {"attention": attention}
    if plan.peaks:
        notes["peak_mib"] = peak_of_process(make_alone, plan, name, attention)
    return step, notes, loss


def make_alone(plan: Plan, name: str, attention: str) -> Callable[[], Any]:
    """A contender with its batch, for a process of its own."""
    from benchmarks.models import ENCODERS, draw_batch, make_step, set_attention

    encoder = ENCODERS[plan.encoder]
    step = make_step(name, encoder, plan.size, plan.window, plan.device)
    set_attention(step.model, attention == "sdpa")
    return partial(step, *draw_batch(encoder, plan.size, plan.batch))


def take_faster_attention(step: Step, batch: Batch, tries: int) -> tuple[str, float]:
    """Leave the model on the attention path whose step is the faster one.

    Returns the path's name and the loss of the first step.
    """
    from benchmarks.models import set_attention

    taken, losses = {}, []
    for fused in (False, True):
        set_attention(step.model, fused)
        losses.append(float(step(*batch)))
        seconds = []
        for _ in range(tries):
            start = time.perf_counter()
            float(step(*batch))  # waits for a GPU
            seconds.append(time.perf_counter() - start)
        taken[fused] = min(seconds)
    fused = taken[True] <= taken[False]
    set_attention(step.model, fused)
    return "sdpa" if fused else "products", losses[0]


def milliseconds(
    steps: dict[str, Step], batch: Batch, profiles: int
) -> dict[str, dict[str, float]]:
    """Where the time of a step goes: contender -> part -> milliseconds, from the profiler.

    The contenders take turns and each part is a median: the machine's speed drifts from one second
    to the next by more than they differ.
    """
    spent = {name: {part: [] for part in [*PARTS, REST]} for name in steps}
    for _ in range(profiles):
        for name, step in steps.items():
            for part, value in profiled_parts(step, batch).items():
                spent[name][part].append(value)
    return {
        name: {part: median(values) for part, values in parts.items()}
        for name, parts in spent.items()
    }


def profiled_parts(step: Step, batch: Batch) -> dict[str, float]:
    """The parts of one step on a CPU in milliseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(*batch)
    spent = dict.fromkeys([*PARTS, REST], 0.0)
    for event in profile.key_averages():
        part = next((p for p, names in PARTS.items() if any(n in event.key for n in names)), REST)
        spent[part] += event.self_cpu_time_total / 1e3
    return spent


def longest_kernels(step: Step, batch: Batch) -> dict[str, float]:
    """The GPU's kernels that take most of a step, in milliseconds."""
    with torch.profiler.profile() as profile:
        step(*batch)
    spent = {e.key: e.self_device_time_total / 1e3 for e in profile.key_averages()}
    longest = sorted((key for key in spent if spent[key] > 0), key=spent.get, reverse=True)
    return {key: spent[key] for key in longest[:KERNELS]}
