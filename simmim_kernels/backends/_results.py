"""Type and layout of the results that are made of images."""

import torch


def memory_format(image: torch.Tensor) -> torch.memory_format:
    """That of an op's image-shaped result: channels-last where `image` is, else contiguous."""
    if image.is_contiguous() or not image.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def target_dtype(image: torch.Tensor) -> torch.dtype:
    """The type of what is made of `image`: its own, float32 for integers."""
    return image.dtype if image.dtype.is_floating_point else torch.float32
