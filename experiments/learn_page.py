"""The page that ``make learn`` writes: its table, its plot and what they show."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

#: of each class, for the few-label measurements
LABELS = 10
STARTS = {
    "kernels": "pre-trained, kernels",
    "plain": "pre-trained, `--plain`",
    "random": "random weights",
    "pixels": "no encoder: raw pixels",
}
MEASURES = {
    "linear": f"linear probe, {LABELS} labels a class",
    "neighbours": f"nearest neighbours, {LABELS} labels a class",
    "finetuned": f"fine-tuned, {LABELS} labels a class",
    "linear_all": "linear probe, all labels",
}


@dataclass(frozen=True)
class Record:
    """What one start led to with one seed: shares of right answers on the held-out digits.

    Attributes:
        finetuned: ``None`` where there is nothing to train.
        validation: loss on hidden pixels of held-out digits after pre-training, ``None`` without.
        seconds: of processor time for pre-training, probes and fine-tuning.
    """

    start: str
    seed: int
    linear: float
    neighbours: float
    linear_all: float
    finetuned: float | None
    validation: float | None
    seconds: float


def values_of(records: list[Record], start: str, name: str) -> list[float]:
    """What the seeds gave, in percent; empty where nothing was measured."""
    values = [getattr(r, name) for r in records if r.start == start]
    return [100 * value for value in values if value is not None]


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(records: list[Record]) -> str:
    """The results in Markdown."""
    lines = ["| | " + " | ".join(MEASURES.values()) + " |", "| --- |" + " ---: |" * len(MEASURES)]
    for start, title in STARTS.items():
        cells = [cell(values_of(records, start, name)) for name in MEASURES]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(records: list[Record], path: Path) -> None:
    """Bars of the means, a point for each seed."""
    canvas = Figure(figsize=(8, 3.6), layout="constrained")
    axis = canvas.subplots()
    width = 0.8 / len(STARTS)
    colours = dict(zip(STARTS, ("#1f77b4", "#9ecae1", "#8c8c8c", "#dddddd"), strict=True))
    for place, (start, title) in enumerate(STARTS.items()):
        for column, name in enumerate(MEASURES):
            values = values_of(records, start, name)
            if not values:
                continue
            x = column + (place - (len(STARTS) - 1) / 2) * width
            label = title.replace("`", "") if column == 0 else None
            axis.bar(x, statistics.mean(values), width * 0.92, color=colours[start], label=label)
            axis.plot([x] * len(values), values, "k.", markersize=4)
    axis.set_xticks(range(len(MEASURES)), [m.replace(", ", ",\n") for m in MEASURES.values()])
    axis.set_ylabel("held-out digits right (%)")
    axis.set_ylim(0, 100)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        frameon=False, ncols=len(STARTS), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0)
    )
    canvas.savefig(path, dpi=130)


def report(found: dict, epochs: int, tuning: int) -> str:
    """What was done, the table, what it shows and what not.

    Args:
        found: what ``learn.json`` holds.
        epochs, tuning: epochs of pre-training and of fine-tuning.
    """
    records = [Record(**record) for record in found["records"]]
    losses = {(r.start, r.seed): r.validation for r in records}
    seeds = sorted({r.seed for r in records})
    gains = [
        statistics.mean(values_of(records, "kernels", name))
        - statistics.mean(values_of(records, "random", name))
        for name in MEASURES
    ]
    return REPORT.format(
        table=table(records),
        epochs=epochs,
        tuning=tuning,
        seeds=len(seeds),
        gap=max(abs(losses["kernels", seed] - losses["plain", seed]) for seed in seeds),
        loss=statistics.mean(losses["kernels", seed] for seed in seeds),
        gains="\n".join(
            f"- {title}: {gain:+.1f} points"
            for title, gain in zip(MEASURES.values(), gains, strict=True)
        ),
        labels=LABELS,
        **{name: found[name] for name in ("minutes", "cpu_minutes", "processes", "torch")},
    )


REPORT = """# Does it learn?

Made by `make learn`: {seeds} seeds, {minutes:.0f} minutes by the clock and {cpu_minutes:.0f} of
processor time in {processes} processes, torch {torch}.

scikit-learn's 8 x 8 digits, enlarged to 24 x 24: 1348 to train on, 449 held out. A ViT of width 64 and
depth 4 (patches of 4 px) is pre-trained for {epochs} epochs on the training images without their
labels. Then it gets {labels} labels of each class, chosen by the seed, or all of them. Right answers on
the held-out digits in percent, mean ± standard deviation over the seeds:

{table}

![the same as bars, a point for each seed](learn.png)

## What it shows
What pre-training adds to the same encoder from random weights:

{gains}

The kernels train as the published arithmetic does: with the same seed their losses on hidden pixels of
held-out digits (mean {loss:.3f}) end at most {gap:.4f} apart. What else differs between the first two
rows comes from rounding, which training amplifies.

## What it does not show
- That an encoder is worth having for this task: the last row is what the same classifiers get from raw
  pixels. Digits this small and well centred are easy; the mean over patches forgets where things are.
- Accuracies on photographs. The encoder has 0.2 million parameters and sees a thousand gray images.
- The best that each row can reach. The settings ({tuning} epochs of fine-tuning, the same for all rows)
  come from a few trials with one seed. They were measured on 450 digits that are among those to train
  on here; no setting was chosen on the held-out digits that the table is about.
- Significance: a few seeds give a rough idea of the spread.
"""
