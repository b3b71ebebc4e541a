"""`python -m benchmarks.gpu_model`: what the GPU kernels cost, counted without a GPU.

The rows of the ops run at ViT-B's shapes, a batch of two, on both GPU backends: nvcc's and Triton's
PTX for sm_90, run on CPU tensors by the machine of tests/gpu/ptx (docs/gpu_without_a_gpu.md).
Stored are launches, lane instructions, sectors, registers and spills, never times. A number costs
the same in a larger batch, except in kernels that run once a call. Beside ours stands what
`torch.compile` makes of the published arithmetic (gpu_model_peer.py). PyTorch's own kernels, such
as matrix products, are not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import simmim_kernels as sk
from benchmarks import gpu_model_peer, report
from benchmarks.environment import commit
from benchmarks.rows import all_rows
from benchmarks.rows.common import OURS, Row
from benchmarks.rows.shapes import VIT_B, Setting
from simmim_kernels import backends

SETTING = Setting(
    "cuda",
    (VIT_B,),
    (2,),
    types=(torch.bfloat16, torch.float32),
    image_types=(torch.bfloat16, torch.float32),
    layouts=("tokens",),
    backends=("cuda", "triton"),
    compile=False,
)
TARGETS = {"cuda": "compute_90", "triton": "sm_90"}
OPS = ("random_mask", "masked_loss", "mask_tokens", "mask_image", "normalize_targets")
OPS += ("window_loss", "normalize_patches", "masked_linear", "masked_patch_embed", "place_tokens")


def counted_rows() -> list[Row]:
    """The rows that this page counts."""
    return [row for row in all_rows(SETTING) if row.op in OPS]


def count_row(row: Row) -> dict[str, Any]:
    """One row as it is stored: by backend and for Inductor the launches, each with its counts and
    resources, or why Inductor has none, and the numbers of the largest tensor, of what goes in or
    comes out."""
    torch.manual_seed(0)
    with mock.patch.object(torch, "compile", gpu_model_peer.compiled):
        contest = row.build()
    inputs, outputs = contest.inputs(), []
    stored = {"op": row.op, "shape": row.shape, "what": row.what, "moved": contest.moved}
    stored["counted"] = {}
    for backend in SETTING.backends:
        launches = _count(
            backend, contest.kernel, lambda: outputs.append(contest.contenders[OURS](*inputs))
        )
        if launches is not None:
            stored["counted"][backend] = launches
    peer = next((name for name in contest.contenders if name.endswith("compiled")), None)
    if peer is not None:
        stored["peer"] = peer
        try:
            stored["counted"]["inductor"] = _launches(
                "triton", lambda: contest.contenders[peer](*inputs)
            )
        except Exception as error:  # whatever Inductor or the machine cannot do is a result
            cause = getattr(error, "inner_exception", error)
            stored["refused"] = f"{type(cause).__name__}: {cause}".partition("\n")[0]
    tensors = [t for t in pytree.tree_leaves((inputs, outputs)) if isinstance(t, Tensor)]
    return stored | {"numbers": max(t.numel() for t in tensors)}


def _count(backend: str, kernel: str | None, call: Callable[[], object]) -> list[dict] | None:
    """The launches of a call; None where the backend has no such op."""
    from tests.gpu.ptx.launches import serving, why_not

    if why_not(backend) is not None:
        return None
    with serving(backend, TARGETS[backend]):
        if kernel is None or backends.why_not(backend, kernel, "cpu") is not None:
            return None
    return _launches(backend, call)


def _launches(backend: str, call: Callable[[], object]) -> list[dict]:
    """What each launch of a call costs."""
    from tests.gpu.ptx import counts

    stored = []
    for launch in counts.launches_of(backend, TARGETS[backend], call, checks_races=False):
        resources = counts.resources_of(launch.kernel, backend)
        blocks = counts.blocks_per_multiprocessor(launch, resources.registers)
        found = asdict(counts.count(launch)) | asdict(resources)
        stored.append(found | {"blocks_per_multiprocessor": blocks})
    return stored


def versions() -> dict[str, str]:
    import triton

    from tests.gpu.ptx.build import nvcc

    shown = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    return {
        "nvcc": shown.partition("release ")[2].partition(",")[0],
        "triton": triton.__version__,
        "torch": torch.__version__,
        "simmim_kernels": sk.__version__,
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[2].strip())
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    asked = parser.parse_args()
    report.COUNTED.mkdir(parents=True, exist_ok=True)
    stored: dict[str, list[dict]] = {op: [] for op in asked.ops}
    for row in counted_rows():
        if row.op in asked.ops:
            print(row, flush=True)
            stored[row.op].append(count_row(row))
    for op, found in stored.items():
        content = {"environment": versions(), "rows": found}
        Path(report.COUNTED, f"{op}.json").write_text(json.dumps(content, indent=1) + "\n")
    report.write(report.COUNTED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
