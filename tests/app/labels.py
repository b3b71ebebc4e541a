"""Settings of small runs on labelled images."""

from __future__ import annotations

from pathlib import Path

from simmim.config.labels import FinetuneConfig, ProbeConfig

from .conftest import TINY

ENCODER = {name: TINY[name] for name in ("encoder", "encoder_args", "img_size")}


def finetuning(labelled: Path, out: Path, **changes) -> FinetuneConfig:
    settings = {
        "data": labelled,
        "out": out,
        "val_share": 1 / 3,
        "batch_size": 5,
        "epochs": 2,
        **ENCODER,
        **{name: TINY[name] for name in ("precision", "device", "workers", "warmup_epochs")},
    }
    if "val_data" in changes:
        del settings["val_share"]
    return FinetuneConfig(**{**settings, **changes})


def probing(labelled: Path, out: Path, **changes) -> ProbeConfig:
    settings = {
        "data": labelled,
        "out": out,
        "device": "cpu",
        "workers": 0,
        "overwrite": True,
        **ENCODER,
    }
    return ProbeConfig(**{**settings, **changes})


def without(*names: str) -> dict[str, object]:
    """What leaves these settings to the checkpoint."""
    return {name: {} if name == "encoder_args" else None for name in names}
