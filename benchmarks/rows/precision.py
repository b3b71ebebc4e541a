"""An encoder's step in float32 and in bfloat16, from which `--precision auto` chooses."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.rows.common import BOTH, OURS, Contest, Row
from benchmarks.rows.shapes import Setting

BATCH = 4
ENCODERS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
TINY = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 32}


def rows(setting: Setting) -> Iterator[Row]:
    for name in ENCODERS[:1] if setting.tiny else ENCODERS:
        options = TINY if setting.tiny else {}
        build_it = partial(build, name, options)
        yield Row("precision", f"{name} x{BATCH}", BOTH, build_it, needs=("timm",))


def build(name: str, options: dict) -> Contest:
    """timm's encoder on images, weights in float32, products in float32 or under autocast in bfloat16;
    "ours" is the one that the application takes."""
    import timm

    from simmim_kernels.fast_types import has_fast_bfloat16

    model = timm.create_model(name, num_classes=0, **options)
    device = next(model.parameters()).device.type
    weights = list(model.parameters())

    def step(images: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(images).float().square().mean()
        return list(torch.autograd.grad(loss, weights))

    either = {
        "bfloat16": partial(step, dtype=torch.bfloat16),
        "float32": partial(step, dtype=torch.float32),
    }
    ours = either.pop("bfloat16" if has_fast_bfloat16(device) else "float32")
    size = options.get("img_size", 224)
    return Contest(
        {OURS: ours, **either},
        lambda: (torch.randn(BATCH, 3, size, size),),
        tolerance=None,  # they round differently
        effort=0.36,
    )
