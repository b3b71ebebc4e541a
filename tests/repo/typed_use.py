"""What a user writes, for the type checker (`make lint`): every public function says what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import simmim_kernels as sk
from simmim_kernels.integrations.timm import MaskedEncoder
from simmim_kernels.nn import (
    MaskedHuberLoss,
    MaskedL1Loss,
    MaskedMSELoss,
    MaskedSmoothL1Loss,
    MaskToken,
)

if TYPE_CHECKING:
    from typing import assert_type

STATISTICS = (0.5, 0.5, 0.5), [0.2, 0.2, 0.2]


def draw_masks(ids: Tensor) -> list[sk.PatchMask]:
    masks = [
        sk.random_mask(ids, (6, 6), 0.6, seed=0, epoch=3),
        sk.block_mask(4, (6, 6), 0.4, seed=1),
        sk.inverse_block_mask(4, (6, 6), 0.8, seed=1),
        sk.uniform_mask(4, (6, 6), seed=1),
        sk.box_mask(4, (6, 6), 0.2, seed=1),
        sk.PatchMask.from_mask(torch.ones(4, 6, 6, dtype=torch.bool)),
    ]
    assert_type(masks[0].masked, Tensor)
    assert_type(sk.avg_dist(masks[0].mask, 16), float)
    return masks


def make_crops(images: list[Tensor], ids: Tensor) -> Tensor:
    boxes, flips = sk.random_crops(ids, (90, 120), (64, 64), (0.5, 1.0), (0.75, 1.5), seed=1)
    sk.random_crops(ids, boxes[:, 2:], (64, 64), (1, 1), None, flip=0, epoch=2)
    assert_type(sk.crop_resize(torch.stack(images), boxes, (64, 64)), Tensor)
    return sk.crop_resize(images, boxes, (64, 64), flip=flips, interpolation="bicubic")


def run_ops(images: Tensor, x: Tensor, mask: sk.PatchMask, weight: Tensor, token: Tensor) -> Tensor:
    mean, std = STATISTICS
    assert_type(sk.mask_image(images, mask, 0.0, mean=mean, std=std), Tensor)
    assert_type(sk.mask_tokens(x, mask, token, pos_embed=None), Tensor)
    assert_type(sk.masked_patch_embed(images, weight, None, mask, token), Tensor)
    assert_type(sk.visible_patch_embed(images, weight, None, mask, mean=mean, std=std), Tensor)
    assert_type(sk.restore_tokens(x, mask, token), Tensor)
    assert_type(sk.normalize_targets(images, 47), Tensor)
    assert_type(sk.normalize_patches(images, 16), Tensor)
    norms = sk.WindowNorm(47), sk.PatchNorm()
    loss = sk.masked_l1(x, images, mask, target_norm=norms[0], mean=mean, std=std)
    loss = loss + sk.masked_mse(x, images, mask, target_norm=norms[1], reduction="sum")
    loss = loss + sk.masked_smooth_l1(x, images, mask, beta=0.5, order="yxc")
    loss = loss + sk.masked_huber(x, images, mask, delta=0.5)
    for head in (sk.masked_linear_l1, sk.masked_linear_mse):
        loss = loss + head(x, weight, None, images, mask)
    loss = loss + sk.masked_linear_smooth_l1(x, weight, None, images, mask, beta=0.5)
    loss = loss + sk.masked_linear_huber(x, weight, None, images, mask, delta=0.5)
    return assert_type(loss, Tensor)


def run_modules(model: nn.Module) -> list[nn.Module]:
    modules: list[nn.Module] = [MaskToken(64)]
    modules += (
        MaskedL1Loss(),
        MaskedMSELoss(),
        MaskedSmoothL1Loss(beta=0.5),
        MaskedHuberLoss(delta=1),
    )
    report = sk.apply_kernels(model, attention=None)
    report.undo()
    assert_type(MaskedEncoder(model).undo(), nn.Module)
    with sk.backend("reference"):
        sk.keep_freed_memory()
    sk.MaskedLastBlock(model)
    return modules
