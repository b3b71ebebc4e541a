"""Call overhead: the smallest useful input, against PyTorch's own L1 loss."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import simmim_kernels as sk
from benchmarks.rows.common import BOTH, Contest, Row, draw_mask, forward_backward
from benchmarks.rows.shapes import Setting

CALLS = 200  # calls in one sample, so that the clock's own cost does not show


def rows(setting: Setting) -> Iterator[Row]:
    yield Row("call_overhead", f"1x3x32x32 float32, {CALLS} calls", BOTH, build)


def repeated(step: Callable) -> Callable:
    def run(*arguments):
        for _ in range(CALLS):
            result = step(*arguments)
        return result

    return run


def build() -> Contest:
    def inputs():
        pred = torch.randn(1, 3, 32, 32, requires_grad=True)
        tokens = torch.randn(1, 64, 48, requires_grad=True)
        mask = draw_mask(1, (4, 4))
        return pred, torch.randn(1, 3, 32, 32), mask, tokens, torch.zeros(48)

    steps = {
        "ours": forward_backward(lambda p, t, m, *_: sk.masked_l1(p, t, m), (0,)),
        "F.l1_loss": forward_backward(lambda p, t, *_: F.l1_loss(p, t), (0,)),
        "mask_tokens": forward_backward(lambda p, t, m, x, k: sk.mask_tokens(x, m, k), (3,)),
        "x * 1": forward_backward(lambda p, t, m, x, k: x * 1.0, (3,)),
    }
    contenders = {name: repeated(step) for name, step in steps.items()}
    return Contest(contenders, inputs, kernel="masked_loss", queued=False)
