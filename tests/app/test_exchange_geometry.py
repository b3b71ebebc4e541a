"""Position tables from any grid to any other: timm's resampling of the true grid, or a refusal."""

from __future__ import annotations

import itertools
import re

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm import layers

from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.exchange import geometry
from simmim.exchange.geometry import fit_tables
from simmim.models.build import build_model, encoder_of
from simmim.storage import checkpoint
from simmim_kernels.integrations import checkpoints
from simmim_kernels.integrations.position_tables import Table, resample, square_table, tables_of
from tests.app.exchange_models import ENCODERS, run

SIDES = st.integers(1, 14)
GRIDS = st.tuples(SIDES, SIDES)


@settings(max_examples=100, deadline=None)
@given(source=GRIDS, target=GRIDS, prefix=st.sampled_from([0, 1, 3, 5]), relative=st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_every_pair_of_grids_is_resampled_as_timm_does_it(source, target, prefix, relative):
    old, new = Table(*source, prefix, relative), Table(*target, prefix, relative)
    table = positions(old)
    got = resample(table, old, new)
    assert torch.equal(got, resampled_by_timm(table, old, new))
    kept = got[new.rows - prefix :] if relative else got[0, :prefix]
    assert torch.equal(kept, table[old.rows - prefix :] if relative else table[0, :prefix])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "largest"), [("vit", 8), ("beit", 5)])
def test_every_pair_of_grids_is_resampled_or_refused(family, largest, monkeypatch):
    """All pairs of grids up to `largest`, of ViT's absolute and BEiT's relative positions. A grid that
    is known gives timm's resampling; one that is not, that of a square that the output tells of, or a
    refusal that names the way out."""
    grids = list(itertools.product(range(1, largest + 1), repeat=2))
    made = {grid: encoder_on(family, grid) for grid in grids}
    monkeypatch.setattr(
        geometry, "encoder_of", lambda c: made[c.img_size[0] // 4, c.img_size[1] // 4][1]
    )
    name = {"vit": "pos_embed", "beit": "blocks.0.attn.relative_position_bias_table"}[family]
    tables = {grid: tables_of(encoder.backbone)[name] for grid, (_, encoder) in made.items()}
    count = dict.fromkeys(("pairs", "resampled", "refused"), 0)
    for source, target in itertools.permutations(grids, 2):
        if source[0] == source[1] and target[0] == target[1]:
            continue
        count["pairs"] += 1
        (config, encoder), true, new = made[target], tables[source], tables[target]
        table = positions(true)
        state = {f"encoder.backbone.{name}": table}
        known, notes = fit_tables(
            state, encoder.backbone, config,
            img_size=(source[0] * 4, source[1] * 4), window=None, where="file",
        )  # fmt: skip
        expected = resampled_by_timm(table, true, new)
        assert torch.equal(known[f"encoder.backbone.{name}"], expected), (source, target)
        try:
            guessed, notes = fit_tables(
                state, encoder.backbone, config, img_size=None, window=None, where="file"
            )
        except UserError as error:
            count["refused"] += 1
            square = square_table(true.rows, true)
            assert "--source-img-size" in str(error)
            assert square is None or (true.rows == new.rows and square != new), (source, target)
            continue
        count["resampled"] += 1
        square = square_table(true.rows, true)
        told = f"{square.height}x{square.width}" in "".join(notes) and "square" in "".join(notes)
        assert told or square == new, (source, target)
        expected = resampled_by_timm(table, square, new)
        assert torch.equal(guessed[f"encoder.backbone.{name}"], expected), (source, target)
    assert count["pairs"] == (largest**2) * (largest**2 - 1) - largest * (largest - 1)
    assert count["resampled"] + count["refused"] == count["pairs"] and count["refused"]


def positions(table):
    """Random values for every place of a table."""
    shape = (table.rows, 2) if table.relative else (1, table.rows, 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(table.rows))


def resampled_by_timm(values, source, target):
    if source == target:
        return values
    old, new = source[:2], target[:2]
    if target.relative:
        return layers.resize_rel_pos_bias_table(values, new, (target.rows, 2), old)
    return layers.resample_abs_pos_embed(values, new, old, num_prefix_tokens=target.prefix)


def encoder_on(family, grid):
    arguments = {"patch_size": 4, "embed_dim": 2, "depth": 1, "num_heads": 2}
    config = PretrainConfig(
        encoder={"vit": "vit_tiny_patch16_224", "beit": "beit_base_patch16_224"}[family],
        encoder_args=arguments,
        img_size=(grid[0] * 4, grid[1] * 4),
    )
    with torch.device("meta"):
        return config, encoder_of(config)


CASES = [
    # family, images of the file, images of ours
    ("vit", (32, 32), (64, 32)),
    ("vit", (16, 64), (32, 32)),
    ("vit", (32, 64), (64, 32)),
    ("beit", (32, 64), (64, 32)),
    ("beit", (32, 32), (16, 48)),
    ("swin", (32, 32), (32, 64)),
    ("swin", (16, 64), (64, 16)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "old", "new"), CASES)
@pytest.mark.parametrize("project", ["timm", "simmim"])
def test_the_command(family, old, new, project, tmp_path, capsys):
    """Between encoders of two image sizes: as `set_input_size` or timm's functions do it."""
    name, arguments = ENCODERS[family]
    settings = PretrainConfig(encoder=name, encoder_args=arguments, img_size=old)
    model = build_model(settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    source, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    if project == "simmim":  # which says its own geometry
        checkpoint.save_model(source, settings.to_json(), model.state_dict())
    else:
        theirs = checkpoints.from_simmim(model.state_dict(), "timm")
        safetensors.torch.save_file({k: v.contiguous() for k, v in theirs.items()}, source)
    pairs = [str(part) for pair in arguments.items() for part in pair]
    command = ["import", "--source", source, "--out", out, "--overwrite", "--encoder", name]
    command += ["--img-size", *new, "--encoder-args", *pairs]
    if project == "timm" and old[0] != old[1]:
        status, _, err = run(capsys, *command)
        guessable = family == "vit" and old == (16, 64)  # 2 x 8 patches look like 4 x 4
        assert guessable or (status == 2 and "--source-img-size" in err)
        command += ["--source-img-size", *old]
    status, _, err = run(capsys, *command)
    assert (status, err) == (0, "")
    found = checkpoint.load(out)["model"]
    ours = encoder_of(PretrainConfig(encoder=name, encoder_args=arguments, img_size=new)).backbone
    target, grids = tables_of(ours), tables_of(model.encoder.backbone)
    assert target
    for table, grid in target.items():
        before = model.encoder.backbone.get_parameter(table)
        expected = resample(before.detach(), grids[table], grid)
        assert torch.equal(found[f"encoder.backbone.{table}"], expected), table


def test_a_size_that_the_file_does_not_have(tmp_path, capsys):
    model = build_model(
        PretrainConfig(encoder=ENCODERS["vit"][0], encoder_args=ENCODERS["vit"][1], img_size=32)
    )
    theirs = checkpoints.from_simmim(model.state_dict(), "timm")
    safetensors.torch.save_file(theirs, tmp_path / "a.safetensors")
    name, arguments = ENCODERS["vit"]
    pairs = [str(part) for pair in arguments.items() for part in pair]
    status, _, err = run(
        capsys, "import", "--source", tmp_path / "a.safetensors", "--source-img-size", 64,
        "--encoder", name, "--img-size", 32, "--encoder-args", *pairs,
    )  # fmt: skip
    assert status == 2
    assert re.search(r"pos_embed has 17 rows, not the 65 of grid 8x8: check --source-img-size", err)


@pytest.mark.parametrize(("rows", "prefix", "relative", "side"), [
    (197, 1, False, 14), (196, 1, False, None), (1, 1, False, None), (0, 0, False, None),
    (172, 3, True, 7), (169, 0, True, 7), (64, 0, True, None), (4, 3, True, 1),
])  # fmt: skip
def test_plain_squares(rows, prefix, relative, side):
    found = square_table(rows, Table(9, 9, prefix, relative))
    assert found == (side and Table(side, side, prefix, relative))


def test_wrong_rows_and_prefixes_are_errors():
    table = torch.zeros(1, 17, 2)
    for source, target in (
        (Table(4, 5, 1, False), Table(4, 4, 1, False)),
        (Table(4, 4, 1, False), Table(4, 4, 2, False)),
        (Table(4, 4, 1, True), Table(4, 4, 1, True)),
    ):
        with pytest.raises(ValueError, match="rows"):
            resample(table, source, target)
