"""The pictures beside the stored results."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.report import COMPILED, EAGER, caption, load, peers_of, ratio


def plot_ratios(folder: Path) -> None:
    """One picture per machine: every row's ratio to eager and compiled PyTorch, on a log axis."""
    loaded = load(folder)
    shown = {*EAGER, *COMPILED}
    rows = [(op, row) for op, c in loaded.items() for row in c["rows"] if shown & {*row["timings"]}]
    labels = [f"{op}: {row['shape']}" for op, row in rows]
    figure = Figure(figsize=(9, 1.2 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    kinds = {
        "eager PyTorch, as published": EAGER,
        "torch.compile": COMPILED,
        "copy of the same bytes": ("copy",),
    }
    for (label, peers), marker in zip(kinds.items(), "o^|", strict=True):
        points = [
            (min(r for r in found), y)
            for y, (_, row) in enumerate(rows)
            if (found := [r for p in peers_of(row, peers) if (r := ratio(row, p)) is not None])
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker, label=label, markersize=5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), labels, fontsize=6)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("times faster than the peer (right of the line: ours is faster)")
    axes.legend(loc="upper right", fontsize=7)
    axes.set_title(caption(next(iter(loaded.values()))), fontsize=7)
    figure.savefig(folder / "ratios.png", dpi=130)


def plot_steps(folder: Path) -> None:
    """Where the time of a whole training step goes: one bar a contender, in milliseconds."""
    content = load(folder).get("step")
    if content is None:
        return
    bars = [
        (f"{row['shape'].partition(',')[0]}, {name}{', compiled' * row['what'].startswith('c')}", n)
        for row in content["rows"]
        if "window" not in row["shape"]  # there the published pooling leaves room for nothing else
        for name, n in row["notes"].items()
        if "milliseconds" in n
    ]
    if not bars:
        return
    figure = Figure(figsize=(9, 1.6 + 0.28 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for part in bars[0][1]["milliseconds"]:
        widths = [note["milliseconds"][part] for _, note in bars]
        axes.barh(range(len(bars)), widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a training step, under the profiler")
    axes.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.suptitle(caption(content), fontsize=7)
    figure.savefig(folder / "steps.png", dpi=130)


def plot_memory(folder: Path) -> None:
    """Peak memory of a whole training step, each contender in a process of its own."""
    loaded = load(folder)
    steps = [row for op in ("step", "transformers") for row in loaded.get(op, {"rows": []})["rows"]]
    groups = [
        (row["shape"].replace(", 192 px, batch 16", ""), peaks)
        for row in steps
        if (peaks := {k: n["peak_mib"] for k, n in row["notes"].items() if "peak_mib" in n})
    ]
    if not groups:
        return
    bars = sum(len(peaks) + 1 for _, peaks in groups)
    figure = Figure(figsize=(9, 1.2 + 0.24 * bars), layout="constrained")
    axes = figure.subplots()
    y, ticks = 0, []
    for shape, peaks in groups:
        for name, peak in peaks.items():
            kernels = name.startswith("ours") and "plain" not in name
            axes.barh(y, peak, color="tab:blue" if kernels else "lightgray")
            axes.text(peak, y, f" {peak:.0f}", va="center", fontsize=7)
            ticks.append((y, f"{shape}: {name}"))
            y += 1
        y += 1
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=7)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("growth of a process's peak memory over three training steps, MiB")
    axes.set_title(caption(loaded["step" if "step" in loaded else "transformers"]), fontsize=7)
    figure.savefig(folder / "memory.png", dpi=130)
