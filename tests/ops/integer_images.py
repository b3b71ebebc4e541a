"""Images of whole numbers, as decoders and sensors give them."""

import torch
from torch import Tensor

INTEGERS = [torch.uint8, torch.uint16, torch.int16]


def integers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers of the type's whole range, its ends among them."""
    limits = torch.iinfo(dtype)
    numbers = torch.randint(limits.min, limits.max + 1, shape, dtype=torch.int32)
    if numbers.numel() > 2:
        numbers.view(-1)[:2] = torch.tensor([limits.min, limits.max], dtype=torch.int32)
    return numbers.to(dtype)


def as_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    """What the numbers of an image stand for: bytes divided by 255, any other as they are."""
    if image.dtype in INTEGERS:
        return image.to(dtype) / (255 if image.dtype == torch.uint8 else 1)
    return image
