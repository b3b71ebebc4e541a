"""``make learn``: does pre-training teach an encoder anything? On real images, without a download.

scikit-learn's 1797 handwritten digits, enlarged threefold, a quarter of them held out to test on. An
encoder is pre-trained on the others without their labels; then a linear probe, nearest neighbours and
fine-tuning get ten labels of each class. The same is done with the kernels, with the published
arithmetic (``--plain``), and with random weights, from the same seeds.

Settings are chosen with ``--choose``, which leaves the test digits out and measures on another quarter.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from experiments.learn_page import LABELS, STARTS, Record, picture, report, table
from simmim.config.images import Reading
from simmim.config.labels import FinetuneConfig, ProbeConfig
from simmim.config.pretrain import PretrainConfig
from simmim.data.classes import split_classes
from simmim.data.images import read_image
from simmim.evaluation.probe import measure as measure_features
from simmim.evaluation.probe import probe
from simmim.training.finetune import Finetuner
from simmim.training.pretrain import Trainer

RESULTS = Path(__file__).parents[1] / "docs" / "learn"
#: enlarged by a whole number, so that a patch of 4 px never shares a digit's pixel unevenly
SIDE = 24
#: of each four digits in a row, the one to test on, and the one on which settings were chosen
TEST, CHOICE = 2, 0
ENCODER = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
    "img_size": SIDE,
    "channels": 1,
}
#: digits are not mirrored, and lie in the middle
SHARED = {
    "flip": 0.0,
    "crop_scale": (0.7, 1.0),
    "workers": 0,
    "cache": True,
    "device": "cpu",
    "precision": "32-true",
    "overwrite": True,
    "save_every": 10**6,
    "log_every": 0,
}
PRETRAIN = {
    "mask_unit": 4,
    "mask_ratio": 0.7,
    "epochs": 50,
    "val_every": 1000,
    "warmup_epochs": 5,
    "batch_size": 64,
    "lr": 8e-3,
    "min_lr": 1e-5,
}
FINETUNE = {
    "per_class": LABELS,
    "epochs": 150,
    "val_every": 1000,
    "warmup_epochs": 5,
    "batch_size": 50,
    "lr": 3e-2,
    "layer_decay": 1.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


def write_digits(folder: Path, choosing: bool) -> tuple[Path, Path]:
    """The digits as PNG files, one folder per class: those to train on, and those held out.

    Args:
        choosing: hold out the digits on which settings are chosen, and write none of the test's.
    """
    shutil.rmtree(folder, ignore_errors=True)
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if choosing and number % 4 == TEST:
            continue
        part = "test" if number % 4 == (CHOICE if choosing else TEST) else "train"
        path = folder / part / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8))
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return folder / "train", folder / "test"


def measure(start: str, seed: int, out: Path, train: Path, test: Path) -> Record:
    """Pre-train where ``start`` says so, then probe and fine-tune."""
    if start == "pixels":
        return measure_pixels(seed, train, test)
    out = out / f"{start}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    data = {"data": train, "val_data": test, "seed": seed}
    origin, validation = ENCODER, None
    if start != "random":
        config = PretrainConfig(
            **data,
            **ENCODER,
            **SHARED,
            **PRETRAIN,
            out=out / "pretrain",
            plain=start == "plain",
        )
        with _log(out / "pretrain.log"):
            summary = Trainer(config).fit()
        origin, validation = {"checkpoint": summary.checkpoint}, summary.counters.last_validation
    few = ProbeConfig(
        **data, **origin, out=out / "probe", per_class=LABELS, neighbours=5, workers=0, device="cpu"
    )
    _, (result,) = probe(few)
    _, (result_all,) = probe(dataclasses.replace(few, out=out / "probe-all", per_class=0))
    tuning = FinetuneConfig(**data, **origin, **SHARED, **FINETUNE, out=out / "finetune")
    with _log(out / "finetune.log"):
        accuracy = Finetuner(tuning).fit().counters.accuracy
    return Record(
        start=start,
        seed=seed,
        linear=result.linear,
        neighbours=result.neighbours,
        finetuned=accuracy,
        linear_all=result_all.linear,
        validation=validation,
        seconds=time.process_time() - began,
    )


def measure_pixels(seed: int, train: Path, test: Path) -> Record:
    """The same classifiers on raw pixels."""
    began = time.process_time()
    few = ProbeConfig(data=train, val_data=test, seed=seed, per_class=LABELS, neighbours=5)
    results = []
    for config in (few, dataclasses.replace(few, per_class=0)):
        classes = split_classes(config)
        sides = []
        for part in (classes.train, classes.test):
            pixels = [read_image(path, Reading(1)).numpy().ravel() for path in part.paths]
            sides += [np.stack(pixels) / 255, part.labels.numpy()]
        results.append(measure_features(0, *sides, len(classes.names), config))
    return Record(
        start="pixels",
        seed=seed,
        linear=results[0].linear,
        neighbours=results[0].neighbours,
        linear_all=results[1].linear,
        finetuned=None,
        validation=None,
        seconds=time.process_time() - began,
    )


@contextlib.contextmanager
def _log(path: Path):
    """Keep a run's progress in a file, for those who want to look."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        yield
    path.write_text(text.getvalue())


def run(seeds: int, out: Path, choosing: bool) -> dict:
    """Measure everything, a start and a seed to a core; returns what ``learn.json`` holds."""
    began = time.perf_counter()
    train, test = write_digits(out / "digits", choosing)
    tasks = [(start, seed, out, train, test) for seed in range(seeds) for start in STARTS]
    records = []
    # a model this small gains nothing from threads
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, torch.set_num_threads, (1,)) as pool:
        for record in pool.map(measure, *zip(*tasks, strict=True)):
            records.append(dataclasses.asdict(record))
            print(record, flush=True)
    return {
        "minutes": (time.perf_counter() - began) / 60,
        "cpu_minutes": sum(record["seconds"] for record in records) / 60,
        "processes": os.cpu_count(),
        "torch": torch.__version__,
        "records": records,
    }


def main() -> None:
    """Measure, or read what was measured, and write the page and the plot."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/learn"), help="for the runs")
    parser.add_argument("--redraw", action="store_true", help="only write page and plot anew")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="measure on the digits for choosing settings; print the table and write no page",
    )
    options = parser.parse_args()
    if options.choose:
        found = run(options.seeds, options.out / "choose", choosing=True)
        print(f"\n{table([Record(**record) for record in found['records']])}")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    stored = RESULTS / "learn.json"
    if not options.redraw:
        stored.write_text(json.dumps(run(options.seeds, options.out, False), indent=1) + "\n")
    found = json.loads(stored.read_text())
    records = [Record(**record) for record in found["records"]]
    picture(records, RESULTS / "learn.png")
    (RESULTS / "README.md").write_text(report(found, PRETRAIN["epochs"], FINETUNE["epochs"]))
    print(f"\n{table(records)}\n\nwrote {RESULTS / 'README.md'}")


if __name__ == "__main__":
    main()
