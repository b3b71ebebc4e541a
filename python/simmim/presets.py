"""Named settings of ``simmim pretrain`` and ``finetune``: published recipes, the tutorial, the demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.config.run import Config


def _named(out: str, recipes: dict[str, Config]) -> dict[str, Config]:
    """``recipes``, each of which says its name and writes to the folder ``out`` and that name."""
    return {
        name: replace(recipe, preset=name, out=Path(out + name)) for name, recipe in recipes.items()
    }


_PUBLISHED_800 = PretrainConfig(
    epochs=800,
    warmup_epochs=10,
    schedule="step",
    lr=1e-4,
    warmup_lr=5e-7,
    late_rate=True,
    init="published",
    batch_size=128,
    accumulate=16,
)
_SWIN_800 = replace(
    _PUBLISHED_800,
    encoder="simmim_swin_base",
    img_size=192,
    drop_path=0.0,
    also_decay=("relative_position_bias_table",),
)

#: what --method brings without --preset
METHODS: dict[str, PretrainConfig] = {
    "simmim": PretrainConfig(),
    "mae": PretrainConfig(
        method="mae",
        encoder="vit_base_patch16_224",
        mask_unit=16,
        mask_ratio=0.75,
        loss="mse",
        target_norm="patch",
        crop_scale=(0.2, 1.0),
        interpolation="bicubic",
        betas=(0.9, 0.95),
        lr=3e-4,  # published as 1.5e-4 for a batch of 256
        warmup_lr=0.0,
        min_lr=0.0,
        warmup_epochs=40,
        clip=0.0,
    ),
}

_MAE_800 = replace(
    METHODS["mae"], epochs=800, also_decay=("cls_token", "mask_token"), batch_size=64, accumulate=64
)

PRESETS: dict[str, PretrainConfig] = {"none": PretrainConfig()} | _named(
    "runs/",
    {
        "vit-b": replace(
            _PUBLISHED_800,
            encoder="simmim_vit_base",
            img_size=224,
            drop_path=0.1,
            also_decay=("mask_token", "relative_position_bias_table"),
        ),
        "swin-b": _SWIN_800,
        "swin-b-100": replace(
            _SWIN_800,
            epochs=100,
            schedule="cosine-from-start",
            lr=2e-4,
            warmup_lr=1e-6,
            min_lr=1e-5,
        ),
        "swin-l": replace(_SWIN_800, encoder="swin_large_patch4_window12_384"),
        "swinv2-b": replace(
            _PUBLISHED_800,
            encoder="swinv2_base_window12_192",
            img_size=192,
            drop_path=0.1,
            target_norm="window",
            also_decay=("cpb_mlp.0.weight", "cpb_mlp.2.weight", "logit_scale"),
        ),
        "mae-vit-b": _MAE_800,
        "mae-vit-l": replace(_MAE_800, encoder="vit_large_patch16_224"),
        "mae-vit-h": replace(_MAE_800, encoder="vit_huge_patch14_224", mask_unit=14),
        "tutorial": PretrainConfig(
            encoder="cnn",
            img_size=64,
            normalize=False,
            mask="box",
            mask_unit=1,
            mask_ratio=0.15,
            loss="mse",
            batch_size=32,
            epochs=10,
            lr=1.6e-2,
            warmup_lr=1.6e-2,
            min_lr=1.6e-2,
            warmup_epochs=0,
            weight_decay=0.0,
            clip=0.0,
        ),
        "demo": PretrainConfig(
            # windows are a prior for looking nearby: a plain ViT of this size is still worse than
            # the mean colour (0.70 against 0.65) after the images with which this one reaches 0.46
            encoder="swin_tiny_patch4_window7_224",
            encoder_args={"embed_dim": 64, "depths": "2,2", "num_heads": "4,8", "window_size": 6},
            img_size=96,
            mask_unit=8,
            crop_scale=(0.1, 1.0),
            crops_per_image=64,
            val_crops=16,
            cache=True,
            epochs=10,
            batch_size=16,
            lr=6.4e-2,
            warmup_lr=1e-5,
            min_lr=1e-5,
            warmup_epochs=1,
            precision="32-true",
            log_every=26,
            val_every=2,
            picture=2,
        ),
    },
)

_PUBLISHED_100 = FinetuneConfig(
    img_size=224,
    epochs=100,
    batch_size=128,
    accumulate=16,
    keep_rest=False,
    interpolation="bicubic",
    test_crop=0.875,
    auto_augment="rand-m9-mstd0.5-inc1",
    erase=0.25,
    # SimMIM's; MAE's are below
    schedule="cosine-from-start",
    late_rate=True,
    fixed_ends=True,
)

_MAE_100 = replace(
    _PUBLISHED_100,
    accumulate=8,
    fc_norm=True,
    head_scale=0.001,
    layer_decay=0.65,
    lr=1e-3,  # published as 5e-4 for a batch of 256
    warmup_lr=0.0,
    min_lr=5e-7,  # published as 1e-6 whatever the batch, which is 1024
    warmup_epochs=5,
    clip=0.0,
    schedule="cosine",
    late_rate=False,
    fixed_ends=False,
)
_MAE_50 = replace(_MAE_100, epochs=50, lr=2e-3, layer_decay=0.75)

FINETUNE_PRESETS: dict[str, FinetuneConfig] = {"none": FinetuneConfig()} | _named(
    "runs/finetune-",
    {
        "vit-b": replace(
            _PUBLISHED_100,
            encoder_args={"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False},
            fc_norm=True,
            head_scale=0.001,
            layer_decay=0.65,
            also_decay=("relative_position_bias_table",),
        ),
        "swin-b": replace(_PUBLISHED_100, encoder_args={"window_size": 7}, layer_decay=0.8),
        "swin-b-100": replace(_PUBLISHED_100, encoder_args={"window_size": 7}, layer_decay=0.9),
        "swin-l": replace(
            _PUBLISHED_100, encoder_args={"window_size": 14}, drop_path=0.2, layer_decay=0.7
        ),
        "swinv2-b": replace(
            _PUBLISHED_100,
            encoder_args={"window_size": 14, "pretrained_window_sizes": "12,12,12,6"},
            layer_decay=0.75,
            schedule="cosine",
        ),
        "mae-vit-b": _MAE_100,
        "mae-vit-l": replace(_MAE_50, drop_path=0.2),
        "mae-vit-h": replace(_MAE_50, drop_path=0.3),
    },
)
