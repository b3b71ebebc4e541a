"""Per-patch target normalisation, against the arithmetic of MAE's `norm_pix_loss`."""

from collections.abc import Iterator
from functools import partial

import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import Case, Contest, Row, against, cases
from benchmarks.rows.shapes import Setting


def rows(setting: Setting) -> Iterator[Row]:
    for case in cases(setting, setting.image_types):
        yield Row("normalize_patches", case.label, "forward", partial(build, case))


def build(case: Case) -> Contest:
    patch, dtype = case.shape.stride, case.dtype
    return against(
        lambda image: sk.normalize_patches(image, patch),
        lambda image: peers.normalize_patches(image.float(), patch).to(dtype),
        lambda: (torch.randn(case.image).to(dtype),),
        moved=2 * dtype.itemsize * case.pixels,
        tolerance=case.tolerance(1e-4, 2e-2),
        kernel="normalize_patches",
    )
