"""The parts of an MAE step, against transformers' own arithmetic: patches of 16 px, three quarters hidden."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import BOTH, Case, Contest, Row, against, cases
from benchmarks.rows.shapes import Setting

RATIO = 0.75
DECODER = 512  # the published decoder's width


def rows(setting: Setting) -> Iterator[Row]:
    for case in cases(setting):
        if case.shape.tokens * case.shape.stride != case.shape.size:
            continue  # a hierarchical encoder has no patches that could be left out
        for op, build in PARTS.items():
            yield Row(op, case.label, BOTH, partial(build, case))


def draw(case: Case) -> tuple[sk.PatchMask, Tensor, Tensor]:
    """A mask on the grid of patches, and as transformers has it: the places of the kept patches, and
    the index that restores the order."""
    side = case.shape.tokens
    device = torch.get_default_device()
    mask = sk.random_mask(case.batch, (side, side), RATIO, device=device)
    order = torch.cat((mask.visible, mask.masked), 1).long()
    return mask, order[:, : mask.visible.shape[1]], order.argsort(1)


def embed(case: Case) -> Contest:
    shape, patch = case.shape, case.shape.stride

    def inputs():
        mask, kept, _ = draw(case)
        weight = case.leaf(shape.width, shape.channels, patch, patch, scale=1 / patch)
        pos = torch.randn(1, shape.tokens**2, shape.width).to(case.dtype)
        return (
            torch.randn(case.image).to(case.dtype),
            weight,
            case.leaf(shape.width),
            pos,
            mask,
            kept,
        )

    def published(image, weight, bias, pos, _, kept):
        x = F.conv2d(image, weight, bias, stride=patch).flatten(2).transpose(1, 2) + pos
        return x.gather(1, kept[..., None].expand(-1, -1, shape.width))

    return against(
        lambda image, weight, bias, pos, mask, _: sk.visible_patch_embed(
            image, weight, bias, mask, pos_embed=pos
        ),
        published,
        inputs,
        gradients=(1, 2),
        tolerance=case.tolerance(1e-4, 3e-2),
        kernel="masked_patch_embed",
    )


def restore(case: Case) -> Contest:
    tokens = case.shape.tokens**2

    def inputs():
        mask, kept, order = draw(case)
        x = case.leaf(case.batch, 1 + kept.shape[1], DECODER)
        pos = torch.randn(1, 1 + tokens, DECODER).to(case.dtype)
        return x, case.leaf(1, 1, DECODER), pos, mask, order

    def published(x, token, pos, _, order):
        patches = peers.place_tokens(x[:, 1:], token, order)
        return torch.cat((x[:, :1], patches), 1) + pos

    return against(
        lambda x, token, pos, mask, _: sk.restore_tokens(
            x, mask, token, pos_embed=pos, prefix_tokens=1
        ),
        published,
        inputs,
        gradients=(0, 1),
        # Forward: visible rows in, all rows out. Backward: all rows in, visible rows out.
        moved=int(case.batch * tokens * DECODER * case.dtype.itemsize * (2 + 2 * (1 - RATIO))),
        tolerance=case.tolerance(1e-4, 2e-2),
        kernel="place_tokens",
    )


def loss(case: Case) -> Contest:
    shape, patch = case.shape, case.shape.stride
    numbers = shape.channels * patch * patch

    def inputs():
        mask, *_ = draw(case)
        return (
            case.leaf(case.batch, shape.tokens**2, numbers),
            torch.randn(case.image),
            mask,
            mask.mask.flatten(1).float(),
        )

    def published(pred, image, _, hidden):
        target = image.unfold(2, patch, patch).unfold(3, patch, patch)
        target = target.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1.0e-6) ** 0.5
        each = ((pred - target) ** 2).mean(-1)
        return (each * hidden).sum() / hidden.sum()

    options = {"order": "yxc", "target_norm": sk.PatchNorm(1e-6), "eps": 0.0}
    return against(
        lambda pred, image, mask, _: sk.masked_mse(pred, image, mask, **options),
        published,
        inputs,
        gradients=(0,),
        moved=int(case.pixels * (RATIO * (case.dtype.itemsize + 4) + case.dtype.itemsize)),
        tolerance=case.tolerance(1e-5, 1e-2),
        kernel="masked_loss",
    )


PARTS = {"visible_patch_embed": embed, "restore_tokens": restore, "mae_loss": loss}
