"""Every command line of the documentation runs, in the order in which a reader meets them."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import tifffile
import timm
import torch
import webdataset
from PIL import Image
from torch.distributed.run import parse_args as parse_torchrun

from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.models.build import build_model
from simmim_kernels.integrations import checkpoints

from .conftest import smooth_image

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINE = re.compile(r"^ {4}((?:(?:torchrun|srun) .*-m )?simmim [^#\n]*)", re.MULTILINE)
#: what stands for a name that the reader puts in, and what keeps a run short
INSTEAD = {
    "FILE_OR_FOLDER": "timm.pth",
    "NAME": "vit_tiny_patch16_224 --encoder-only",
    "vit_small_patch16_224": "vit_tiny_patch16_224",
    "vit_base_patch16_224": "vit_tiny_patch16_224",
    "simmim_swin_base": "simmim_swin_base --encoder-args embed_dim 16 depths 1,1,1,1 num_heads 1,2,4,8",
}
SHORT = {"--epochs": "1", "--batch-size": "16", "--workers": "0", "--img-size": "64"}
DECODER = {"--decoder-width": "64", "--decoder-depth": "1", "--decoder-heads": "2"}
SMALL = SHORT | {"--encoder": "vit_tiny_patch16_224", "--mask-unit": "16", "--accumulate": "1"}


def lines_of(page: Path) -> list[str]:
    """The command lines of a page, with what they leave to choose in brackets taken."""
    text = re.sub(r"\\\n +", "", page.read_text())  # lines that go on in the next one
    return [re.sub(r"[\[\]]", "", line).strip() for line in LINE.findall(text)]


def prepare(line: str, number: int) -> list[str]:
    """The words of a line for a short run, whose results are not in the way of another one's."""
    for name, value in INSTEAD.items():
        line = re.sub(rf"(?<![\w-]){re.escape(name)}(?!\w)", value, line)
    words = shlex.split(line)
    command = words[words.index("simmim") + 1]
    if command == "pretrain":
        short = SHORT if "--resume" in words else SMALL
        for flag, value in (short | DECODER if "mae" in line else short).items():
            if flag not in words:
                words += [flag, value]
    elif command == "finetune":
        words += ["--epochs", "1", "--workers", "0"]
    if "--resume" not in words and "--verify" not in words:
        if "--out" not in words and command in ("pretrain", "finetune"):
            words += ["--out", f"runs/{number}"]
        if "--out" in words:
            out = Path(words[words.index("--out") + 1])
            shutil.rmtree(out, ignore_errors=True)
            out.unlink(missing_ok=True)
    return words


def write_what_pages_name(folder: Path) -> None:
    for number in range(36):
        for name in ("FOLDER", "SOURCE"):
            path = folder / name / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(smooth_image(number % 12, 72, 80)).save(path)
        path = folder / "SCENES" / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        bands = np.random.default_rng(number).integers(0, 4000, (5, 72, 80), np.uint16)
        tifffile.imwrite(path, bands, planarconfig="separate", photometric="minisblack")
    files = sorted((folder / "FOLDER").glob("*/*"))
    table = {"path": files, "species": [path.parent.name for path in files]}
    pandas.DataFrame(table).to_csv(folder / "table.csv")
    (folder / "SHARDS").mkdir()
    with webdataset.ShardWriter(str(folder / "SHARDS/%04d.tar"), maxcount=30, verbose=0) as writer:
        for number, path in enumerate(files):
            content = {"png": path.read_bytes(), "cls": number % 2}
            writer.write({"__key__": str(number), **content})
    arrays = {}
    for part, count in (("train", 36), ("val", 8), ("test", 8)):
        arrays[f"{part}_images"] = np.stack(
            [smooth_image(number % 12, 28, 28)[..., 0] for number in range(count)]
        )
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
    np.savez_compressed(folder / "breastmnist.npz", **arrays)
    vit = timm.create_model("vit_tiny_patch16_224")
    torch.save(vit.state_dict(), folder / "timm.pth")
    small = {"embed_dim": 16, "depths": "1,1,1,1", "num_heads": "1,2,4,8"}
    model = build_model(
        PretrainConfig(encoder="simmim_swin_base", encoder_args=small, img_size=192)
    )
    theirs = checkpoints.from_simmim(model.state_dict(), "microsoft")
    torch.save({"model": theirs}, folder / "simmim_pretrain__swin_base.pth")


@pytest.mark.slow
def test_every_command_line_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_what_pages_name(tmp_path)
    lines = [(page.name, line) for page in PAGES for line in lines_of(page)]
    assert len(lines) > 12
    trained = set()
    for number, (page, line) in enumerate(lines):
        if " pretrain " in line and line in trained:  # on a page before
            continue
        trained.add(line)
        words = prepare(line, number)
        if words[0] == "torchrun":  # test_processes.py runs one
            asked = parse_torchrun(words[1:])
            assert asked.module and asked.training_script == "simmim"
            words = ["simmim", *asked.training_script_args]
        if words[0] == "srun":  # test_launchers.py has what it tells the processes
            assert words[words.index("simmim") - 2 :][:2] == ["python", "-m"]
            words = words[words.index("simmim") :]
        status = main(words[1:])
        said = "".join(capsys.readouterr())
        assert status == 0, f"{page}: {line}\n{shlex.join(words)}\n{said}"
