"""Training steps of `--method mae` beside SimMIM's of the same encoder.

Two methods, which learn differently: a ratio here is no speed-up of either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import peak_of_process
from benchmarks.rows.common import OURS, Contest, Row, rates
from benchmarks.rows.shapes import TRIAL_SIZE, Setting, type_of_steps

SIZE, BATCH, PEAK_BATCH = 192, 16, 64
MAE, SIMMIM, TRANSFORMERS = OURS, "SimMIM", "transformers"
# encoder, its arguments, and what MAE is told of masks and decoder
ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "VIT_TI, decoder 128 x 4": (
        "vit_tiny_patch16_224",
        {},
        {"decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4},
    ),
    "SWIN_T, uniform units of 32 px": (
        "swin_tiny_patch4_window7_224",
        {"window_size": 6},
        {"mask": "uniform", "mask_unit": 32},
    ),
}
TARGETS = {"SWIN_T, uniform units of 32 px": {SIMMIM: 2.5}}


def rows(setting: Setting) -> Iterator[Row]:
    if setting.on_gpu:
        return
    for shape in ENCODERS:
        size = TRIAL_SIZE if setting.tiny else SIZE
        what = f"{shape}, {size} px, {type_of_steps('cpu')}"
        build_row = partial(build, shape, size, setting.tiny)
        yield Row("methods", what, "training step", build_row, needs=("timm", "transformers"))


def make_step(
    shape: str, name: str, size: int = SIZE, tiny: bool = False
) -> Callable[[Tensor, Tensor], Any]:
    """One update of a contender on uint8 images and the samples' numbers."""
    from benchmarks.models import MEAN, SHALLOW, STD, Step
    from benchmarks.rows import transformers as theirs
    from simmim.models.attention_path import choose_attention
    from simmim.models.build import build_masking, build_model
    from simmim.presets import METHODS
    from simmim.training.mixed_precision import choose_precision

    torch.manual_seed(0)
    if name == TRANSFORMERS:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        model = theirs.make_model("ViTMAE", size, tiny)
        return Step(model, "cpu", lambda images, ids: ((images / 255 - mean) / std,))
    encoder, arguments, settings = ENCODERS[shape]
    if tiny:
        arguments = arguments | SHALLOW[encoder]
    method, settings = ("mae", settings) if name == MAE else ("simmim", {})
    config = dataclasses.replace(
        METHODS[method], encoder=encoder, encoder_args=arguments, img_size=size, **settings
    )
    model, masking = build_model(config), build_masking(config)
    choose_attention(model, "auto", "cpu", choose_precision("auto", "cpu")[0])
    return Step(model, "cpu", lambda images, ids: (images, masking(ids, seed=0)))


def draw_batch(count: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return images, torch.randint(0, 1 << 40, (count,))


def make_alone(shape: str, name: str) -> Callable[[], Any]:
    """A contender with a large batch, beside which weights and moments are small."""
    return partial(make_step(shape, name), *draw_batch(PEAK_BATCH))


def build(shape: str, size: int, tiny: bool) -> Contest:
    count = 2 if tiny else BATCH
    names = [MAE, SIMMIM] + ([TRANSFORMERS] if shape.startswith("VIT") else [])
    notes = {
        name: {}
        if tiny
        else {f"peak_mib_of_{PEAK_BATCH}": peak_of_process(make_alone, shape, name)}
        for name in names
    }

    return Contest(
        {name: make_step(shape, name, size, tiny) for name in names},
        partial(draw_batch, count, size),
        effort=0.36,
        targets=TARGETS.get(shape, {}),
        notes=notes,
        finish=rates(count),
    )
