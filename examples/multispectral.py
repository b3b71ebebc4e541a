"""Pre-training on GeoTIFF files of 13 bands, as of Sentinel-2, from the command line.

Scenes of 16-bit reflectances are made up and written; then each command is run as it is printed. With
scenes of your own only the folder changes.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch.nn import functional as F

BANDS = 13
#: what GDAL calls a pixel without data
NODATA = 0


def write_scenes(folder: Path, count: int, height: int, width: int) -> None:
    """GeoTIFF files of four materials, mixed, with a spectrum each; a corner holds no data."""
    folder.mkdir()
    torch.manual_seed(0)
    spectra = 500 + torch.rand(4, BANDS) * 6000
    shares = F.interpolate(torch.randn(count, 4, 6, 6) * 3, size=(height, width), mode="bicubic")
    scenes = torch.einsum("nmhw,mc->nchw", shares.softmax(1), spectra).numpy().astype(np.uint16)
    scenes[:, :, : height // 8, : width // 8] = NODATA
    tags = [
        # 10 m a pixel, from a corner in UTM zone 32 north (EPSG:32632)
        (33550, "d", 3, (10.0, 10.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 500_000.0, 5_300_000.0, 0.0), True),
        (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632), True),
        (42113, "s", 0, str(NODATA), True),
    ]
    for number, scene in enumerate(scenes):
        options = {"photometric": "minisblack", "planarconfig": "separate", "compression": "zlib"}
        tifffile.imwrite(folder / f"{number:03d}.tif", scene, extratags=tags, **options)


def run(command: str) -> None:
    print(f"$ {command}", flush=True)
    subprocess.run([sys.executable, "-m", *shlex.split(command)], check=True)


def main(steps: int = 60, height: int = 120, width: int = 96, batch: int = 8) -> list[float]:
    with tempfile.TemporaryDirectory() as place:
        scenes, stats, out = (f"{place}/{name}" for name in ("scenes", "stats.json", "run"))
        write_scenes(Path(scenes), 6 * batch, height, width)
        run(f"simmim stats --data {scenes} --nodata {NODATA} --out {stats}")
        run(
            f"simmim pretrain --data {scenes} --stats {stats} --out {out} --img-size {height} {width} "
            "--encoder vit_tiny_patch16_224 --encoder-args patch_size 12 depth 3 --mask-unit 24 "
            f"--batch-size {batch} --epochs {steps // 5} --val-count {batch} --val-every {steps} "
            "--lr 6e-2 --warmup-epochs 1 --precision 32-true --log-every 1 --device cpu "
            "--picture 2 --show-bands 4 3 2"
        )
        run(
            f"simmim export --checkpoint {out}/checkpoints/last.pt --project timm --out {place}/vit.pt"
        )
        with open(f"{out}/metrics.csv", newline="") as file:
            losses = [float(r["loss"]) for r in csv.DictReader(file) if r["split"] == "train"]
    for step in range(0, len(losses), 10):
        print(f"step {step}: loss {losses[step]:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
