"""Pictures: reconstructions, the loss curve, the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simmim.config.images import check_show_bands
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError, printable, require, say
from simmim.models import published
from simmim.models.simmim import SimMIM
from simmim.storage.files import replacing
from simmim.training.metrics import read_metrics
from simmim_kernels import PatchMask, mask_image

figure = require("matplotlib.figure")
fonts = require("matplotlib.font_manager")

#: brightness of what is hidden
GRAY = 0.5
TITLES = ("original", "what the model sees", "what it puts there")


class Display(NamedTuple):
    """How pixels are shown as red, green and blue, or as gray: the places of one or three channels,
    and values of all channels that are black and white, of uint8 by 255."""

    bands: tuple[int, ...]
    low: Tensor
    high: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """``float32 (B, 1 or 3, H, W)`` in [0, 1] of pixels ``(B, C, H, W)``, uint8 by 255."""
        low, high = (v[:, None, None].to(pixels.device) for v in (self.low, self.high))
        pixels = (pixels.float() - low) / (high - low).clamp_min(1e-30)
        return pixels.clamp(0, 1)[:, list(self.bands)]


def choose_display(config: PretrainConfig, bands: Sequence[int] = ()) -> Display:
    """The display that the settings of a run ask for, or of ``bands``, counted from 1, in place of
    its ``show_bands``; raises ``UserError`` where these are not one or three channels that there
    are."""
    bands = tuple(bands) or config.show_bands or ((1, 2, 3) if config.channels > 2 else (1,))
    check_show_bands(bands, config.channels)
    unit = 255 if config.pixel_type == "uint8" else 1
    low, high = torch.zeros(config.channels), torch.ones(config.channels)
    if config.low:
        low, high = torch.tensor(config.low) / unit, torch.tensor(config.high) / unit
    elif config.mean:
        mean, std = torch.tensor(config.mean) / unit, torch.tensor(config.std) / unit
        low, high = mean - 2 * std, mean + 2 * std
    return Display(tuple(band - 1 for band in bands), low, high)


@torch.no_grad()
def reconstruct(
    model: SimMIM, images: Tensor, mask: PatchMask, display: Display
) -> tuple[Tensor, Tensor, Tensor]:
    """Original, masked and completed images, each ``float32 (B, 1 or 3, H, W)`` in [0, 1].

    The completed image shows the prediction where pixels were hidden and the photograph elsewhere.
    """
    training = model.training
    model.eval()
    predicted = model.predict_image(images, mask)
    model.train(training)
    original = display(published.normalized(images, None, None))
    completed = mask_image(original, mask) + mask_image(display(predicted), ~mask.mask)
    return original, mask_image(original, mask, GRAY), completed


def reconstruction_picture(columns: Iterable[Tensor], path: Path) -> None:
    """Draw one row an image of what ``reconstruct`` gives, original, masked, completed, to the file
    ``path``, whose suffix decides the format."""
    columns = [column.cpu() for column in columns]
    rows, _, height, width = columns[0].shape
    side = 3.0
    canvas = figure.Figure(
        figsize=(3 * side * width / height + 0.2, rows * side + 0.35), layout="constrained"
    )
    canvas.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    axes = canvas.subplots(rows, 3, squeeze=False)
    for row, cells in enumerate(axes):
        for cell, column, title in zip(cells, columns, TITLES, strict=True):
            pixels = column[row].permute(1, 2, 0)
            if pixels.shape[-1] == 1:
                pixels = pixels.expand(-1, -1, 3)
            cell.imshow(pixels.numpy(), interpolation="nearest")
            cell.set_axis_off()
            if row == 0:
                cell.set_title(title, fontsize=13)
    _save(canvas, path, dpi=110)


def _format(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _save(canvas: figure.Figure, path: Path, dpi: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        canvas.savefig(temporary, dpi=dpi, format=_format(path))


def check_picture(path: Path) -> None:
    """Raise ``UserError`` where ``path`` does not end in the suffix of a picture format."""
    known = figure.Figure().canvas.get_supported_filetypes()
    if _format(path) not in known:
        raise UserError(
            f"no picture can be written to {path}: let its name end in .{', .'.join(sorted(known))}"
        )


def loss_curve(metrics: Path, path: Path, baseline: float | None = None) -> None:
    """Draw training and validation loss of a run's ``metrics.csv`` over the updates, to the file
    ``path``.

    Args:
        baseline: validation loss of predicting the mean of the visible part.
    """
    rows = read_metrics(metrics)
    canvas = figure.Figure(figsize=(6.4, 4), layout="constrained")
    axis = canvas.subplots()
    for split, label, style in (("train", "training", "-"), ("val", "validation", "o-")):
        points = [(int(r["update"]), float(r["loss"])) for r in rows if r["split"] == split]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    if baseline is not None:
        axis.axhline(baseline, color="gray", linestyle="--", label="mean of the visible part")
    axis.set_xlabel("update")
    axis.set_ylabel("loss" if baseline is None else "loss on hidden pixels")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    _save(canvas, path, dpi=130)


def _drawable(names: list[str]) -> list[str]:
    """Names that Matplotlib's font can draw; in place of others, for which it draws boxes, their numbers."""
    font = fonts.get_font(fonts.findfont(fonts.FontProperties()))
    lacking = {
        name: f"class {number}"
        for number, name in enumerate(names)
        if not all(font.get_char_index(ord(letter)) for letter in name)
    }
    if lacking:
        told = ", ".join(f"{text} is {name}" for name, text in lacking.items())
        say(f"Matplotlib's font lacks letters of some names, in the picture {told}")
    return [lacking.get(name, name) for name in names]


#: up to this many classes, their names and the numbers are legible
LEGIBLE = 20


def confusion_picture(confusion: np.ndarray, names: list[str], path: Path) -> None:
    """Draw how often each class was taken for which.

    Args:
        confusion: counts ``(classes, classes)``, true class by row, answer by column; a class
            without images is a blank row.
        names: of the classes.
        path: file to write.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2.2 + 0.42 * min(len(names), LEGIBLE)
    canvas = figure.Figure(figsize=(side, side), layout="constrained")
    axis = canvas.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= LEGIBLE:
        texts = _drawable([printable(name) for name in names])
        texts = [t if len(t) <= 40 else t[:39] + "\N{HORIZONTAL ELLIPSIS}" for t in texts]
        axis.set_xticks(range(len(names)), texts, rotation=90, parse_math=False, usetex=False)
        axis.set_yticks(range(len(names)), texts, parse_math=False, usetex=False)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            count = str(confusion[row, column])
            axis.text(column, row, count, color=colour, ha="center", va="center", fontsize=8)
    right = np.trace(confusion) / max(1, confusion.sum())
    axis.set_title(f"{right:.1%} right", fontsize=11)
    axis.set_xlabel("answer")
    axis.set_ylabel("class")
    _save(canvas, path, dpi=130)
