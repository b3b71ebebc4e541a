"""Random masks with their index lists, against the published NumPy generator."""

from collections.abc import Iterator
from functools import partial

import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import Contest, Row
from benchmarks.rows.shapes import RATIO, Setting


def rows(setting: Setting) -> Iterator[Row]:
    for batch in setting.batches if setting.on_gpu else (256,):
        for grid in (6,) if setting.tiny else (6, 7, 14, 48):
            name = f"{batch} masks of {grid}x{grid}"
            yield Row("random_mask", name, "mask and index lists", partial(build, batch, grid))


def build(batch: int, grid: int) -> Contest:
    ids = torch.arange(batch)
    contenders = {
        "ours": lambda ids: sk.random_mask(ids, (grid, grid), RATIO, seed=1),
        "NumPy generator": lambda ids: peers.random_mask(batch, grid, RATIO).to(ids.device),
    }
    # Two generators draw different masks: their counts are what must agree.
    ours, theirs = contenders["ours"](ids).mask.sum(), contenders["NumPy generator"](ids).sum()
    if int(ours) != int(theirs):
        raise ValueError(f"{int(ours)} masked units, {int(theirs)} of the published generator")
    return Contest(contenders, lambda: (ids,), kernel="random_mask", effort=4.0)
