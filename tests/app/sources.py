"""Every source of images, written by the formats' own libraries."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import tifffile
import webdataset
from PIL import Image

from simmim.config.images import Reading
from simmim.config.pretrain import PretrainConfig

from .conftest import TINY, smooth_image

COUNT = 8
SIZE = 40, 48
PICTURES = [smooth_image(number, *SIZE) for number in range(COUNT)]
RNG = np.random.default_rng(0)
#: ``(N, C, H, W)``: four bands of 16 bits
BANDS = RNG.integers(0, 5000, (COUNT, 4, *SIZE), np.uint16)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    for number, pixels in enumerate(PICTURES):
        (folder / f"{number}.png").write_bytes(png(pixels))
    return sorted(folder.iterdir())


def write_folder(at: Path) -> Path:
    write_pictures(at / "data")
    return at / "data"


def write_tiffs(at: Path) -> Path:
    (at / "data").mkdir()
    for number, pixels in enumerate(BANDS):
        tifffile.imwrite(
            at / f"data/{number}.tif", pixels, planarconfig="separate", photometric="minisblack"
        )
    return at / "data"


def write_npy_files(at: Path) -> Path:
    (at / "data").mkdir()
    for number, pixels in enumerate(BANDS):
        np.save(at / f"data/{number}.npy", pixels.transpose(1, 2, 0))
    return at / "data"


def write_txt(at: Path) -> Path:
    paths = write_pictures(at / "pictures")
    lines = [path.relative_to(at) if n % 2 else path for n, path in enumerate(paths)]
    (at / "list.txt").write_text("\n".join(map(str, lines)) + "\n\n")
    return at / "list.txt"


def write_csv(at: Path) -> Path:
    paths = write_pictures(at / "pictures")
    with (at / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path"])
        writer.writerows([n, path.relative_to(at)] for n, path in enumerate(paths))
    return at / "list.csv"


def write_list_parquet(at: Path) -> Path:
    paths = write_pictures(at / "pictures")
    pandas.DataFrame({"label": range(COUNT), "path": [str(p) for p in paths]}).to_parquet(
        at / "list.parquet"
    )
    return at / "list.parquet"


def write_npy(at: Path) -> Path:
    np.save(at / "images.npy", BANDS)
    return at / "images.npy"


def write_npy_last(at: Path) -> Path:
    np.save(at / "images.npy", BANDS.transpose(0, 2, 3, 1))
    return at / "images.npy"


def write_npz(at: Path) -> Path:
    np.savez(at / "images.npz", images=BANDS, labels=np.arange(COUNT))
    return at / "images.npz"


def write_compressed_npz(at: Path) -> Path:
    np.savez_compressed(at / "images.npz", BANDS.transpose(0, 2, 3, 1))
    return at / "images.npz"


def write_zarr(at: Path) -> Path:
    zarr = pytest.importorskip("zarr", reason="needs Python 3.11")
    array = zarr.open(
        str(at / "images.zarr"), mode="w", shape=BANDS.shape, chunks=(1, 4, 16, 16), dtype="uint16"
    )
    array[:] = BANDS
    return at / "images.zarr"


def write_zarr_group(at: Path) -> Path:
    zarr = pytest.importorskip("zarr", reason="needs Python 3.11")
    zarr.save_group(str(at / "group"), images=BANDS.transpose(0, 2, 3, 1))
    return at / "group"


def write_shards(at: Path) -> Path:
    (at / "data").mkdir()
    with webdataset.ShardWriter(str(at / "data/%04d.tar"), maxcount=3, verbose=0) as writer:
        for number, pixels in enumerate(PICTURES):
            sample = {"__key__": f"{number:05d}", "png": png(pixels), "cls": number}
            writer.write(sample)
    return at / "data"


def write_tar_of_tiffs(at: Path) -> Path:
    write_tiffs(at)
    with tarfile.open(at / "images.tar", "w") as archive:
        archive.add(at / "data", "data")
    shutil.rmtree(at / "data")
    return at / "images.tar"


def write_image_parquet(at: Path) -> Path:
    (at / "data").mkdir()
    for part in range(2):
        rows = [Image.fromarray(p) for p in PICTURES[part * 4 : part * 4 + 4]]
        table = datasets.Dataset.from_dict({"image": rows, "label": list(range(4))})
        table.to_parquet(str(at / f"data/{part}.parquet"))
    return at / "data"


def write_bytes_parquet(at: Path) -> Path:
    pandas.DataFrame({"content": [png(p) for p in PICTURES], "text": "x"}).to_parquet(
        at / "images.parquet"
    )
    return at / "images.parquet"


def write_large_parquet(at: Path) -> Path:
    """Contents as polars writes them."""
    content = pyarrow.array([png(p) for p in PICTURES], pyarrow.large_binary())
    table = pyarrow.table({"content": content, "text": ["x"] * COUNT})
    pyarrow.parquet.write_table(table, at / "images.parquet")
    return at / "images.parquet"


def write_saved_images(at: Path) -> Path:
    paths = [str(path) for path in write_pictures(at / "pictures")]
    table = datasets.Dataset.from_dict({"image": paths, "label": list(range(COUNT))})
    table.cast_column("image", datasets.Image()).save_to_disk(str(at / "saved"))
    return at / "saved"


def write_saved_arrays(at: Path) -> Path:
    features = datasets.Features({"bands": datasets.Array3D((4, *SIZE), "uint16")})
    table = datasets.Dataset.from_dict({"bands": list(BANDS)}, features)
    table.save_to_disk(str(at / "saved"))
    return at / "saved"


def write_scene(at: Path) -> Path:
    scene = np.concatenate(BANDS, 1)
    tifffile.imwrite(
        at / "scene.tif", scene, planarconfig="separate", photometric="minisblack", tile=(16, 16)
    )
    return at / "scene.tif"


COLOURS: dict[str, Callable[[Path], Path]] = {
    "folder": write_folder,
    "list, txt": write_txt,
    "list, csv": write_csv,
    "list, parquet": write_list_parquet,
    "tar shards": write_shards,
    "parquet of images": write_image_parquet,
    "parquet of bytes": write_bytes_parquet,
    "parquet of large bytes": write_large_parquet,
    "saved dataset of images": write_saved_images,
}
MULTISPECTRAL: dict[str, Callable[[Path], Path]] = {
    "folder of TIFF": write_tiffs,
    "folder of npy": write_npy_files,
    "npy, channels first": write_npy,
    "npy, channels last": write_npy_last,
    "npz": write_npz,
    "compressed npz": write_compressed_npz,
    "zarr": write_zarr,
    "zarr group": write_zarr_group,
    "tar of TIFF": write_tar_of_tiffs,
    "saved dataset of arrays": write_saved_arrays,
}


def write(name: str, at: Path) -> Path:
    at.mkdir(exist_ok=True)
    return {**COLOURS, **MULTISPECTRAL}[name](at)


def wanted(name: str) -> Reading:
    return Reading() if name in COLOURS else Reading(4, dtype="uint16")


def settings(name: str, at: Path, **changes) -> PretrainConfig:
    bands = {}
    if name not in COLOURS:
        mean, std = BANDS.mean((0, 2, 3)).tolist(), BANDS.std((0, 2, 3)).tolist()
        bands = {"channels": 4, "pixel_type": "uint16", "mean": tuple(mean), "std": tuple(std)}
    settings = {"data": write(name, at), "batch_size": 4, "epochs": 2, **TINY, **bands, **changes}
    return PretrainConfig(**settings)


def table_at(path: Path, values: list) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"images": values}), path)
    return path


def shards_at(folder: Path, compression: str) -> Path:
    folder.mkdir(exist_ok=True)
    suffix = f"tar.{compression}".rstrip(".")
    with webdataset.TarWriter(str(folder / f"{len(list(folder.iterdir()))}.{suffix}")) as writer:
        writer.write({"__key__": "0", "png": png(PICTURES[0])})
    return folder
