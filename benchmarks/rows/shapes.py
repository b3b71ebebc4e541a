"""The shapes of the tables, and the settings: which shapes, types and backends a device gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

RATIO = 0.6
Layout = Literal["image", "tokens"]


@dataclass(frozen=True)
class Shape:
    """An image, its mask unit and its tokens.

    Attributes:
        channels, size: the image is `channels x size x size`.
        unit: pixels along a side of the mask unit.
        stride: pixels along a side of one predicted token.
        tokens, width: the encoder's first token map is `tokens x tokens x width`.
    """

    name: str
    channels: int
    size: int
    unit: int
    stride: int
    tokens: int
    width: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.size // self.unit, self.size // self.unit

    @property
    def masked(self) -> float:
        """The part of the units that is masked at the ratio of the tables."""
        units = self.grid[0] * self.grid[1]
        return -(-units * RATIO // 1) / units

    @property
    def predictions(self) -> int:
        """Tokens along a side of the map that a head predicts."""
        return self.size // self.stride


VIT_B = Shape("vit-b", 3, 224, 32, 16, 14, 768)
SWIN_B = Shape("swin-b", 3, 192, 32, 32, 48, 128)
MULTISPECTRAL = Shape("multispectral", 13, 120, 24, 12, 10, 768)
TINY = Shape("tiny", 3, 32, 16, 16, 2, 64)


@dataclass(frozen=True)
class Setting:
    """What the rows of a table are made for.

    Attributes:
        device: `"cpu"` or `"cuda"`.
        types: element types of predictions, tokens and parameters.
        image_types: element types of images and targets that an op returns.
        layouts: of the predictions of `masked_loss`.
        backends: what "ours" is timed on, a contender each; empty: on the default backend, as "ours".
        compile: whether peers run under `torch.compile` beside.
        tiny: a trial run of the harness: the smallest models, and no process for peak memory.
    """

    device: str
    shapes: tuple[Shape, ...]
    batches: tuple[int, ...]
    types: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    image_types: tuple[torch.dtype, ...] = (torch.float32,)
    layouts: tuple[Layout, ...] = ("image", "tokens")
    backends: tuple[str, ...] = ()
    compile: bool = True
    tiny: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


CPU = Setting("cpu", (VIT_B, SWIN_B, MULTISPECTRAL), (16, 32))
GPU = Setting(
    "cuda",
    (VIT_B, SWIN_B),
    (256, 128),
    types=(torch.bfloat16, torch.float32),
    image_types=(torch.bfloat16, torch.float32),
    layouts=("tokens",),
    backends=("cuda", "triton"),
)


def trial(device: str) -> Setting:
    """Every kind of row at the smallest size, to see that it runs; the times mean nothing."""
    backends = GPU.backends if device == "cuda" else ("cpu", "reference")
    return Setting(device, (TINY,), (2,), backends=backends, compile=False, tiny=True)


TRIAL_SIZE = 64  # side of the images of whole steps in a trial


def type_of_steps(device: str) -> str:
    """The type of whole training steps, which `simmim pretrain` takes too: `"bfloat16"` where products in
    it are fast, else `"float32"`."""
    from simmim_kernels.fast_types import has_fast_bfloat16

    return "bfloat16" if has_fast_bfloat16(device) else "float32"
