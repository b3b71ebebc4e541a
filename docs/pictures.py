"""`python docs/pictures.py [RUN]`: draw the pictures of the documentation.

RUN is the folder of a run of `simmim pretrain --preset demo --save-every 20 --keep 100 --out RUN`, of
which the picture of training is drawn; without it that one is left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import skimage.data
import torch
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import simmim_kernels as sk

HERE = Path(__file__).parent
HIDDEN, VISIBLE, LINE = "#b0413e", "#3b6ea5", "#444444"


def draw_masks() -> None:
    """The same photograph under the mask of each strategy, two draws of each."""
    photograph = torch.from_numpy(skimage.data.astronaut()[:448, :448].copy()).permute(2, 0, 1)
    images, ids = photograph.expand(2, -1, -1, -1), torch.arange(2)
    draws = {
        "random_mask\n(SimMIM, unit 32)": sk.random_mask(ids, (14, 14), 0.6, seed=0, epoch=0),
        "random_mask\n(MAE, unit 16)": sk.random_mask(ids, (28, 28), 0.75, seed=0, epoch=0),
        "block_mask\n(BEiT)": sk.block_mask(ids, (28, 28), 0.4, seed=0, epoch=0),
        "inverse_block_mask\n(data2vec 2.0)": sk.inverse_block_mask(
            ids, (28, 28), 0.8, seed=0, epoch=0
        ),
        "uniform_mask\n(UM-MAE)": sk.uniform_mask(ids, (28, 28), seed=0, epoch=0),
        "box_mask": sk.box_mask(ids, (28, 28), 0.3, seed=0, epoch=0),
    }
    figure, axes = plt.subplots(2, len(draws), figsize=(2 * len(draws), 4.4))
    for column, (name, mask) in zip(axes.T, draws.items(), strict=True):
        shown = sk.mask_image(images, mask, 0.85).clamp(0, 1)
        column[0].set_title(name, fontsize=8)
        for axis, picture in zip(column, shown, strict=True):
            axis.imshow(picture.permute(1, 2, 0))
            axis.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(HERE / "masks.png", dpi=90)
    take_palette(HERE / "masks.png")


def take_palette(path: Path) -> None:
    """Write a picture anew with 128 colours: a quarter of the bytes."""
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


def draw_way_of_a_pixel() -> None:
    """A visible pixel is read by the patch embedding, a hidden one by the loss, each once."""
    figure, axis = plt.subplots(figsize=(9, 3.4))
    axis.set(xlim=(0, 18), ylim=(0, 6.8))
    axis.axis("off")
    boxes = {
        "image": (0.2, 2.4, 2.6, "image\nuint8"),
        "embed": (4.6, 4.4, 3.6, "masked_patch_embed\n(p / 255 - mean) / std,\nproduct, token elsewhere"),
        "encoder": (9.6, 4.4, 2.2, "encoder\n(yours)"),
        "head": (12.9, 4.4, 1.8, "head\n(yours)"),
        "loss": (9.6, 0.4, 5.1, "masked_l1\n(p / 255 - mean) / std,\ndifference, sum, gradient"),
    }  # fmt: skip
    for name, (x, y, width, text) in boxes.items():
        ours = name in ("embed", "loss")
        look = {"facecolor": "#eef3f8" if ours else "white", "edgecolor": LINE}
        axis.add_patch(FancyBboxPatch((x, y), width, 1.9, boxstyle="round,pad=0.1", **look))
        axis.text(x + width / 2, y + 0.95, text, ha="center", va="center", fontsize=8)

    def arrow(begin, end, colour=LINE, text="", at=(0.0, 0.0)):
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": colour, "linewidth": 1.6}
        axis.add_patch(FancyArrowPatch(begin, end, shrinkA=2, shrinkB=2, **style))
        axis.text(*at, text, fontsize=8, color=colour, ha="left")

    arrow((2.9, 3.8), (4.5, 5.2), VISIBLE, "visible pixels, once", (0.6, 5.1))
    arrow((2.9, 2.8), (9.5, 1.3), HIDDEN, "hidden pixels, once", (3.6, 1.2))
    arrow((8.35, 5.35), (9.5, 5.35), LINE, "tokens", (8.42, 5.55))
    arrow((11.9, 5.35), (12.8, 5.35))
    arrow((13.8, 4.3), (13.0, 2.4), LINE, "prediction of the hidden patches", (13.7, 3.2))
    arrow((14.8, 1.35), (16.0, 1.35))
    axis.text(16.1, 1.35, "loss and\ngradient", fontsize=8, va="center")
    figure.tight_layout(pad=0.2)
    figure.savefig(HERE / "pixel.png", dpi=130)


def draw_ptx_machine() -> None:
    """From two kinds of source to PTX, to the machine that runs it, to what it reports."""
    figure, axis = plt.subplots(figsize=(9, 3.5))
    axis.set(xlim=(0, 18), ylim=(0, 7))
    axis.axis("off")
    compiled = {"facecolor": "white", "edgecolor": LINE}
    ours = {"facecolor": "#eef3f8", "edgecolor": LINE}
    for x, y, width, height, look, text in (
        (0.2, 4.5, 2.9, 1.6, ours, "csrc/cuda\nC++ kernels"),
        (0.2, 1.0, 2.9, 1.6, ours, "backends/triton\nPython kernels"),
        (4.2, 4.5, 2.2, 1.6, compiled, "nvcc"),
        (4.2, 1.0, 2.2, 1.6, compiled, "Triton"),
        (7.4, 2.8, 2.1, 1.6, compiled, "PTX for sm_80,\nsm_90, sm_100"),
        (10.5, 1.6, 3.4, 4.0, ours, "machine on the CPU\n\nwarps take turns;\nfor every byte: who\nread and wrote it\nsince which barrier"),
        (15.0, 5.0, 2.8, 1.3, ours, "results, compared\nwith the reference"),
        (15.0, 2.95, 2.8, 1.3, ours, "findings: races,\nbounds, barriers"),
        (15.0, 0.9, 2.8, 1.3, ours, "counts: instructions,\nsectors"),
    ):  # fmt: skip
        axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.1", **look))
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)
    for begin, end in (
        ((3.2, 5.3), (4.1, 5.3)),
        ((3.2, 1.8), (4.1, 1.8)),
        ((6.5, 5.1), (7.4, 4.4)),
        ((6.5, 2.0), (7.4, 2.8)),
        ((9.6, 3.6), (10.4, 3.6)),
        ((14.0, 4.4), (14.9, 5.4)),
        ((14.0, 3.6), (14.9, 3.6)),
        ((14.0, 2.8), (14.9, 1.8)),
    ):
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": LINE, "linewidth": 1.6}
        axis.add_patch(FancyArrowPatch(begin, end, shrinkA=2, shrinkB=2, **style))
    axis.text(12.2, 0.9, "inputs: CPU tensors", fontsize=8, ha="center", color=LINE)
    figure.tight_layout(pad=0.2)
    figure.savefig(HERE / "ptx.png", dpi=130)


def draw_course(run: Path) -> None:
    """What the model predicts for the same hidden patches after more and more updates.

    Args:
        run: folder of a run that kept its checkpoints.
    """
    from simmim.data.crops import central_crops, collate
    from simmim.data.splits import split_files
    from simmim.evaluation.plot import choose_display, reconstruct
    from simmim.evaluation.reconstruct import load_model
    from simmim.models.build import build_masking

    columns = {}
    for update in (20, 60, 140, 260, 520):
        model, trained = load_model(run / "checkpoints" / f"step-{update:08d}.pt")
        files = split_files(trained).validation[:2]
        images = collate([central_crops(trained, [file])[0, 0] for file in files]).images
        mask = build_masking(trained)(torch.arange(len(files)), seed=0)
        original, masked, completed = reconstruct(model, images, mask, choose_display(trained, ()))
        columns |= {"what the model sees": masked, f"{update} updates": completed}
    columns["held-out photograph"] = original
    figure, axes = plt.subplots(2, len(columns), figsize=(1.9 * len(columns), 4.1))
    for cells, (title, pictures) in zip(axes.T, columns.items(), strict=True):
        cells[0].set_title(title, fontsize=9)
        for cell, picture in zip(cells, pictures, strict=True):
            cell.imshow(picture.permute(1, 2, 0))
            cell.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(HERE / "course.png", dpi=90)
    take_palette(HERE / "course.png")


if __name__ == "__main__":
    draw_masks()
    draw_way_of_a_pixel()
    draw_ptx_machine()
    for run in sys.argv[1:]:
        draw_course(Path(run))
