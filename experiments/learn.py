"""``make learn``: does pre-training teach an encoder anything? On real photographs, on two cores.

The task is to tell what kind of clothes a noisy photograph shows (``learn_data``). Encoders are
pre-trained on the photographs without their labels, by SimMIM and by MAE, with the kernels and with the
published arithmetic (``--plain``); then they get ten labels of each class, or a hundred, for a linear
probe, for nearest neighbours and for fine-tuning. The same is measured from random weights, and
classifiers of the same kinds get classical features and raw pixels.

Settings are chosen with ``--choose``, which measures on photographs that are in no other part.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from experiments.learn_data import FEATURES, MEAN, SIDE, STD, write_images
from experiments.learn_page import LABELS, STARTS, Record, picture, report, table
from simmim.config.labels import FinetuneConfig, ProbeConfig
from simmim.config.pretrain import PretrainConfig
from simmim.data.classes import split_classes
from simmim.evaluation.probe import measure as measure_features
from simmim.evaluation.probe import probe
from simmim.training.finetune import Finetuner
from simmim.training.pretrain import Trainer

RESULTS = Path(__file__).parents[1] / "docs" / "learn"
IMAGES = {"mean": (MEAN,), "std": (STD,)}
ENCODER = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4},
    "img_size": SIDE,
    "channels": 1,
}
#: what the support vector machine chooses from, by cross-validation on the training images
CHOICES = {"svc__C": (1, 3, 10), "standardscaler": (StandardScaler(), "passthrough")}
SHARED = {
    "crop_scale": (0.8, 1.0),
    "workers": 0,
    "cache": True,
    "device": "cpu",
    "precision": "32-true",
    "overwrite": True,
    "save_every": 10**6,
    "log_every": 0,
    "val_every": 1000,
    "batch_size": 64,
}
PRETRAIN = {"warmup_epochs": 1, "min_lr": 1e-5, "mask_unit": 8}
METHODS = {
    "simmim": {"epochs": 7, "lr": 2.4e-2, "mask_ratio": 0.6},
    "mae": {
        "epochs": 13,
        "lr": 1.4e-2,
        "method": "mae",
        "target_norm": "none",
        "decoder_width": 64,
        "decoder_depth": 1,
        "decoder_heads": 4,
        "mask_ratio": 0.7,
    },
}
FINETUNE = {"warmup_epochs": 2, "lr": 1e-2, "layer_decay": 1.0, "mixup": 0.0, "cutmix": 0.0}
#: of fine-tuning, by the labels of each class
EPOCHS = {10: 60, 100: 30}


def measure(start: str, seed: int, out: Path, train: Path, test: Path) -> Record:
    """Pre-train where ``start`` says so, then probe and fine-tune; or classify classical features."""
    began = time.process_time()
    data = {"data": train, "val_data": test, "seed": seed}
    out = out / f"{start}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    origin, validation, right = ENCODER | IMAGES, None, {}
    if start not in FEATURES and start != "random":
        method, _, plain = start.partition("-")
        settings = {**SHARED, **PRETRAIN, **METHODS[method], "plain": bool(plain)}
        config = PretrainConfig(**data, **origin, **settings, out=out / "pretrain")
        with _log(out / "pretrain.log"):
            summary = Trainer(config).fit()
        origin = {"checkpoint": summary.checkpoint}
        validation = summary.counters.last_validation
    for labels in LABELS:
        few = ProbeConfig(
            **data,
            out=out / f"probe-{labels}",
            per_class=labels,
            neighbours=5,
            workers=0,
            device="cpu",
        )
        if start in FEATURES:
            right |= classify_features(start, few)
            continue
        with _log(out / f"probe-{labels}.log"):
            found = probe(dataclasses.replace(few, **origin))[1][0]
        settings = {**SHARED, **FINETUNE, "epochs": EPOCHS[labels], "per_class": labels}
        tuning = FinetuneConfig(**data, **origin, **settings, out=out / f"finetune-{labels}")
        with _log(out / f"finetune-{labels}.log"):
            accuracy = Finetuner(tuning).fit().counters.accuracy
        right |= {
            f"linear, {labels}": found.linear,
            f"neighbours, {labels}": found.neighbours,
            f"trained, {labels}": accuracy,
        }
    return Record(start, seed, right, validation, time.process_time() - began)


def classify_features(name: str, config: ProbeConfig) -> dict[str, float]:
    """Shares of right answers of the probe's classifiers, and of a support vector machine, on
    classical features of the same images."""
    classes = split_classes(config)
    train, test = (compute_features(name, tuple(p.paths)) for p in (classes.train, classes.test))
    labels, truth = classes.train.labels.numpy(), classes.test.labels.numpy()
    found = measure_features(0, train, labels, test, truth, len(classes.names), config)
    machine = GridSearchCV(make_pipeline(StandardScaler(), SVC()), CHOICES)
    return {
        f"linear, {config.per_class}": found.linear,
        f"neighbours, {config.per_class}": found.neighbours,
        f"trained, {config.per_class}": float(machine.fit(train, labels).score(test, truth)),
    }


@functools.cache
def compute_features(name: str, paths: tuple[Path, ...]) -> np.ndarray:
    """The classical features ``(n, numbers)`` of image files; computed once for all seeds."""
    return FEATURES[name](np.stack([np.asarray(Image.open(path)) for path in paths]))


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """Keep a run's progress in a file, for those who want to look."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        yield
    path.write_text(text.getvalue())


def run(seeds: int, out: Path, photographs: Path, choosing: bool) -> dict:
    """Measure everything, a start and a seed to a core; returns what ``learn.json`` holds."""
    began = time.perf_counter()
    parts = "train", "choose" if choosing else "test"
    train, test = write_images(out / "images", photographs, parts)
    tasks = [
        (start, seed, out, train, test)
        for start in STARTS
        for seed in range(seeds)
        if seed == 0 or not start.endswith("-plain")  # for its losses, which are the kernels'
    ]
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
    parser.add_argument(
        "--photographs",
        type=Path,
        default=Path("runs/fashion-mnist"),
        help="for Fashion-MNIST's files, which are fetched into it unless they are there",
    )
    parser.add_argument("--redraw", action="store_true", help="only write page and plot anew")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="measure on the photographs for choosing settings; print the table and write no page",
    )
    options = parser.parse_args()
    if options.choose:
        found = run(options.seeds, options.out / "choose", options.photographs, choosing=True)
        print(f"\n{table([Record(**record) for record in found['records']])}")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    stored = RESULTS / "learn.json"
    if not options.redraw:
        found = run(options.seeds, options.out, options.photographs, choosing=False)
        stored.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(stored.read_text())
    records = [Record(**record) for record in found["records"]]
    picture(records, RESULTS / "learn.png")
    (RESULTS / "README.md").write_text(
        report(found, {name: method["epochs"] for name, method in METHODS.items()})
    )
    print(f"\n{table(records)}\n\nwrote {RESULTS / 'README.md'}")


if __name__ == "__main__":
    main()
