"""RandAugment and random erasing by timm, as pure functions of (seed, epoch, sample id)."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simmim.config.run import RunConfig
from simmim.data.cropping import AUGMENT, Draw, random_numbers
from simmim.errors import UserError, first_line, require
from simmim.models.simmim import channel_statistics

auto_augment = require("timm.data.auto_augment")
RandomErasing = require("timm.data.random_erasing").RandomErasing

# timm draws from generators that all threads share
_LOCK = threading.Lock()


class Augmentation:
    """Distorts crops in colour and shape, then erases a part of some; raises ``UserError`` for a
    policy that timm does not know.

    Args:
        size, seed: as of ``Cropping``.
        policy: timm's words for RandAugment or AutoAugment, for 8-bit gray or RGB; empty for none.
        erase: probability that a rectangle becomes noise.
        mean, std: of the channels in the numbers that the images hold: of what lies outside a
            distorted image, and of the noise.
        bicubic: distort with bicubic interpolation, else bilinear.
    """

    def __init__(
        self,
        size: tuple[int, int],
        seed: int,
        policy: str,
        erase: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        bicubic: bool,
    ) -> None:
        self.seed = seed
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self.distort: Callable[[Image.Image], Image.Image] | None = None
        if policy:
            hints = {
                "translate_const": int(min(size) * 0.45),
                "img_mean": tuple(min(255, round(value)) for value in mean),
                "interpolation": Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR,
            }
            make = (
                auto_augment.rand_augment_transform
                if policy.startswith("rand")
                else auto_augment.auto_augment_transform
            )
            try:
                self.distort = make(policy, hints)
            # of words that it does not know timm says so by assertions and by whatever they lead to
            except Exception as error:
                raise UserError(
                    f"--auto-augment {policy}: timm does not take it: {first_line(error)}"
                ) from None
            policies = getattr(self.distort, "policy", None) or [self.distort.ops]
            for operation in itertools.chain(*policies):
                if operation.aug_fn is auto_augment.posterize:
                    operation.aug_fn = _posterize
        self.erase = RandomErasing(erase, mode="const", device="cpu") if erase else None

    def __call__(self, crop: Tensor, draw: Draw) -> Tensor:
        """A crop ``(C, H, W)`` as it is augmented in ``draw``."""
        rng = random_numbers(AUGMENT, self.seed, draw.epoch, draw.sample)
        # the model draws from PyTorch's generator meanwhile, which is left alone
        with _LOCK:
            states = random.getstate(), np.random.get_state()
            random.seed(int(rng.integers(2**63)))
            np.random.seed(rng.integers(2**32, size=4))
            try:
                if self.distort is not None:
                    crop = self._distort(crop)
                kept = self.erase(torch.ones(crop.shape)) if self.erase is not None else None
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])
        if kept is None or kept.all():
            return crop
        noise = torch.from_numpy(rng.standard_normal(crop.shape, np.float32))
        noise = noise * self.std + self.mean
        if not crop.is_floating_point():
            limits = torch.iinfo(crop.dtype)
            noise = noise.clamp(limits.min, limits.max).round()
        return torch.where(kept.bool(), crop, noise.to(crop.dtype))

    def _distort(self, crop: Tensor) -> Tensor:
        pixels = crop.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        pixels = np.array(self.distort(Image.fromarray(pixels)))
        return torch.from_numpy(pixels).permute(2, 0, 1)[: len(crop)].contiguous()


def _posterize(image: Image.Image, bits: int, **more: object) -> Image.Image:
    """timm's. The published policies keep 0 bits now and then, which Pillow made black and refuses since
    version 13."""
    if not bits:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits, **more)


def augmentation(config: RunConfig) -> Augmentation | None:
    """What ``config`` does to crops, if anything."""
    policy, erase = getattr(config, "auto_augment", ""), getattr(config, "erase", 0.0)
    if not policy and not erase:
        return None
    mean, std = config.mean, config.std
    if not mean:
        mean, std = (
            tuple(255 * value for value in values) for values in channel_statistics(config.channels)
        )
    bicubic = config.interpolation == "bicubic"
    return Augmentation(config.size, config.seed, policy, erase, mean, std, bicubic)
