"""Codes of the element types: twin of `Element` in csrc/common/types.h."""

import torch

ELEMENT = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.uint8: 4,
}
