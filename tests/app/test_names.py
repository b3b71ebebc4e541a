"""File names may hold any bytes."""

from __future__ import annotations

import os
import shutil

import pytest

from simmim.cli import main
from simmim.storage import checkpoint

from .pictures import find_images
from .test_cli import FAST


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_names_of_any_bytes(photographs, tmp_path, capsys):
    odd = os.fsdecode(b"caf\xe9 \xff\n\x1b[31m")
    data = tmp_path / f"data{odd}"
    for number, path in enumerate(find_images(photographs)):
        target = data / (odd, "$\\alpha_{1}$ a_b^c{")[number % 2] / f"{number}{odd}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    broken = data / odd / f"9{odd}.png"
    broken.write_bytes(b"")
    out = tmp_path / f"out{odd}"
    settings = ("--data", data, "--out", out / "run", *FAST, "--epochs", 1, "--val-count", 2)
    arguments = ("pretrain", *settings, "--keep-rest", "--picture", 1)
    assert main([str(a) for a in arguments]) == 0
    assert r"caf\udce9 \udcff\n\x1b[31m.png: an empty file" in capsys.readouterr().err
    path = out / "run" / "checkpoints" / "last.pt"
    assert checkpoint.load(path)["counters"]["bad"] == {str(broken): "an empty file"}
    assert list((out / "run" / "tensorboard").glob("events.*"))
    small = ("--workers", 0, "--device", "cpu", "--checkpoint", path)
    for arguments in (
        ("pretrain", *settings, "--keep-rest", "--resume"),
        ("probe", "--data", data, "--out", out / "probe", *small),
        (
            "finetune",
            "--data",
            data,
            "--out",
            out / "tuned",
            *small,
            "--epochs",
            1,
            "--batch-size",
            4,
        ),
        ("reconstruct", "--data", data, "--checkpoint", path, "--out", out / f"{odd}.png"),
    ):
        assert main([str(a) for a in arguments]) == 0, arguments
    assert (out / "probe" / "confusion.png").stat().st_size > 1000
