"""Numbers of heads, which no tensor shows, in files of others whose width the encoder's own do not divide."""

from __future__ import annotations

import pytest
import torch

from simmim.storage import checkpoint
from simmim_kernels.integrations import checkpoints

from .exchange_models import arguments_of, model_of, run, saved
from .test_exchange_wrappers import microsoft_config


@pytest.mark.parametrize(("family", "theirs"), [("beit", "vit"), ("swin", "swin"), ("swinv2",) * 2])
def test_heads_that_do_not_divide_the_width(family, theirs, tmp_path, capsys):
    """The number of the file is taken where the encoder could not even be built with its own."""
    model = model_of(family)
    state = {
        "model": checkpoints.from_simmim(model.state_dict(), "microsoft"),
        "config": microsoft_config(theirs),
    }
    torch.save(state, tmp_path / "a.pth")
    status, printed, err = import_without_heads(family, tmp_path / "a.pth", tmp_path, capsys)
    assert status == 0, err
    assert f"--encoder-args num_heads {'2,4' if 'swin' in family else 2}" in printed
    found = checkpoint.load(tmp_path / "ours.safetensors")["model"]
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    # a file that does not say it
    torch.save({"model": state["model"]}, tmp_path / "a.pth")
    status, _, err = import_without_heads(family, tmp_path / "a.pth", tmp_path, capsys)
    assert status == 2


def test_heads_of_transformers_that_do_not_divide_the_width(tmp_path, capsys):
    model = model_of("vit")
    path = saved(model, "vit", tmp_path)
    folder = ("--project", "transformers", "--out", tmp_path / "theirs")
    assert run(capsys, "export", "--checkpoint", path, *folder)[0] == 0
    path.unlink()
    status, printed, err = import_without_heads("vit", tmp_path / "theirs", tmp_path, capsys)
    assert status == 0, err
    assert "from its configuration: --encoder-args num_heads 2" in printed


def import_without_heads(family, source, tmp_path, capsys):
    arguments = list(map(str, arguments_of(family)))
    place = arguments.index("num_heads")
    del arguments[place : place + 2]
    out = ("--out", tmp_path / "ours.safetensors", "--overwrite")
    return run(capsys, "import", "--source", source, *out, *arguments)
