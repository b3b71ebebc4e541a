"""Head and loss on masked tokens only, against the dense head followed by the fused loss."""

import torch
import torch.nn.functional as F

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import BOTH, Case, Contest, against, rows_of


@rows_of("masked_linear", BOTH)
def rows(case: Case) -> Contest:
    shape, side = case.shape, case.shape.predictions
    width = shape.width * (shape.tokens // side)  # the last stage of Swin is wider
    out = shape.channels * shape.stride**2

    def inputs():
        tokens, mask = case.leaf(case.batch, side * side, width), case.mask()
        weight, bias = case.leaf(out, width, scale=width**-0.5), case.leaf(out)
        return tokens, weight, bias, torch.randn(case.image), mask, mask.mask.long()

    def ours(tokens, weight, bias, target, mask, _):
        return sk.masked_linear_l1(tokens, weight, bias, target, mask)

    def dense(tokens, weight, bias, target, mask, _):
        return sk.masked_l1(F.linear(tokens, weight, bias), target, mask)

    def published(tokens, weight, bias, target, _, mask):
        pred = peers.tokens_to_image(F.linear(tokens, weight, bias), shape.stride)
        return peers.masked_loss(pred, target, mask, shape.unit, "l1")

    # Not compared: an L1 gradient is a sign, and where prediction and target all but meet, rounding
    # decides it.
    own = {"dense head + fused loss": dense}
    return against(ours, published, inputs, gradients=(0, 1, 2), own=own, kernel="masked_linear")
