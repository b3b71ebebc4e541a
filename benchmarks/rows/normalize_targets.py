"""Sliding-window target normalisation at window 47, against the published form and its rewrites."""

from collections.abc import Iterator
from functools import partial

import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import BOTH, Case, Contest, Row, cases, compiled, forward_backward
from benchmarks.rows.shapes import Setting

WINDOW = 47
REWRITES = {
    "banded products": peers.normalize_targets_banded,
    "cumulative sums": peers.normalize_targets_cumulative,
    "separable pools": peers.normalize_targets_separable,
}


def rows(setting: Setting) -> Iterator[Row]:
    op, images = "normalize_targets", list(cases(setting, setting.image_types))
    if setting.on_gpu:  # the published form takes no seconds there
        for case in images:
            both = partial(build, case, published=True, rewrites=("banded products",))
            yield Row(op, case.label, "forward", both)
    else:
        for shape in setting.shapes:
            case = Case(setting, 2, torch.float32, shape)
            alone = partial(build, case, published=True, effort=0.2)
            yield Row(op, case.label, "forward", alone)
        for case in images:
            rewrites = partial(build, case, rewrites=tuple(REWRITES), effort=0.36)
            yield Row(op, case.label, "forward", rewrites)
    for case in images:
        yield Row("window_loss", case.label, BOTH, partial(build_loss, case))
    for shape in setting.shapes:
        case = Case(setting, setting.batches[0], torch.float32, shape)
        yield Row("large_numbers", case.label, "forward", partial(build_large, case))


def ours(image: torch.Tensor) -> torch.Tensor:
    return sk.normalize_targets(image, WINDOW)


def build(
    case: Case, published: bool = False, rewrites: tuple[str, ...] = (), effort: float = 1.0
) -> Contest:
    dtype, contenders = case.dtype, {"ours": ours}
    if published:
        pools = lambda image: peers.normalize_targets(image.float(), WINDOW).to(dtype)  # noqa: E731
        contenders["published"] = pools
    for name in rewrites:
        rewrite = REWRITES[name](WINDOW, case.shape.size, case.shape.size)
        run = lambda image, rewrite=rewrite: rewrite(image.float()).to(dtype)  # noqa: E731
        contenders[f"{name}, compiled"] = compiled(run)
    return Contest(
        contenders,
        lambda: (torch.randn(case.image).to(dtype),),
        moved=2 * dtype.itemsize * case.pixels,
        tolerance=case.tolerance(1e-3, 2e-2),
        kernel="normalize_targets",
        effort=effort,
    )


def build_loss(case: Case) -> Contest:
    """The loss with window targets beside normalize_targets alone: at most 10 % slower."""

    def fused(pred, image, mask):
        return sk.masked_l1(pred, image, mask, target_norm=sk.WindowNorm(WINDOW))

    def apart(pred, image, mask):
        return sk.masked_l1(pred, ours(image), mask)

    contenders = {
        "ours": forward_backward(fused, (0,)),
        "normalize_targets alone": lambda pred, image, mask: ours(image),
        "normalize_targets, then the loss": forward_backward(apart, (0,)),
    }
    # Target and masked predictions in; the whole gradient out.
    moved = case.pixels * (4 + (1 + case.shape.masked) * case.dtype.itemsize)
    inputs = lambda: (case.leaf(*case.image), torch.randn(case.image), case.mask())  # noqa: E731
    return Contest(contenders, inputs, moved=int(moved), kernel="masked_loss")


def build_large(case: Case) -> Contest:
    """Fractions beyond what plain running sums can hold, whole numbers of that size, small ones."""

    def inputs():
        counts = torch.randint(0, 65536, case.image).float()
        return 1e4 * torch.randn(case.image), counts, torch.randn(case.image)

    contenders = {
        "ours": lambda fractions, counts, small: ours(fractions),
        "whole numbers": lambda fractions, counts, small: ours(counts),
        "small numbers": lambda fractions, counts, small: ours(small),
    }
    return Contest(contenders, inputs, kernel="normalize_targets")
