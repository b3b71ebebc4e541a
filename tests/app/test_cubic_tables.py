"""Tables of relative positions interpolated by cubic splines, as published code does for fine-tuning.

The numbers are rows of what ``remap_pretrained_keys_swin`` of microsoft/Swin-Transformer, run once, made of
``values``, and the norm of all rows; with SciPy's ``RectBivariateSpline``, since its ``interp2d`` is gone, which
was the same on grids.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from simmim.config.labels import FinetuneConfig
from simmim.models.classifier import completed, start
from simmim.storage import checkpoint
from simmim_kernels.integrations.position_tables import Table, resample, tables_of

from .exchange_models import run
from .test_other_sizes import saved

#: by windows, of pre-training and of fine-tuning
PUBLISHED = {
    (6, 7): (
        13.224608,
        {
            0: [1.533195e-05, 0.9999918],
            1: [0.4681627, 0.9999398],
            13: [0.9019774, 0.4230154],
            56: [0.2331704, 0.7565013],
            84: [-0.9165215, -0.1279637],
            167: [0.9697296, -1.115935],
            168: [0.7332025, 0.8711303],
        },
    ),
    (12, 14): (
        24.498421,
        {
            1: [0.4848484, 0.9999636],
            27: [-0.8211176, 0.8875669],
            243: [-0.4931296, 0.1653321],
            364: [0.5260647, 0.8899462],
            727: [-1.002965, 1.155527],
            728: [-0.8947777, -0.3178681],
        },
    ),
    (14, 7): (
        13.04915,
        {
            0: [-0.7967219, 0.9645092],
            56: [0.9178019, 0.9907088],
            84: [-0.3249842, 0.7023522],
            168: [0.9997311, -0.772826],
        },
    ),
    (3, 8): (
        16.854387,
        {
            1: [0.0, 1.0],
            75: [-1.108046, 0.95286],
            112: [0.8545989, 0.1304237],
            224: [-0.887567, 0.866232],
        },
    ),
}


def values(window: int) -> torch.Tensor:
    index = torch.arange((2 * window - 1) ** 2, dtype=torch.float64)
    return torch.stack((torch.sin(index * 0.7), torch.cos(index * index * 0.01)), 1).float()


@pytest.mark.parametrize(("source", "target"), PUBLISHED)
def test_rows_of_the_published_code(source, target):
    old, new = Table(source, source, 0, True), Table(target, target, 0, True)
    found = resample(values(source), old, new, cubic=True)
    norm, rows = PUBLISHED[source, target]
    assert found.dtype == torch.float32 and found.shape == (new.rows, 2)
    assert found.double().norm().item() == pytest.approx(norm, rel=1e-6)
    for row, expected in rows.items():
        assert found[row].tolist() == pytest.approx(expected, abs=1e-6), row


def test_any_grid_and_rows_of_class_tokens():
    torch.manual_seed(0)
    for source, target in itertools.product(itertools.product((1, 2, 3, 5), repeat=2), repeat=2):
        old, new = Table(*source, 3, True), Table(*target, 3, True)
        table = torch.randn(old.rows, 2)
        found = resample(table, old, new, cubic=True)
        assert found.shape == (new.rows, 2) and found.isfinite().all()
        assert torch.equal(found[-3:], table[-3:])
        # near offsets keep their values
        middle = (len(found) - 4) // 2
        assert torch.allclose(found[middle], table[(len(table) - 4) // 2], atol=1e-5)
        if source == target:
            assert torch.equal(found, table)


def test_values_that_are_not_finite_spread_and_infinities_are_not_made():
    old, new = Table(4, 4, 0, True), Table(6, 6, 0, True)
    assert not resample(torch.full((49, 1), torch.nan), old, new, cubic=True).isfinite().any()
    largest = torch.finfo(torch.float32).max
    wild = largest * (-1.0) ** torch.arange(49)[:, None]
    with pytest.raises(ValueError, match="not finite"):
        resample(wild, old, new, cubic=True)


def test_fine_tuning_takes_splines_and_import_what_it_is_told(tmp_path, capsys):
    path, before = saved("swin", tmp_path)
    args = {"window_size": 7}
    config = FinetuneConfig(checkpoint=path, img_size=56, encoder_args=args)
    encoder = start(*completed(config))
    after = encoder.state_dict()
    name = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    old, new = Table(4, 4, 0, True), tables_of(encoder.backbone)[name.removeprefix("backbone.")]
    assert torch.equal(after[name], resample(before[name], old, new, cubic=True))
    assert not torch.equal(after[name], resample(before[name], old, new))
    exported = tmp_path / "timm.safetensors"
    status, _, error = run(
        capsys, "export", "--checkpoint", path, "--project", "timm", "--out", exported
    )
    assert status == 0, error
    for tables in ("linear", "cubic"):
        imported = tmp_path / f"{tables}.safetensors"
        status, _, error = run(
            capsys, "import", "--source", exported, "--encoder", "swin_tiny_patch4_window7_224",
            "--img-size", 56, "--encoder-only", "--tables", tables, "--out", imported, "--encoder-args",
            *("embed_dim", 16, "depths", "1,2", "num_heads", "2,4", "window_size", 7),
        )  # fmt: skip
        assert status == 0, error
        found = checkpoint.load(imported)["model"][f"encoder.{name}"]
        assert torch.equal(found, resample(before[name], old, new, cubic=tables == "cubic"))
