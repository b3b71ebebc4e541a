"""Tables of what `python -m benchmarks.gpu_model` has counted."""

from __future__ import annotations

import json
from pathlib import Path

BACKENDS = {"cuda": "CUDA", "triton": "Triton", "inductor": "Inductor"}

COLUMNS = (
    "launches",
    "instructions a number",
    "sectors / least",
    "bytes / needed",
    "16 bytes a lane",
)


def load(folder: Path) -> list[dict]:
    """The rows of every op, and what they were counted with."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def caption(folder: Path) -> str:
    e = load(folder)[0]["environment"]
    return (
        f"Counted, not measured: PTX for sm_90 of nvcc {e['nvcc']} and Triton {e['triton']}; "
        f"torch {e['torch']}, simmim-kernels {e['simmim_kernels']} at {e['commit']}, {e['date']}"
    )


def _total(launches: list[dict], what: str) -> int:
    return sum(launch[what] for launch in launches)


def _ratio(above: float, below: float) -> str:
    return f"{above / below:.2f}" if below else ""


def _cells(row: dict, backend: str) -> list[str]:
    launches = row["counted"].get(backend)
    if launches is None:
        return [""] * len(COLUMNS)
    sectors = _total(launches, "sectors")
    moved = _total(launches, "bytes")
    return [
        str(len(launches)),
        f"{_total(launches, 'instructions') / row['numbers']:.1f}",
        _ratio(sectors, _total(launches, "least_sectors")),
        _ratio(32 * sectors, row["moved"]),
        f"{_total(launches, 'wide_bytes') / moved:.0%}" if moved else "",
    ]


def summary(folder: Path) -> str:
    """A line for each row, the two backends side by side, and what Inductor makes of plain PyTorch."""
    heads = [f"{shown}: {name}" for shown in BACKENDS.values() for name in COLUMNS]
    lines = [f"| op | row | {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * len(heads)]
    for content in load(folder):
        for row in content["rows"]:
            cells = [cell for backend in BACKENDS for cell in _cells(row, backend)]
            lines.append(f"| `{row['op']}` | {row['shape']}, {row['what']} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{caption(folder)}"


def page(folder: Path) -> str:
    """Every launch of every row."""
    names = ("requests", "sectors", "least", "distinct", "wavefronts", "least")
    names += ("registers", "spilled bytes", "blocks a multiprocessor")
    fields = ("requests", "sectors", "least_sectors", "distinct_sectors", "wavefronts")
    fields += ("least_wavefronts", "registers", "spilled", "blocks_per_multiprocessor")
    lines = ["# What the GPU kernels cost, counted", "", caption(folder), ""]
    lines += [
        "Made by `python -m benchmarks.gpu_model`; docs/gpu_without_a_gpu.md says how. Sectors are",
        "pieces of 32 bytes of global memory: moved by all requests, the least number for the same",
        "bytes of each request, and distinct ones, read and written each once. Wavefronts are",
        "those of shared memory. Inductor's kernels are those of `torch.compile` for the published",
        "arithmetic, or for the rewrite that is named, each in the first of its configurations.",
    ]
    for content in load(folder):
        for row in content["rows"]:
            lines += ["", f"## {row['op']}: {row['shape']}, {row['what']}", ""]
            if row.get("peer", "compiled") != "compiled":
                lines += [f"Inductor: {row['peer']}.", ""]
            if "refused" in row:
                lines += [f"Inductor refused: {row['refused']}", ""]
            lines.append(f"| backend | kernel | instructions a number | {' | '.join(names)} |")
            lines.append("| --- | --- |" + " ---: |" * (1 + len(names)))
            for backend, launches in row["counted"].items():
                for launch in launches:
                    cells = [f"{launch['instructions'] / row['numbers']:.2f}"]
                    cells += [str(launch[field]) for field in fields]
                    kernel = launch["kernel"].replace("|", "")
                    lines.append(f"| {BACKENDS[backend]} | `{kernel}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
