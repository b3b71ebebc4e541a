"""Patch embedding of visible patches alone, from bytes: forward and gradients of the parameters."""

import torch
from torch.nn import functional as F

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import BOTH, Case, Contest, against, rows_of


@rows_of("masked_patch_embed", BOTH)
def rows(case: Case) -> Contest:
    side, channels, width = case.shape.tokens, case.shape.channels, case.shape.width
    patch = case.shape.size // side
    mean, std = torch.full((channels,), 0.45), torch.full((channels,), 0.23)

    def inputs():
        image = torch.randint(0, 256, case.image, dtype=torch.uint8)
        weight = case.leaf(width, channels, patch, patch, scale=1 / patch)
        mask = case.mask()
        return image, weight, case.leaf(width), case.leaf(1, 1, width), mask, case.on_tokens(mask)

    def ours(image, weight, bias, token, mask, _):
        return sk.masked_patch_embed(image, weight, bias, mask, token, mean=mean, std=std)

    def normalised(image):
        return ((image / 255 - mean[:, None, None]) / std[:, None, None]).to(case.dtype)

    def published(image, weight, bias, token, _, fine):
        x = F.conv2d(normalised(image), weight, bias, stride=patch)
        return peers.mask_tokens(x.flatten(2).transpose(1, 2), fine, token)

    def linear(image, weight, bias, token, _, fine):
        x = normalised(image).reshape(case.batch, channels, side, patch, side, patch)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(case.batch, side * side, -1)
        return peers.mask_tokens_where(F.linear(x, weight.flatten(1), bias), fine, token)

    return against(
        ours,
        published,
        inputs,
        gradients=(1, 2, 3),
        rewrites={"linear": linear},
        tolerance=case.tolerance(1e-4, 2e-2),
        kernel="masked_patch_embed",
    )
