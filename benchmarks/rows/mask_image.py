"""Mask image: a uint8 batch normalised and masked in one pass, for encoders that see pixels."""

from collections.abc import Iterator
from functools import partial

import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import Case, Contest, Row, against, cases, type_name
from benchmarks.rows.shapes import Setting


def rows(setting: Setting) -> Iterator[Row]:
    for case in cases(setting, setting.image_types):
        name = f"{case.shape.name} x{case.batch} uint8 to {type_name(case.dtype)}"
        yield Row("mask_image", name, "forward", partial(build, case))


def build(case: Case) -> Contest:
    shape, dtype = case.shape, case.dtype
    mean, std = torch.rand(shape.channels), torch.rand(shape.channels) + 0.1

    def published(image, mask):
        return peers.mask_image(image, mask.mask, shape.unit, mean, std).to(dtype)

    return against(
        lambda image, mask: sk.mask_image(image, mask, mean=mean, std=std, dtype=dtype),
        published,
        lambda: (torch.randint(0, 256, case.image, dtype=torch.uint8), case.mask()),
        moved=int(case.pixels * (1 - shape.masked) + case.pixels * dtype.itemsize),
        tolerance=case.tolerance(1e-5, 1e-2),
        kernel="mask_image",
    )
