"""What the contenders of `bench_pretrain` run, each in a process of its own, and the images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.models import Step

SIZE, BATCH = 192, 16


def write_photographs(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels, each another part of one of scikit-image's photographs."""
    import numpy as np
    from PIL import Image
    from skimage import data

    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(sources[number % len(sources)])
        # parts of 400 to 600 pixels' width, so that the files differ in detail and size
        width = min(int(rng.integers(300, 451)), image.width, image.height * 4 // 3)
        height = width * 3 // 4
        left = int(rng.integers(image.width - width + 1))
        top = int(rng.integers(image.height - height + 1))
        image = image.resize((500, 375), box=(left, top, left + width, top + height))
        image.save(folder / f"{number:04d}.jpg", quality=92)


def run_step_alone(_: Path, log: TextIO, turn: int) -> None:
    """Our step under `torch.compile` on batches that lie there."""
    from benchmarks.models import ENCODERS, draw_batch, make_step
    from benchmarks.rows.step import take_faster_attention

    encoder = ENCODERS["VIT_TI"]
    step = make_step("ours", encoder, SIZE, None, "cpu")
    step.compile()
    batches = [draw_batch(encoder, SIZE, BATCH) for _ in range(3)]
    attention, _ = take_faster_attention(step, batches[0], min(5, turn))
    while True:
        for number in range(turn):
            step(*batches[number % len(batches)])
        print(json.dumps({"attention": attention}), file=log, flush=True)


def run_plain_loop(
    compile: bool, choose_attention: bool, folder: Path, log: TextIO, turn: int
) -> None:
    """transformers' model, torchvision's decoder and transforms, a DataLoader at its best number of
    workers.

    Args:
        choose_attention: try both attention paths; otherwise the model's own, `"sdpa"`, is left.
    """
    from benchmarks.models import ENCODERS, make_step
    from benchmarks.rows.step import take_faster_attention

    step = make_step("transformers", ENCODERS["VIT_TI"], SIZE, None, "cpu")
    if compile:
        step.compile()
    batch = next(batches_of(folder, 0))
    attention = "sdpa"
    if choose_attention:
        attention, _ = take_faster_attention(step, batch, min(5, turn))
    speeds = {workers: _speed(step, folder, workers, min(12, turn)) for workers in (0, 1, 2)}
    workers = max(speeds, key=speeds.get)
    batches = batches_of(folder, workers)
    while True:
        for _ in range(turn):
            step(*next(batches))
        print(json.dumps({"attention": attention, "workers": workers}), file=log, flush=True)


def _speed(step: Step, folder: Path, workers: int, updates: int) -> float:
    batches = batches_of(folder, workers)
    for _ in range(3):
        step(*next(batches))
    began = time.perf_counter()
    for _ in range(updates):
        step(*next(batches))
    return updates / (time.perf_counter() - began)


class Photographs:
    """A dataset as the documentation of torchvision's second version of transforms has it.

    Items are normalised images and SimMIM's mask on the token grid, `int64 (1, 12, 12)`.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from torchvision.transforms import v2

        from benchmarks.models import MEAN, STD

        self.paths = sorted(folder.glob("*.jpg"))
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(SIZE, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        import torch
        from torchvision.io import ImageReadMode, decode_image

        image = self.transform(decode_image(str(self.paths[index]), mode=ImageReadMode.RGB))
        mask = torch.zeros(36, dtype=torch.int64)
        mask[torch.randperm(36)[:22]] = 1
        mask = mask.view(6, 6).repeat_interleave(2, 0).repeat_interleave(2, 1)
        return image, mask


def batches_of(folder: Path, workers: int) -> Iterator[tuple]:
    """Batches without end, in the order of arguments that a `Step` takes."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Photographs(folder),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        for images, masks in loader:
            yield None, None, images, masks
