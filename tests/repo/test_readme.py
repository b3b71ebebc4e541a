"""The README's own lines run as they stand."""

import re
from pathlib import Path

import pytest
import torch

import simmim_kernels as sk
from tests.ops.calls import OPS

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
    pytest.importorskip("timm"), pytest.importorskip("transformers")
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    names = {
        "images": images,
        "mask": sk.random_mask(1, (7, 7), 0.6),
    }  # as in the first block, fewer
    exec(blocks()[1], names)
    assert names["tokens"].shape == (1, 49, 320)
    assert "masked_l1" in capsys.readouterr().out


def test_its_table_lists_every_op():
    table = README.read_text().partition("## What is in it")[2].partition("Every op runs under")[0]
    listed = set()
    for cell in re.findall(r"^\| (`.*?) \|", table, re.M):
        first, *others = re.findall(r"`(\w+)`", cell)
        family = first.rpartition("_")[0]  # `masked_linear_l1`, `_mse`
        listed |= {first, *(family + name if name[0] == "_" else name for name in others)}
    assert listed == OPS | {"MaskedLastBlock"}
