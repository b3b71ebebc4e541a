"""Training steps of transformers' own models, with `apply_kernels` and without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import simmim_kernels as sk
from benchmarks.memory import peak_of_process
from benchmarks.rows.common import Contest, Row, rates
from benchmarks.rows.shapes import RATIO, TRIAL_SIZE, Setting, type_of_steps

if TYPE_CHECKING:
    from benchmarks.models import Step

SIZE, BATCH, UNIT = 192, 16, 32
MODELS = {
    "ViT": {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "encoder_stride": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "Swin": {"embed_dim": 48, "depths": [2, 2, 2, 2], "window_size": 6, "encoder_stride": 32},
    "ViTMAE": {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "decoder_hidden_size": 128,
        "decoder_num_hidden_layers": 4,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 512,
        "norm_pix_loss": True,
    },
}
SAME_PATH = "ours, sdpa"  # the attention path that transformers takes
# name -> (with kernels, PatchMask, compiled); compiled, ours leaves the reconstruction out
CONTENDERS = {
    "ours": (True, False, False),
    SAME_PATH: (True, False, False),
    "ours, PatchMask": (True, True, False),
    "ours, compiled": (True, True, True),
    "eager": (False, False, False),
    "compiled": (False, False, True),
}
#: what must be reached against a model as it is installed
TARGETS = {
    "ViT": {"eager": 1.3, "compiled": 1.3},
    "Swin": {"eager": 1.3},
    "ViTMAE": {"eager": 1.4, "compiled": 1.4},
}
TINY = {
    "ViT": {"num_hidden_layers": 1},
    "Swin": {"depths": [1, 1, 1, 1], "window_size": 2},
    "ViTMAE": {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1},
}


def rows(setting: Setting) -> Iterator[Row]:
    if setting.on_gpu:
        return  # the same models as the rows of `step`, which time is short for
    for family in MODELS:
        count, size = (2, TRIAL_SIZE) if setting.tiny else (BATCH, SIZE)
        shape = f"{family}, {size} px, batch {count}, {type_of_steps('cpu')}"
        builder = partial(build, family, count, size, setting.tiny)
        yield Row("transformers", shape, "training step", builder, needs=("transformers",))


def make_model(family: str, size: int = SIZE, tiny: bool = False) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    options = MODELS[family] | (TINY[family] if tiny else {})
    config = getattr(transformers, f"{family}Config")(image_size=size, **options)
    task = "PreTraining" if family == "ViTMAE" else "MaskedImageModeling"
    return getattr(transformers, f"{family}For{task}")(config).train()


def make_step(model: nn.Module, name: str) -> Step:
    """The contender called `name` with a copy of the model."""
    from benchmarks.models import Step

    kernels, units, compile = CONTENDERS[name]
    model = copy.deepcopy(model)
    if kernels:
        attention = None if name == SAME_PATH else "auto"
        sk.apply_kernels(model, reconstruction=not compile, attention=attention)
    step = Step(model, "cpu", lambda images, mask, tokens: (images, mask if units else tokens))
    if compile:
        step.compile()
    return step


def draw_batch(model: nn.Module, count: int) -> tuple[Tensor, sk.PatchMask, Tensor]:
    size = model.config.image_size
    side = size // model.config.patch_size
    images = torch.randn(count, 3, size, size)
    if hasattr(model.config, "mask_ratio"):  # MAE, whose mask is made of noise
        mask = sk.random_mask(count, (side, side), model.config.mask_ratio)
        return images, mask, mask.mask.flatten(1).float()
    mask = sk.random_mask(count, (size // UNIT, size // UNIT), RATIO)
    return images, mask, mask.on_grid((side, side)).mask.flatten(1)


def make_alone(family: str, name: str) -> Callable[[], Any]:
    """A contender with its batch, for a process of its own."""
    model = make_model(family)
    return partial(make_step(model, name), *draw_batch(model, BATCH))


def build(family: str, count: int, size: int, tiny: bool) -> Contest:
    model = make_model(family, size, tiny)
    contenders, notes = {}, {}
    for name, (_, _, compile) in CONTENDERS.items():
        if compile and family == "Swin":
            continue  # Inductor takes minutes for its windows
        peak = not compile and not tiny
        notes[name] = {"peak_mib": peak_of_process(make_alone, family, name)} if peak else {}
        contenders[name] = make_step(model, name)

    return Contest(
        contenders,
        lambda: draw_batch(model, count),
        effort=0.36,
        targets=TARGETS[family],
        notes=notes,
        finish=rates(count),
    )
