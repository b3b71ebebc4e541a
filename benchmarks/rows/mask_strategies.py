"""The other masks with their index lists, and AvgDist, against NumPy and SciPy a sample at a time."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import Contest, Row
from benchmarks.rows.shapes import RATIO, Setting

# Name of the op: ours, and the generator of one sample. Two generators draw different masks.
STRATEGIES: dict[str, tuple[Callable, Callable]] = {
    "block_mask": (partial(sk.block_mask, ratio=RATIO), partial(peers.block_mask, ratio=RATIO)),
    "box_mask": (partial(sk.box_mask, ratio=RATIO), partial(peers.box_mask, ratio=RATIO)),
    "uniform_mask": (sk.uniform_mask, peers.uniform_mask),
}


def rows(setting: Setting) -> Iterator[Row]:
    for batch in setting.batches if setting.on_gpu or setting.tiny else (256,):
        for grid in (6,) if setting.tiny else (14, 48):
            name = f"{batch} masks of {grid}x{grid}"
            for op in STRATEGIES:
                yield Row(op, name, "mask and index lists", partial(build, op, batch, grid))
            yield Row(
                "avg_dist", name, "mean distance", partial(distances, batch, grid), ("scipy",)
            )


def build(op: str, batch: int, grid: int) -> Contest:
    ours, theirs = STRATEGIES[op]
    contenders = {
        "ours": lambda ids: ours(ids, (grid, grid), seed=1),
        "NumPy generator": lambda ids: torch.stack([theirs(grid) for _ in ids]).to(ids.device),
    }
    return Contest(contenders, lambda: (torch.arange(batch),), kernel=op, effort=4.0)


def distances(batch: int, grid: int) -> Contest:
    unit = 192 // grid
    contenders = {
        "ours": lambda mask: torch.tensor(sk.avg_dist(mask, unit)),
        "SciPy": lambda mask: torch.tensor(peers.avg_dist(mask, unit)),
    }
    mask = sk.random_mask(batch, (grid, grid), RATIO, seed=1).mask
    return Contest(contenders, lambda: (mask,), tolerance=1e-5, kernel="avg_dist")
