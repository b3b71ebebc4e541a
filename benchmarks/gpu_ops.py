"""`python -m benchmarks.gpu_ops OUT`: every op on a GPU beside eager PyTorch, torch.compile and copy.

Of `window_loss`, `masked_linear` and `call_overhead` the column "eager" is what benchmarks/gpu_rows.py
says. Writes `OUT/gpu_ops.json`, the table as `OUT/gpu_ops.txt` and, where matplotlib is installed,
`OUT/gpu_ops.png`, and prints the table. `--dry-run` runs the same code on the CPU at tiny sizes to
show that it works; its times mean nothing and are not written.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_rows import rows
from benchmarks.gpu_timing import time_contenders
from benchmarks.shapes import SWIN_B, VIT_B, Shape

TINY = Shape("tiny", 3, 32, 16, 16, 2, 64)
COLUMNS = ("eager", "compiled", "banded", "alone", "triton", "cuda", "copy")


def copy_of(moved: int, device: str) -> tuple[dict[str, Callable], Callable]:
    half = max(moved // 8, 1)
    return {"copy": lambda source: source.clone()}, lambda: (torch.rand(half, device=device),)


def about(device: str) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }
    if device == "cuda":
        import triton

        facts |= {"gpu": torch.cuda.get_device_name(), "triton": triton.__version__}
        facts["cuda"] = torch.version.cuda
    return facts


def table(results: list[dict], left: list[str]) -> str:
    lines = [f"{'op':<18}{'shape':<24}" + "".join(f"{n:>10}" for n in COLUMNS) + "  microseconds"]
    for row in results:
        cells = (row["times"].get(name, {}).get("median") for name in COLUMNS)
        text = "".join(f"{'-':>10}" if c is None else f"{c:>10.1f}" for c in cells)
        lines.append(f"{row['op']:<18}{row['shape']:<24}{text}{memory(row['times'])}")
    failed = [
        f"{r['op']} {r['shape']} {n}"
        for r in results
        for n, t in r["times"].items()
        if "error" in t
    ]
    lines += [f"failed: {', '.join(failed)}"] if failed else []
    lines += [f"not measured, out of time: {', '.join(left)}"] if left else []
    return "\n".join(lines) + "\n"


def memory(times: dict[str, dict]) -> str:
    """The peak memory of a call as a part of eager's."""
    peaks = {name: times.get(name, {}).get("peak_bytes") for name in ("triton", "cuda", "eager")}
    if not peaks["eager"] or not (peaks["cuda"] or peaks["triton"]):
        return ""
    return f"  peak {(peaks['cuda'] or peaks['triton']) / peaks['eager']:.2f} of eager's"


def plot(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in results if "median" in row["times"].get("copy", {})]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(shown)))
    for place, name in enumerate(("eager", "compiled", "triton", "cuda")):
        timed = [(i, r) for i, r in enumerate(shown) if "median" in r["times"].get(name, {})]
        axes.barh(
            [i + 0.2 * place for i, _ in timed],
            [100 * r["times"]["copy"]["median"] / r["times"][name]["median"] for _, r in timed],
            height=0.2,
            label=name,
        )
    axes.set_yticks(range(len(shown)), [f"{r['op']} {r['shape']}" for r in shown], fontsize=7)
    axes.set_xlabel("per cent of the speed of a copy of the bytes that must move")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=150, help="stop beginning rows after this")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    shapes, batches = ((TINY,), (2,)) if arguments.dry_run else ((VIT_B, SWIN_B), (256, 128))
    arguments.out.mkdir(parents=True, exist_ok=True)
    begin, results, left = time.monotonic(), [], []
    for row in rows(device, shapes, batches):
        if time.monotonic() - begin > arguments.seconds:
            left.append(f"{row.op} {row.shape}")
            continue
        torch.compiler.reset()  # rows share code, and a function is compiled only so often
        times = time_contenders(row.contenders, row.make, device, arguments.rounds, row.calls)
        if row.moved:
            times |= time_contenders(*copy_of(row.moved, device), device, arguments.rounds)
        results.append({"op": row.op, "shape": row.shape, "bytes": row.moved, "times": times})
        if not arguments.dry_run:
            write(arguments.out, device, results, left)
    if arguments.dry_run:
        broken = [
            (r["op"], n, t["error"]) for r in results for n, t in r["times"].items() if "error" in t
        ]
        assert not broken, broken
        print(table(results, left))
        print(f"dry run: {len(results)} rows ran; their times mean nothing")
        return
    write(arguments.out, device, results, left)
    try:
        plot(results, arguments.out / "gpu_ops.png")
    except ImportError:
        print("matplotlib is missing: no plot")
    print(table(results, left))


def write(out: Path, device: str, results: list[dict], left: list[str]) -> None:
    record = about(device) | {"rows": results, "not measured": left}
    (out / "gpu_ops.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "gpu_ops.txt").write_text(table(results, left))


if __name__ == "__main__":
    main()
