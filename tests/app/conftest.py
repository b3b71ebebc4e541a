"""Small folders of images and small runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("timm", reason="the application needs the extra [train]")
pytest.importorskip("lightning_fabric", reason="the application needs the extra [train]")

from matplotlib.figure import Figure
from PIL import Image

from simmim.config.pretrain import PretrainConfig
from simmim.training.pretrain import Trainer

from .runs import kill_started

ROOT = Path(__file__).resolve().parents[2]

#: the files whose tests look at pictures
DRAWN = {
    *("test_labels", "test_learn", "test_mae", "test_names", "test_reconstruct", "test_run_folder"),
    "test_stats",
}
#: a transformer that trains in milliseconds, with every kind of randomness that a run can have
TINY = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "proj_drop_rate": 0.1,
    },
    "drop_path": 0.2,
    "img_size": 32,
    "mask_unit": 8,
    "precision": "32-true",
    "device": "cpu",
    "workers": 0,
    "warmup_epochs": 0,
    "lr": 1e-1,
}


def smooth_image(number: int, height: int, width: int) -> np.ndarray:
    """A colour gradient with a disc, different for each number, ``uint8 (H, W, 3)``."""
    y, x = np.mgrid[0:height, 0:width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (5 + 3 * number) ** 2
    image = np.stack([x * 2, y * 2, (x + y + 40 * number) % 256], axis=-1).astype(np.uint8)
    image[disc] = (250 - 20 * number, 30 * number % 256, 90)
    return image


def write_photographs(folder: Path) -> Path:
    """Eight small images in two subfolders."""
    for number in range(8):
        path = folder / f"part{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_image(number, 40 + number, 60)).save(path)
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs")


def write_labelled(folder: Path) -> Path:
    """Three classes of six images that differ in brightness."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "gray", "light")):
        for image in range(6):
            pixels = 40 + 80 * number + rng.integers(-30, 30, (36, 40, 3))
            path = folder / name / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "labelled")


@pytest.fixture
def pretrained(photographs, tmp_path) -> Path:
    config = PretrainConfig(
        data=photographs, out=tmp_path / "pretrained", batch_size=8, epochs=1, **TINY
    )
    return Trainer(config).fit().checkpoint


@pytest.fixture
def small_drive(tmp_path):
    """A real file system of 64 KiB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def simmim():
    """Run ``python -m simmim`` in a process of its own."""

    def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), env=environment(), text=True, capture_output=True, timeout=timeout
        )

    return run


@pytest.fixture
def start_simmim():
    """Start ``python -m simmim`` in a process of its own, which ends with the test."""
    processes = []

    def start(*arguments: object, **options: object) -> subprocess.Popen:
        processes.append(subprocess.Popen(command(*arguments), env=environment(), **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def blank_pictures(request, monkeypatch):
    """Saves every picture without its axes and texts, which take longer to draw than a small run to
    train; but for the files that test pictures."""
    if request.path.stem in DRAWN:
        return
    genuine = Figure.savefig

    def save(figure: Figure, *arguments: object, **options: object) -> None:
        genuine(figure.clear() or figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture(autouse=True)
def no_run_is_left():
    yield
    kill_started()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "simmim", *map(str, arguments)]


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(scope="module")
def no_cache_of_the_users(tmp_path_factory):
    """datasets keeps an Arrow copy of parquet files."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before
