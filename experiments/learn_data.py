"""The task of ``make learn``: which of ten kinds of clothes does a noisy photograph show?

The photographs are Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), 28 x 28 px in gray. Each is turned, moved
and scaled, and gets noise, so that no pixel has a meaning of its own.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.feature import hog, local_binary_pattern
from torchvision.datasets import FashionMNIST

#: of the images that are made, in pixels
SIDE = 32
#: gray levels: mean and deviation of the images, and the deviation of the noise that they hold
MEAN, STD, NOISE = 90.0, 99.0, 170.0
#: largest turn in degrees and shift in pixels, and the limits of the scale
TURN, SHIFT, SCALE = 25.0, 4.0, (0.8, 1.15)
#: whether a part comes from the file to train on, its first photograph there, and images of each class
PARTS = {"train": (True, 0, 2000), "choose": (True, 50_000, 300), "test": (False, 0, 1000)}
#: where Debian's package of that name has the photographs
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
#: pixels of the smoothing before classical features that noise would hide
BLUR = 2.5


def get_photographs(folder: Path) -> dict[bool, FashionMNIST]:
    """The photographs to train on (``True``) and to test on, unpacked in ``folder``.

    They come from Debian's package, installed or fetched, and elsewhere from where torchvision gets them.
    """
    raw = folder / "FashionMNIST" / "raw"
    if not raw.exists() and (packed := _find_package(folder)):
        part = raw.with_name("part")  # which an interrupt leaves behind
        part.mkdir(parents=True, exist_ok=True)
        for path in packed.glob("*.gz"):
            (part / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        part.rename(raw)
    return {train: FashionMNIST(folder, train, download=True) for train in (True, False)}


def _find_package(folder: Path) -> Path | None:
    """Debian's files, fetched into ``folder`` unless they are installed; None where there is no Debian."""
    if INSTALLED.exists():
        return INSTALLED
    if not shutil.which("apt-get"):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    impatient = ("-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=0")
    subprocess.run(["apt-get", "download", "-q", *impatient, PACKAGE], cwd=folder, check=False)
    for path in folder.glob(f"{PACKAGE}_*.deb"):
        subprocess.run(["dpkg-deb", "-x", path.name, "debian"], cwd=folder, check=True)
        return folder / "debian" / INSTALLED.relative_to("/")
    return None


def write_images(folder: Path, photographs: Path, parts: tuple[str, ...]) -> list[Path]:
    """Write the images of ``parts`` as PNG files, one folder per class in one of each part; returns
    those of the parts.

    Args:
        folder: for the images; what is there is removed.
        photographs: folder for Fashion-MNIST's files.
    """
    shutil.rmtree(folder, ignore_errors=True)
    sources = get_photographs(photographs)
    for part in parts:
        train, first, count = PARTS[part]
        source = sources[train]
        labels = source.targets[first:].numpy()
        for number, name in enumerate(source.classes):
            out = folder / part / name.replace("/", " or ")
            out.mkdir(parents=True)
            for index in first + np.flatnonzero(labels == number)[:count]:
                rng = np.random.default_rng((train, index))
                image = distort(source.data[index].numpy(), rng)
                Image.fromarray(image).save(out / f"{index:05d}.png", compress_level=1)
    return [folder / part for part in parts]


def distort(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image ``uint8 (SIDE, SIDE)`` of a photograph: turned, moved, scaled, and with noise."""
    turn = np.deg2rad(rng.uniform(-TURN, TURN))
    scale = np.exp(rng.uniform(*np.log(SCALE)))
    x, y = SIDE / 2 + rng.uniform(-SHIFT, SHIFT, 2)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    middle = photograph.shape[0] / 2
    # of the photograph's pixel under each of the image's
    affine = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    moved = Image.fromarray(photograph).transform(
        (SIDE, SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    )
    noisy = np.asarray(moved, np.float64) + NOISE * rng.standard_normal((SIDE, SIDE))
    return noisy.clip(0, 255).round().astype(np.uint8)


def smoothed(images: np.ndarray) -> np.ndarray:
    """``float64`` images of ``uint8 (n, SIDE, SIDE)`` under a Gaussian of BLUR pixels."""
    return gaussian_filter(images.astype(np.float64), (0, BLUR, BLUR))


def spectrum(images: np.ndarray) -> np.ndarray:
    """Logarithms of the Fourier coefficients' sizes, ``(n, numbers)`` of ``uint8 (n, SIDE, SIDE)``."""
    return np.log(np.abs(np.fft.rfft2(images / 255 - 0.5)) + 1e-3).reshape(len(images), -1)


def gradients(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs, 2005) of the smoothed images, in cells of 8 px
    and blocks of two by two."""
    return np.stack([hog(image, 9, (8, 8), (2, 2)) for image in smoothed(images)])


def binary_patterns(images: np.ndarray) -> np.ndarray:
    """Histograms of uniform local binary patterns at three radii (Ojala et al., 2002), square roots."""
    rows = []
    for image in images:
        histograms = []
        for points, radius in ((8, 1), (16, 2), (24, 3)):
            codes = local_binary_pattern(image, points, radius, "uniform").astype(int)
            histograms.append(np.bincount(codes.ravel(), minlength=points + 2) / codes.size)
        rows.append(np.concatenate(histograms))
    return np.sqrt(np.stack(rows))


def smooth_pixels(images: np.ndarray) -> np.ndarray:
    """The pixels of the smoothed images."""
    return smoothed(images).reshape(len(images), -1) / 255


def gradients_and_pixels(images: np.ndarray) -> np.ndarray:
    """The histograms of gradients and the pixels of the smoothed images, one after the other."""
    return np.concatenate([gradients(images), smooth_pixels(images)], 1)


def pixels(images: np.ndarray) -> np.ndarray:
    """The pixels themselves."""
    return images.reshape(len(images), -1) / 255


FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gradients and pixels": gradients_and_pixels,
    "gradients": gradients,
    "smooth pixels": smooth_pixels,
    "spectrum": spectrum,
    "binary patterns": binary_patterns,
    "pixels": pixels,
}
