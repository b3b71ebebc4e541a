"""The task of ``make learn``: from which of scikit-image's pictures does a crop come?

Each of 17 pictures is a class. Its left half is there to train on, a strip right of the middle to choose
settings on, and the rest to test on, so that no pixel is in two of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import skimage
from PIL import Image
from skimage.feature import hog, local_binary_pattern

PICTURES = [
    "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "ihc", "moon", "motorcycle_left", "page", "retina", "rocket", "text",
]  # fmt: skip
#: of a crop, and of a picture's shorter side before cropping, in pixels
SIDE, SHORTER = 48, 320
#: sides of the squares that are cut out and made SIDE pixels, so that no picture has a scale of its own
CUTS = (48, 128)
#: columns of each part, as shares of a picture's width, and how many crops are cut from them
PARTS = {"train": (0.0, 0.5, 200), "choose": (0.5, 0.7, 60), "test": (0.7, 1.0, 60)}
#: gray levels: mean and deviation of every crop, and the deviation of the noise that is added
MEAN, STD, NOISE = 128.0, 40.0, 40.0


def write_crops(folder: Path, parts: tuple[str, ...]) -> list[Path]:
    """Write crops as PNG files, one folder per class in one of each part; returns those of the parts.

    A crop's own mean and deviation are taken out, so that brightness and contrast give no class away.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for number, name in enumerate(PICTURES):
        picture = _picture(name)
        for part in parts:
            left, right, count = PARTS[part]
            columns = round(left * picture.width), round(right * picture.width)
            rng = np.random.default_rng((number, list(PARTS).index(part)))
            out = folder / part / name
            out.mkdir(parents=True)
            crops = _crops(picture, columns, rng)
            for index in range(count):
                Image.fromarray(next(crops)).save(out / f"{index:03d}.png")
    return [folder / part for part in parts]


def _picture(name: str) -> Image.Image:
    """A picture of scikit-image in gray, its shorter side SHORTER pixels."""
    (path,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
    picture = Image.open(path).convert("L")
    scale = SHORTER / min(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _crops(
    picture: Image.Image, columns: tuple[int, int], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Crops ``uint8 (SIDE, SIDE)`` between two columns, without end; flat ones are left out."""
    left, right = columns
    while True:
        side = min(int(np.exp(rng.uniform(*np.log(CUTS)))), right - left)
        x = rng.integers(left, right - side + 1)
        y = rng.integers(0, picture.height - side + 1)
        box = (x, y, x + side, y + side)
        crop = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
        values = np.asarray(crop, np.float64)
        if values.std() < 4:
            continue
        values = MEAN + STD * (values - values.mean()) / values.std()
        values += NOISE * rng.standard_normal(values.shape)
        yield values.clip(0, 255).round().astype(np.uint8)


def spectrum(crops: np.ndarray) -> np.ndarray:
    """Logarithms of the Fourier coefficients' sizes, ``(n, numbers)`` of ``uint8 (n, SIDE, SIDE)``."""
    return np.log(np.abs(np.fft.rfft2(crops / 255 - 0.5)) + 1e-3).reshape(len(crops), -1)


def gradients(crops: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs, 2005), their mean over cells of 8 x 8."""
    cells = [hog(crop, 9, (8, 8), (1, 1), feature_vector=False) for crop in crops]
    return np.stack(cells).reshape(len(crops), -1, 9).mean(1)


def binary_patterns(crops: np.ndarray) -> np.ndarray:
    """Histograms of uniform local binary patterns at three radii (Ojala et al., 2002), square roots."""
    rows = []
    for crop in crops:
        histograms = []
        for points, radius in ((8, 1), (16, 2), (24, 3)):
            codes = local_binary_pattern(crop, points, radius, "uniform").astype(int)
            histograms.append(np.bincount(codes.ravel(), minlength=points + 2) / codes.size)
        rows.append(np.concatenate(histograms))
    return np.sqrt(np.stack(rows))


def pixels(crops: np.ndarray) -> np.ndarray:
    """The pixels themselves."""
    return crops.reshape(len(crops), -1) / 255


FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "binary patterns": binary_patterns,
    "spectrum": spectrum,
    "gradients": gradients,
    "pixels": pixels,
}
