"""`python -m benchmarks.report`: tables and plots from the stored results, into the documentation.

Reads `benchmarks/results/<machine>/*.json`, writes pictures and a page of all rows beside them, and
fills the tables of README.md and docs/benchmarks.md, between `<!-- KIND:MACHINE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import counted

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COUNTED = RESULTS / "gpu-model"  # no machine: what benchmarks/gpu_model.py counts
# Targets of one row each: how many times faster than a peer, or which part of the copy's speed.
TARGETS = {
    "masked_loss": {"eager": 8.0, "compiled": 2.5, "copy": 0.65},
    "mask_tokens": {"eager": 2.8, "compiled": 1.8, "copy": 0.70},
    "mask_image": {"eager": 5.0, "compiled": 1.3},
    "random_mask": {"NumPy generator": 20.0},
    "call_overhead": {"F.l1_loss": 1.25},
    "normalize_targets": {
        "published": 500.0,
        "banded products, compiled": 4.0,
        "cumulative sums, compiled": 4.0,
        "separable pools, compiled": 4.0,
    },
    "window_loss": {"normalize_targets alone": 0.91},
    "masked_linear": {"dense head + fused loss": 1.3},
}
#: ops of the table on the README's first screen
HEADLINE = (
    "masked_loss", "mae_loss", "mask_tokens", "mask_image", "normalize_targets", "step",
    "transformers",
)  # fmt: skip
EAGER = ("eager", "published", "NumPy generator", "F.l1_loss", "plain loop")
COMPILED = (
    "compiled", "plain loop, compiled", "where, compiled", "banded products, compiled",
    "cumulative sums, compiled", "separable pools, compiled",
)  # fmt: skip


# Names of our own timings: of the default backend, or of a GPU's backends, the default one first.
OURS = ("ours", "cuda", "triton")


def load(folder: Path) -> dict[str, dict]:
    """Op -> the content of its results file, in the order of `TARGETS`, then by name."""
    order = list(TARGETS)
    files = sorted(
        folder.glob("*.json"),
        key=lambda f: (order.index(f.stem) if f.stem in order else len(order), f.stem),
    )
    contents = {file.stem: json.loads(file.read_text()) for file in files}
    return {op: content for op, content in contents.items() if "rows" in content}


def ours_of(row: dict) -> str | None:
    """Which timing is ours, that is what a user gets; None where it failed."""
    return next((name for name in OURS if name in row["timings"]), None)


def ratio(row: dict, peer: str) -> float | None:
    """How many times faster ours is; of `copy`, the part of its speed that ours reaches."""
    ours = ours_of(row)
    if peer not in row["timings"] or ours is None:
        return None
    return row["timings"][peer]["median"] / row["timings"][ours]["median"]


def peers_of(row: dict, kind: tuple[str, ...]) -> tuple[str, ...]:
    """The peers of `EAGER` or `COMPILED` in a row: one that compiles all contenders has no eager one."""
    if not row["what"].startswith("compiled"):
        return kind
    return () if kind == EAGER else (*kind, *EAGER) if kind == COMPILED else kind


def spread(row: dict) -> float:
    """Half the distance of the quartiles of our own timings, over the median."""
    ours = row["timings"][ours_of(row)]
    return (ours["high"] - ours["low"]) / 2 / ours["median"]


def _cell(value: float | None, target: float | None, peer: str) -> str:
    if value is None:
        return ""
    text = f"{value:.0%}" if peer == "copy" else f"{value:.3g}x"
    return f"{text} (missed)" if target is not None and value < target else text


def table(op: str, content: dict) -> str:
    """One op's rows as a Markdown table; a row that misses its target says so."""
    rows, targets = [row for row in content["rows"] if ours_of(row)], TARGETS.get(op, {})
    peers = list(dict.fromkeys(p for row in rows for p in row["timings"] if p != ours_of(row)))
    peers = [p for p in peers if p != "copy"] + (["copy"] if "copy" in peers else [])

    def head(peer: str) -> str:
        name = "of copy speed" if peer == "copy" else f"against {peer}"
        if peer not in targets:
            return name
        goal = targets[peer]
        return f"{name} (target {f'{goal:.0%}' if peer == 'copy' else f'{goal:g}x'})"

    lines = [
        f"| `{op}` | timed | {' | '.join(map(head, peers))} | spread |",
        "| --- | --- |" + " ---: |" * (len(peers) + 1),
    ]
    for row in rows:
        goals = targets | row.get("targets", {})
        cells = [_cell(ratio(row, peer), goals.get(peer), peer) for peer in peers]
        what = [row["shape"], row["what"], *cells, f"± {spread(row):.0%}"]
        lines.append(f"| {' | '.join(what)} |")
    failed = [
        f"{row['shape']}: {name}: {note['error']}"
        for row in content["rows"]
        for name, note in row["notes"].items()
        if "error" in note
    ]
    lines += ["", f"Failed: {'; '.join(failed)}"] if failed else []
    missing = content.get("not measured")
    lines += ["", f"Not measured, out of time: {', '.join(missing)}"] if missing else []
    return "\n".join(lines)


def gpu_notes(content: dict) -> str:
    """Absolute times of a GPU's rows, what Python took to launch them, and peak memory."""
    lines = ["| row | contender | microseconds | launch, microseconds | peak memory, MiB |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for row in content["rows"]:
        for name, timing in row["timings"].items():
            note = row["notes"].get(name, {})
            cells = [f"{note[key]:.1f}" if key in note else "" for key in ("launch_us", "peak_mib")]
            lines.append(
                f"| {row['shape']} | {name} | {timing['median']:.1f} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def caption(*contents: dict) -> str:
    """The machine, versions and commit of results files from one machine, in one line."""
    environments = [content["environment"] for content in contents]
    e, commits = environments[0], {each["commit"] for each in environments}
    dates = sorted({each["date"] for each in environments})
    where = f"{e['commit']}, {e['date']}"
    if len(commits) > 1:
        days = " to ".join(sorted({dates[0], dates[-1]}))
        where = f"{len(commits)} commits, named beside their rows, {days}"
    machine = f"{e['processor']}, {e['threads']} threads, {e['instruction_set']}"
    if "gpu" in e:
        machine = f"{e['gpu']}, CUDA {e['cuda']}, Triton {e['triton']}"
    return f"{machine}; torch {e['torch']}, simmim-kernels {e['simmim_kernels']} at {where}"


def tables(folder: Path) -> Iterator[str]:
    """All tables of one machine with their captions."""
    for op, content in load(folder).items():
        if content["rows"] and "timings" in content["rows"][0]:
            yield f"{table(op, content)}\n\n{caption(content)}"
        if "gpu" in content["environment"]:
            yield gpu_notes(content)
        if op == "step":
            yield f"{step_notes(content)}\n\n![where the time goes](steps.png)"
        if op == "pretrain":
            yield step_notes(content)


def step_notes(content: dict) -> str:
    """Images a second, memory and attention path of every contender, as a Markdown table."""
    lines = ["| step | contender | images/s | peak memory, MiB | attention |"]
    lines.append("| --- | --- | ---: | ---: | --- |")
    for row in content["rows"]:
        for name, note in row["notes"].items():
            if "images_per_second" not in note:
                continue
            peak = f"{note['peak_mib']:.0f}" if "peak_mib" in note else ""
            cells = (f"{row['shape']}, {row['what']}", name, f"{note['images_per_second']:.1f}")
            lines.append(f"| {' | '.join(cells)} | {peak} | {note['attention']} |")
    return "\n".join(lines)


def summary(folder: Path) -> str:
    """One line per op: the smallest and largest ratio over its rows."""
    lines = ["| op | against eager PyTorch | against `torch.compile` | of copy speed |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for op, content in load(folder).items():
        rows = [row for row in content["rows"] if "timings" in row]

        def span(*peers: str, rows: list[dict] = rows, form: str = "{:.3g}x") -> str:
            values = [
                v for row in rows for p in peers_of(row, peers) if (v := ratio(row, p)) is not None
            ]
            if not values:
                return ""
            low, high = (
                f"{value:,.0f}x" if value >= 100 else form.format(value)
                for value in (min(values), max(values))
            )
            return low if low == high else f"{low} to {high}"

        eager = span(*EAGER)
        compiled = span(*COMPILED)
        if eager or compiled:
            lines.append(f"| `{op}` | {eager} | {compiled} | {span('copy', form='{:.0%}')} |")
    return "\n".join(lines) + f"\n\n{caption(*load(folder).values())}"


def whole_run(folder: Path) -> str:
    """The row of `bench_pretrain` with the images a second of every contender."""
    content = load(folder).get("pretrain")
    if content is None:
        return "Not measured yet."
    return f"{step_notes(content)}\n\n{table('pretrain', content)}\n\n{caption(content)}"


def headline(folder: Path) -> str:
    """The rows of `summary` that the README's first screen shows."""
    head, rule, *rows, _, where = summary(folder).splitlines()
    shown = [row for row in rows if any(row.startswith(f"| `{op}` ") for op in HEADLINE)]
    return "\n".join((head, rule, *shown, "", where))


def fill(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of `name`, such as `table:amd-epyc-avx512-2-threads`."""
    pattern = re.compile(rf"(<!-- {name} -->).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}\n{content}\n{m[2]}", text)


#: the tables of a machine: the page, its marker, and what makes it
OPS_TABLE = ("docs/benchmarks.md", "table", summary)
TABLES = (("README.md", "headline", headline), OPS_TABLE, ("docs/benchmarks.md", "run", whole_run))


def tables_of(folder: Path) -> tuple[tuple[str, str, Callable[[Path], str]], ...]:
    """The tables that these results have in the documentation: where no whole run was measured, that of
    the ops alone."""
    if folder == COUNTED:
        return (("docs/benchmarks.md", "counted", counted.summary),)
    return TABLES if (folder / "pretrain.json").exists() else (OPS_TABLE,)


def write_page(folder: Path) -> None:
    """Pictures and a page with all tables beside the results of one machine."""
    if folder == COUNTED:
        (folder / "README.md").write_text(counted.page(folder))
        return
    from benchmarks import plots  # which needs matplotlib

    plots.plot_ratios(folder)
    plots.plot_steps(folder)
    plots.plot_memory(folder)
    (folder / "README.md").write_text(
        "# Measured ratios\n\nMade by `python -m benchmarks.report` from the JSON files beside "
        "this page. Ratios are medians of interleaved rounds of one run; `spread` is half the "
        "distance of our own quartiles over the median. A copy moves the bytes that the op must "
        "move, its allocation included.\n\n![ratios](ratios.png)\n\n"
        + "\n\n".join(tables(folder))
        + "\n"
    )


def write(folder: Path) -> None:
    """The page beside the results in `folder`, and their tables in the documentation."""
    write_page(folder)
    print((folder / "README.md").relative_to(ROOT))
    for page, kind, make in tables_of(folder):
        text = (ROOT / page).read_text()
        (ROOT / page).write_text(fill(text, f"{kind}:{folder.name}", make(folder)))


def main() -> int:
    for folder in sorted(RESULTS.iterdir()):
        if folder.is_dir() and any(folder.glob("*.json")):
            write(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
