"""Per-patch target normalisation, against the arithmetic of MAE's `norm_pix_loss`."""

import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import Case, Contest, against, rows_of


@rows_of("normalize_patches", "forward", images=True)
def rows(case: Case) -> Contest:
    patch, dtype = case.shape.stride, case.dtype
    return against(
        lambda image: sk.normalize_patches(image, patch),
        lambda image: peers.normalize_patches(image.float(), patch).to(dtype),
        lambda: (torch.randn(case.image).to(dtype),),
        moved=2 * dtype.itemsize * case.pixels,
        tolerance=case.tolerance(1e-4, 2e-2),
        kernel="normalize_patches",
    )
