"""The README's own lines run as they stand."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert torch.isfinite(names["loss"])
    assert names["token"].token.grad.abs().sum() > 0
    assert names["head"].weight.grad.abs().sum() > 0


def test_the_names_that_it_lists_exist():
    import simmim_kernels

    table = README.read_text().partition("## What is in it")[2].partition("All run under")[0]
    listed = [n for n in re.findall(r"`(\w+)`", table) if not n.startswith("_")]
    assert len(listed) > 10
    assert not [name for name in listed if not hasattr(simmim_kernels, name)]
