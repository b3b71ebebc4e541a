"""Fused kernels for masked image modelling: masks, mask tokens, targets and masked losses."""

import torch

from simmim_kernels import nn as nn
from simmim_kernels.backends import backend
from simmim_kernels.integrations.last_block import MaskedLastBlock
from simmim_kernels.integrations.transformers import apply_kernels
from simmim_kernels.masks import PatchMask
from simmim_kernels.memory import keep_freed_memory
from simmim_kernels.ops.avg_dist import avg_dist
from simmim_kernels.ops.block_mask import block_mask, inverse_block_mask
from simmim_kernels.ops.box_mask import box_mask
from simmim_kernels.ops.crop_resize import crop_resize
from simmim_kernels.ops.mask_image import mask_image
from simmim_kernels.ops.mask_tokens import mask_tokens
from simmim_kernels.ops.masked_linear import (
    masked_linear_huber,
    masked_linear_l1,
    masked_linear_mse,
    masked_linear_smooth_l1,
)
from simmim_kernels.ops.masked_loss import masked_huber, masked_l1, masked_mse, masked_smooth_l1
from simmim_kernels.ops.masked_patch_embed import masked_patch_embed, visible_patch_embed
from simmim_kernels.ops.normalize_patches import normalize_patches
from simmim_kernels.ops.normalize_targets import normalize_targets
from simmim_kernels.ops.place_tokens import restore_tokens
from simmim_kernels.ops.random_crops import random_crops
from simmim_kernels.ops.random_mask import random_mask
from simmim_kernels.ops.uniform_mask import uniform_mask
from simmim_kernels.target_norm import PatchNorm, WindowNorm

__version__ = "0.1.0"

# Plain data, which `torch.load` takes from a checkpoint without `weights_only=False`.
torch.serialization.add_safe_globals([PatchMask, PatchNorm, WindowNorm])
# An exported program that takes a PatchMask can be saved.
torch.utils._pytree._register_namedtuple(PatchMask, serialized_type_name="simmim_kernels.PatchMask")

__all__ = [
    "MaskedLastBlock", "PatchMask", "PatchNorm", "WindowNorm", "apply_kernels", "avg_dist",
    "backend", "block_mask", "box_mask", "crop_resize", "inverse_block_mask", "keep_freed_memory",
    "mask_image", "mask_tokens", "masked_huber", "masked_l1", "masked_linear_huber",
    "masked_linear_l1", "masked_linear_mse", "masked_linear_smooth_l1", "masked_mse",
    "masked_patch_embed", "masked_smooth_l1", "normalize_patches", "normalize_targets",
    "random_crops", "random_mask", "restore_tokens", "uniform_mask", "visible_patch_embed",
]  # fmt: skip
