"""The README's own lines run as they stand."""

import re
from pathlib import Path

import pytest
import torch

from simmim_kernels import random_mask

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_runs():
    code, _ = blocks()
    names = {}
    exec(code, names)
    assert torch.isfinite(names["loss"])
    assert names["token"].token.grad.abs().sum() > 0
    assert names["head"].weight.grad.abs().sum() > 0


def test_the_example_with_models_of_others_runs(capsys):
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=32, encoder_stride=16, intermediate_size=16, **sizes)
    names = {
        "model": transformers.ViTForMaskedImageModeling(config),
        "timm": timm,
        "images": torch.rand(1, 3, 64, 64),
        "mask": random_mask(1, (2, 2), 0.5),
    }
    exec(blocks()[1], names)
    assert names["tokens"].shape == (1, 4, 320)
    assert "masked_l1" in capsys.readouterr().out


def test_the_names_that_it_lists_exist():
    import simmim_kernels

    table = README.read_text().partition("## What is in it")[2].partition("Every op runs under")[0]
    listed = [n for n in re.findall(r"`(\w+)`", table) if not n.startswith("_")]
    assert len(listed) > 10
    assert not [name for name in listed if not hasattr(simmim_kernels, name)]
