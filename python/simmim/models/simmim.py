"""SimMIM: an encoder that sees a partly hidden image, a linear head, a loss on what was hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

import simmim_kernels as sk
from simmim.errors import UserError
from simmim.models import published
from simmim.models.encoders import ConvEncoder, TimmEncoder
from simmim.models.targets import Target, as_image, outputs_of
from simmim_kernels import PatchMask, PatchNorm, WindowNorm, mask_image
from simmim_kernels.channel_statistics import ChannelStatistics

#: each loss alone, and with the head
LOSSES = {
    "l1": (sk.masked_l1, sk.masked_linear_l1),
    "mse": (sk.masked_mse, sk.masked_linear_mse),
    "smooth_l1": (sk.masked_smooth_l1, sk.masked_linear_smooth_l1),
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def channel_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of images divided by 255.

    ImageNet's for RGB; for any other number of channels the average of ImageNet's three.
    """
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = (round(sum(values) / 3, 3) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (mean,) * channels, (std,) * channels


class SimMIM(ChannelStatistics):
    """Masked image modelling as in the SimMIM paper: ``forward`` gives the loss.

    The head is one linear map a token, to ``C * stride^2`` numbers in ``"cyx"`` order: the same
    parameters and the same result as the published 1x1 convolution followed by ``PixelShuffle``,
    but the prediction is never laid out as an image: the loss reads it where it lies.

    Args:
        encoder: from ``simmim.models.encoders``.
        channels: channels ``C`` of the images.
        loss: ``"l1"`` (the paper's), ``"mse"`` or ``"smooth_l1"``.
        mean, std: normalisation of the target, of uint8 of the target divided by 255; ``None``
            leaves it as it is, uint8 in [0, 1].
        target_norm: ``WindowNorm()`` (SwinV2's recipe) or ``PatchNorm()`` (MAE's) normalises the
            target further, every pixel by its neighbourhood; a patch is an output token.
        target: a callable that makes what is predicted of the images, see ``simmim.models.targets``;
            None: their pixels.
        sigmoid: end the head with a sigmoid, for targets in [0, 1].
        plain: run the published arithmetic in plain PyTorch instead of the kernels. By default a
            visible pixel is read once, by the patch embedding, a hidden one once, by the loss, and
            the last block and the head see hidden tokens alone; the loss and its gradients are the
            same to rounding.

    Attributes:
        stride: pixels a side of what one token predicts.
        of_pixels: whether pixel values are predicted, which are normalised and can be drawn.
    """

    #: added to the number of hidden pixels, as published
    eps = 1e-5

    def __init__(
        self,
        encoder: TimmEncoder | ConvEncoder,
        *,
        channels: int = 3,
        loss: str = "l1",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        target_norm: WindowNorm | PatchNorm | None = None,
        target: Target | None = None,
        sigmoid: bool = False,
        plain: bool = False,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise UserError(f"unknown loss {loss!r}: use {', '.join(LOSSES)}")
        self.encoder = encoder
        self.plain = encoder.plain = plain
        self.stride = encoder.stride
        self.target = target
        self.of_pixels = target is None or getattr(target, "pixels", False)
        self.head = nn.Linear(encoder.width, outputs_of(target, channels, self.stride))
        self.sigmoid = sigmoid
        self.target_norm = target_norm
        self.loss = loss
        self._keep_statistics(mean, std, self.head.weight)

    def forward(
        self,
        images: Tensor,
        mask: PatchMask | Tensor,
        reduction: str = "mean",
        with_data: Tensor | None = None,
    ) -> Tensor:
        """Loss on the hidden pixels of images ``(B, C, H, W)``: a scalar, or ``(B,)``.

        Args:
            with_data: ``bool (B, H, W)``: other pixels are neither scored nor counted.
        """
        hidden = None if self.plain else self.encoder.hidden_tokens(images, mask)
        if hidden is not None:
            mask = mask.on_grid(self._grid(images))
            return self.score(self._head(hidden), images, mask, reduction, with_data)
        separate = self.plain or self.sigmoid or with_data is not None
        if separate or not self._covers_tokens(images, mask):
            return self.score(self.predict_tokens(images, mask), images, mask, reduction, with_data)
        return LOSSES[self.loss][1](
            self.encoder(images, mask),
            self.head.weight,
            self.head.bias,
            self.make_target(images),
            mask,
            reduction=reduction,
            **self._target(),
        )

    @torch.no_grad()
    def make_target(self, images: Tensor) -> Tensor:
        """What is predicted of images: themselves, or what ``target`` makes of them."""
        return images if self.target is None else self.target(images)

    def _target(self) -> dict[str, object]:
        return {
            "order": "cyx",
            "target_norm": self.target_norm,
            "mean": self.mean if self.of_pixels else None,
            "std": self.std if self.of_pixels else None,
            "eps": self.eps,
        }

    def _grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of predicted tokens."""
        return images.shape[2] // self.stride, images.shape[3] // self.stride

    def _covers_tokens(self, images: Tensor, mask: PatchMask | Tensor) -> bool:
        """Whether every mask unit is a whole number of output tokens."""
        units = (mask.mask if isinstance(mask, PatchMask) else mask).shape[1:]
        return all(side % n == 0 for side, n in zip(self._grid(images), units, strict=True))

    def score(
        self,
        prediction: Tensor,
        images: Tensor,
        mask: PatchMask | Tensor,
        reduction: str = "mean",
        with_data: Tensor | None = None,
    ) -> Tensor:
        """The masked loss of any prediction, tokens or image, in the normalised space.

        Args:
            with_data: as in ``forward``.
        """
        target = self.make_target(images)
        if self.plain or prediction.dim() == 4 or with_data is not None:
            target = as_image(target, self._grid(images))
        if with_data is not None:
            prediction = self._in_place(prediction, images, mask)
            mask = self._scored_on(target.shape[2:], mask, with_data)
        if self.plain:
            if self.of_pixels:
                target = published.normalized(target, self.mean, self.std)
            side = target.shape[2] // self._grid(images)[0]
            image = prediction if prediction.dim() == 4 else self._shuffle(prediction, images, side)
            if self.target_norm is not None:
                mean, deviation = published.local_statistics(target, self.target_norm, side)
                target = (target - mean) / deviation
            return published.masked_loss(image, target, mask, self.loss, reduction, self.eps)
        return LOSSES[self.loss][0](prediction, target, mask, reduction=reduction, **self._target())

    def scored(self, images: Tensor, mask: PatchMask | Tensor, with_data: Tensor) -> Tensor:
        """``bool (B, h, w)``: the hidden pixels that hold data, or cells of pixels of which the target
        has one number each."""
        # any callable may be the target, whose result alone tells its grid
        grid = as_image(self.make_target(images[:1]), self._grid(images)).shape[2:]
        return self._scored_on(grid, mask, with_data)

    @staticmethod
    def _scored_on(grid: Sequence[int], mask: PatchMask | Tensor, with_data: Tensor) -> Tensor:
        """``scored`` for a target of ``grid`` rows and columns."""
        return published.on_grid(mask, *grid) & on_coarser_grid(with_data, *grid)

    def _in_place(self, prediction: Tensor, images: Tensor, mask: PatchMask | Tensor) -> Tensor:
        """Predicted tokens of what ``mask`` hides among zeros; any other prediction as it is."""
        tokens = math.prod(self._grid(images))
        if prediction.dim() == 4 or prediction.shape[1] == tokens:
            return prediction
        places = mask.masked.long()[..., None].expand_as(prediction)
        whole = prediction.new_zeros(prediction.shape[0], tokens, prediction.shape[2])
        return whole.scatter(1, places, prediction)

    def predict_tokens(self, images: Tensor, mask: PatchMask | Tensor) -> Tensor:
        """Predictions ``(B, L, N)``, of pixels ``C * stride^2`` normalised, row order ``"cyx"``."""
        return self._head(self.encoder(images, mask))

    def _head(self, tokens: Tensor) -> Tensor:
        tokens = self.head(tokens)
        return tokens.sigmoid() if self.sigmoid else tokens

    def _shuffle(self, tokens: Tensor, images: Tensor, side: int) -> Tensor:
        """Predicted tokens ``(B, L, C * side^2)`` laid out as an image, ``side`` pixels each."""
        return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, self._grid(images)), side)

    def predict_image(self, images: Tensor, mask: PatchMask | Tensor) -> Tensor:
        """Predicted pixels ``float32 (B, C, H, W)`` with the normalisation undone, for uint8 images
        within [0, 1].

        A ``target_norm`` is undone by the true image's local means and deviations, which the model
        was not asked to predict.

        Raises:
            UserError: what the model predicts is no image.
        """
        if not self.of_pixels:
            raise UserError("this model predicts no pixels: there is nothing to draw")
        image = self._shuffle(self.predict_tokens(images, mask).float(), images, self.stride)
        if self.target_norm is not None:
            target = published.normalized(self.make_target(images), self.mean, self.std)
            mean, deviation = published.local_statistics(target, self.target_norm, self.stride)
            image = image * deviation + mean
        if self.mean is not None:
            image = image * self.std[:, None, None] + self.mean[:, None, None]
        return image.clamp(0, 1) if images.dtype == torch.uint8 else image


def on_coarser_grid(with_data: Tensor, height: int, width: int) -> Tensor:
    """``bool (B, height, width)``: which cells of pixels ``bool (B, H, W)`` hold data everywhere."""
    return with_data.unflatten(2, (width, -1)).unflatten(1, (height, -1)).all(4).all(2)


def visible_mean(
    model: SimMIM, images: Tensor, mask: PatchMask | Tensor, with_data: Tensor | None = None
) -> Tensor:
    """The guess that a model must beat: everything is the mean of what is visible of the image, and
    holds data.

    Returns:
        A prediction for ``model.score``, a broadcast view: the mean colour, or of another target than
        pixels the mean of its visible part; with a ``target_norm``, which makes every local mean 0,
        tokens of zeros.
    """
    if model.target_norm is not None:
        tokens = images[0, 0].numel() // model.stride**2
        zero = torch.zeros((), device=images.device)
        return zero.expand(images.shape[0], tokens, model.head.out_features)
    target, statistics = images, {"mean": model.mean, "std": model.std}
    if not model.of_pixels:
        target, statistics = as_image(model.make_target(images), model._grid(images)), {}
    units = mask.mask if isinstance(mask, PatchMask) else mask
    if with_data is not None:
        grid = target.shape[2:]
        units = published.on_grid(mask, *grid) | ~on_coarser_grid(with_data, *grid)
    shown = (~units).flatten(1).float().mean(1).clamp_min(1e-12)[:, None]
    seen = mask_image(target, units, 0.0, **statistics)
    mean = seen.mean((2, 3)) / shown
    return mean[:, :, None, None].expand(*seen.shape)
