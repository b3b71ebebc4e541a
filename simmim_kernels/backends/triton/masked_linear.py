"""Flat positions of the masked tokens, in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels.backends.triton._places import listed_tokens


def masked_positions(mask: Tensor, h: int, w: int, count: int) -> Tensor:
    return listed_tokens(mask, h, w, count, True, torch.int32)
