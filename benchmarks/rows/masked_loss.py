"""Masked losses: value and gradient of the prediction, for a full-size prediction and for tokens."""

from collections.abc import Iterator
from functools import partial

import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import BOTH, Case, Contest, Row, against, cases
from benchmarks.rows.shapes import Setting

LOSSES = {"l1": sk.masked_l1, "mse": sk.masked_mse, "smooth_l1": sk.masked_smooth_l1}


def rows(setting: Setting) -> Iterator[Row]:
    for kinds in (("l1",), ("mse", "smooth_l1")):
        for layout in setting.layouts:
            for case in cases(setting):
                largest = (case.shape, case.batch) == (setting.shapes[0], setting.batches[-1])
                # The losses share their kernels: on a CPU, where a row takes seconds, one size of
                # the others is enough.
                for kind in kinds if "l1" in kinds or setting.on_gpu or largest else ():
                    name = f"{kind}, {layout}, {case.label}"
                    yield Row("masked_loss", name, BOTH, partial(build, case, kind, layout))
    for case in cases(setting):
        if case.shape == setting.shapes[0] and case.batch == setting.batches[-1]:
            for numbers, norm in ((108, False), (case.shape.width, True)):
                what = f"mse, {numbers} {'normalised ' * norm}numbers a token, {case.label}"
                yield Row("masked_loss", what, BOTH, partial(build_tokens, case, numbers, norm))


def build(case: Case, kind: str, layout: str) -> Contest:
    shape, size, dtype = case.shape, case.image, case.dtype
    if layout == "tokens":
        size = (case.batch, shape.predictions**2, shape.channels * shape.stride**2)

    def inputs():
        mask = case.mask()
        return case.leaf(*size), torch.randn(case.image), mask, mask.mask.long()

    def published(pred, target, _, mask):
        if layout == "tokens":
            pred = peers.tokens_to_image(pred, shape.stride)
        return peers.masked_loss(pred, target, mask, shape.unit, kind)

    return against(
        lambda pred, target, mask, _: LOSSES[kind](pred, target, mask),
        published,
        inputs,
        gradients=(0,),
        # Masked pixels of prediction and target in; the whole gradient out.
        moved=int(case.pixels * (shape.masked * (dtype.itemsize + 4) + dtype.itemsize)),
        tolerance=case.tolerance(1e-5, 1e-2),
        kernel="masked_loss",
    )


def build_tokens(case: Case, numbers: int, norm: bool) -> Contest:
    """Target tokens: 108 numbers are MaskFeat's histograms, more are another network's features."""
    size = case.batch, case.shape.predictions**2, numbers
    target_norm = sk.PatchNorm() if norm else None
    grid = case.shape.predictions, case.shape.predictions

    def inputs():
        mask = case.mask()
        return case.leaf(*size), torch.randn(size), mask, mask.on_grid(grid).mask.float()

    return against(
        lambda pred, target, mask, _: sk.masked_mse(pred, target, mask, target_norm=target_norm),
        lambda pred, target, _, mask: peers.token_loss(pred, target, mask, norm),
        inputs,
        gradients=(0,),
        moved=int(
            case.batch
            * size[1]
            * numbers
            * (case.shape.masked * (case.dtype.itemsize + 4) + case.dtype.itemsize)
        ),
        tolerance=case.tolerance(1e-5, 1e-2),
        kernel="masked_loss",
    )
