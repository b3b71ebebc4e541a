"""What the hidden part is predicted to be, other than its pixels: ``--target hog`` and ``lowpass``.

A target is a callable: of images ``(B, C, H, W)`` of any type it makes an image ``(B, C', H/k, W/k)``
or tokens ``(B, L, N)``, one for each token of the prediction. It may say how its numbers are meant:

- ``outputs(channels, stride)``: how many of them a token of ``stride`` pixels a side predicts; without
  it as many as the token has pixels, times channels;
- ``pixels``: whether they are pixel values of the images' own channels, which are normalised and drawn
  like those; without it they are not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from simmim.errors import UserError
from simmim.models.published import normalized

Target = Callable[[Tensor], Tensor]


class OrientedGradients:
    """Histograms of oriented gradients, the target of MaskFeat (Wei et al., CVPR 2022).

    For each channel: Sobel differences, the image reflected at its border; their direction, of which
    opposite ones count as one, falls into one of 9 bins and adds its length to its cell's histogram;
    each histogram is divided by its Euclidean norm, that of a flat cell is zeros. A token of 16 x 16
    pixels in three channels has 108 numbers. Lengths and offsets of the pixel values cancel out.

    Returns ``float32 (B, C * 9, H / 8, W / 8)``, number ``c * 9 + bin``.
    """

    bins, cell = 9, 8

    def outputs(self, channels: int, stride: int) -> int:
        if stride % self.cell:
            raise UserError(
                f"--target hog has histograms of {self.cell} x {self.cell} pixels, and this encoder's "
                f"tokens have {stride} x {stride}: choose one with a multiple of {self.cell}"
            )
        return channels * self.bins * (stride // self.cell) ** 2

    def __call__(self, images: Tensor) -> Tensor:
        # As they are stored: differences of bytes are exact, and so is the bin that they fall into.
        x = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
        across = x[..., :-2] - x[..., 2:]
        down = x[..., :-2, :] - x[..., 2:, :]
        across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
        down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
        turns = torch.atan2(across, down) / torch.pi
        place = (turns * self.bins).floor().remainder(self.bins)
        length = torch.hypot(across, down)
        # One bin after the other: no tensor of nine times the image, and no atomic addition.
        histograms = torch.stack(
            [F.avg_pool2d(length * (place == k), self.cell) for k in range(self.bins)], 2
        )
        return F.normalize(histograms, dim=2).flatten(1, 2)


class LowPass:
    """Images without their high frequencies, the target of PixMIM (Liu et al., 2023).

    Of each channel's Fourier transform what lies within ``cutoff`` cycles of 224 pixels remains.

    Args:
        cutoff: the radius of what remains; 40 as published.
        as_published: do what the published code does: its circle's centre lies half a frequency beside
            the middle where a side is even, and of the complex image that this leaves it takes the
            absolute value.

    Returns ``float32 (B, C, H, W)``: pixel values, of uint8 divided by 255.
    """

    pixels = True

    def __init__(self, cutoff: float = 40.0, *, as_published: bool = False) -> None:
        self.cutoff, self.as_published = cutoff, as_published

    def __call__(self, images: Tensor) -> Tensor:
        x = normalized(images, None, None)
        y, x_ = (self._frequencies(side, x.device) for side in x.shape[2:])
        kept = y.square()[:, None] + x_.square() <= self.cutoff**2
        found = torch.fft.ifft2(torch.fft.fft2(x) * kept)
        return found.abs() if self.as_published else found.real

    def _frequencies(self, side: int, device: torch.device) -> Tensor:
        """Cycles of 224 pixels, one a row of the transform."""
        cycles = torch.fft.fftfreq(side, 1 / side, device=device)
        if self.as_published and side % 2 == 0:
            cycles = cycles + 0.5
        return cycles * (224 / side)


TARGETS: dict[str, Target | None] = {
    "pixels": None,
    "hog": OrientedGradients(),
    "lowpass": LowPass(),
}


def outputs_of(target: Target | None, channels: int, stride: int) -> int:
    """How many numbers a token of ``stride`` pixels a side predicts."""
    count = getattr(target, "outputs", None)
    return channels * stride**2 if count is None else count(channels, stride)


def as_image(target: Tensor, grid: tuple[int, int]) -> Tensor:
    """Target tokens ``(B, L, N)`` as the image ``(B, N, h, w)`` of their ``grid``; an image as it is."""
    return target if target.dim() == 4 else target.transpose(1, 2).unflatten(2, grid)
