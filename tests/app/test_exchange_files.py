"""Import and export on files that are damaged, hold code, or are of none of the projects."""

from __future__ import annotations

import gzip
import re

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint

from simmim_kernels.integrations import checkpoints
from tests.app.exchange_models import (
    arguments_of,
    model_of,
    run,
    saved,
)


def theirs_of(change):
    state = checkpoints.from_simmim(model_of("vit").state_dict(), "transformers")
    change(state)
    return state


BAD = {
    "missing": (lambda s: s.pop("vit.layernorm.weight"), "missing encoder.backbone.norm.weight"),
    "surplus": (lambda s: s.update(extra=torch.ones(1)), "surplus extra"),
    "half a product": (
        lambda s: s.pop("vit.encoder.layer.0.attention.attention.key.weight"),
        r"missing .*qkv.weight; surplus .*query.weight",
    ),
    "shape": (
        lambda s: s.update({"vit.embeddings.cls_token": torch.ones(1, 1, 8)}),
        r"cls_token \(1, 1, 8\) for \(1, 1, 16\)",
    ),
    "no head": (lambda s: s.pop("decoder.0.weight"), "missing head.weight.*--encoder-only"),
    "head": (
        lambda s: s.update({"decoder.0.weight": torch.ones(64, 16, 1, 1)}),
        "64 rows.*192",
    ),
    "names": (
        lambda s: [s.pop(k) for k in list(s) if k != "decoder.0.bias"],
        "no patch embedding of .*give a file",
    ),
    "quantised": (
        lambda s: s.update({"vit.layernorm.weight": torch.ones(16, dtype=torch.int8)}),
        "norm.weight as int8, not in floating point",
    ),
    "not finite": (
        lambda s: s.update({"decoder.0.bias": (1e9 * s["decoder.0.bias"]).half()}),
        "NaN or infinity in head.bias",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_cost_one_line_and_write_nothing(case, tmp_path, capsys):
    change, words = BAD[case]
    source, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    safetensors.torch.save_file(theirs_of(change), source)
    status, printed, err = run(
        capsys, "import", "--source", source, "--out", out, *arguments_of("vit")
    )
    assert (status, printed, err.count("\n")) == (2, "", 1)
    assert re.search(words, err)
    assert not out.exists()


def test_safetensors_by_another_name(tmp_path, capsys):
    safetensors.torch.save_file(theirs_of(lambda _: None), tmp_path / "pytorch_model.bin")
    command = ("import", "--source", tmp_path, "--out", tmp_path / "ours.safetensors")
    assert run(capsys, *command, *arguments_of("vit"))[0] == 0


def test_what_is_no_file_of_tensors(tmp_path, capsys):
    """A page that a download gave, an archive, a folder of shards of PyTorch's, a compiled module."""
    state = theirs_of(lambda _: None)
    (tmp_path / "page.pth").write_text("<html>404</html>")
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    (tmp_path / "packed.pth").write_bytes(gzip.compress(b"weights"))
    torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "shards", no_dist=True)
    torch.save(torch.compile(torch.nn.Linear(2, 2)), tmp_path / "compiled.pt")
    for name, words in {
        "page.pth": "can't be read: it is no file of tensors",
        "page.safetensors": "can't be read: it is damaged",
        "packed.pth": "can't be read: it is no file of tensors",
        "shards": "format_utils dcp_to_torch",
        "compiled.pt": "OptimizedModule, no dictionary of tensors: save the model's state_dict()",
    }.items():
        status, printed, err = run(
            capsys, "import", "--source", tmp_path / name, *arguments_of("vit")
        )
        assert (status, printed, err.count("\n")) == (2, "", 1)
        assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "--source", "NOWHERE", "--encoder", "vit_tiny_patch16_224"), "no such file"),
        (
            ("import", "--source", ".", "--encoder", "vit_tiny_patch16_224"),
            "holds none of model.safetensors",
        ),
        # what no process may read, whoever runs the test
        (
            ("import", "--source", "/proc/self/mem", "--encoder", "vit_tiny_patch16_224"),
            "/proc/self/mem can't be read: Input/output error",
        ),
        (
            ("import", "--source", "x", "--encoder", "vit_tiny_patch16_224", "--out", "a.pt"),
            "must end in .safetensors",
        ),
        (
            ("export", "--checkpoint", "x", "--project", "timm", "--out", "folder"),
            "--out folder must end in .safetensors, .pt, .pth, .bin",
        ),
    ],
)
def test_mistakes(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, printed, err = run(capsys, *arguments)
    assert (status, printed, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize(
    ("project", "family"), [("mmpretrain", "vit"), ("transformers", "beit"), ("microsoft", "vit")]
)
def test_families_that_a_project_does_not_have(project, family, tmp_path, capsys):
    ours, out = saved(model_of(family), family, tmp_path), tmp_path / "theirs.pth"
    status, _, err = run(capsys, "export", "--checkpoint", ours, "--project", project, "--out", out)
    assert status == 2 and err.count("\n") == 1
    assert f"{project} has no masked image model of the family {family}" in err
    assert not out.exists()
