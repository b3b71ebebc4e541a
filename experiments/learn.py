"""``make learn``: does pre-training teach an encoder anything? On real images, without a download.

The task is to tell from which of 17 pictures a crop comes (``learn_data``). Encoders are pre-trained on
the crops without their labels, by SimMIM and by MAE, with the kernels and with the published arithmetic
(``--plain``); then a linear probe and nearest neighbours get ten labels of each class or all of them, and
fine-tuning gets ten. The same is measured for random weights, for classical features and for raw pixels.

Settings are chosen with ``--choose``, which measures on crops that are in no other part.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from experiments.learn_data import FEATURES, MEAN, SIDE, STD, write_crops
from experiments.learn_page import LABELS, STARTS, Record, picture, report, table
from simmim.config.labels import FinetuneConfig, ProbeConfig
from simmim.config.pretrain import PretrainConfig
from simmim.data.classes import Labelled, split_classes
from simmim.evaluation.probe import Result, probe
from simmim.evaluation.probe import measure as measure_features
from simmim.training.finetune import Finetuner
from simmim.training.pretrain import Trainer

RESULTS = Path(__file__).parents[1] / "docs" / "learn"
IMAGES = {"mean": (MEAN,), "std": (STD,)}
ENCODER = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 6, "embed_dim": 96, "depth": 4, "num_heads": 4},
    "img_size": SIDE,
    "channels": 1,
}
SHARED = {
    "crop_scale": (0.6, 1.0),
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
PRETRAIN = {"warmup_epochs": 2, "lr": 8e-3, "min_lr": 1e-5}
#: twice the epochs for MAE, whose steps take half the time
METHODS = {
    "simmim": {"epochs": 14, "mask_unit": 12, "mask_ratio": 0.6},
    "mae": {
        "epochs": 28,
        "method": "mae",
        "target_norm": "none",
        "decoder_width": 64,
        "decoder_depth": 1,
        "decoder_heads": 4,
        "mask_unit": 6,
        "mask_ratio": 0.75,
    },
}
FINETUNE = {
    "per_class": LABELS,
    "epochs": 40,
    "warmup_epochs": 2,
    "lr": 1e-2,
    "layer_decay": 1.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


def measure(start: str, seed: int, out: Path, train: Path, test: Path) -> Record:
    """Pre-train where ``start`` says so, then probe and fine-tune; or measure classical features."""
    began = time.process_time()
    data = {"data": train, "val_data": test, "seed": seed}
    out = out / f"{start}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    few = ProbeConfig(
        **data, out=out / "probe", per_class=LABELS, neighbours=5, workers=0, device="cpu"
    )
    accuracy = validation = None
    if start in FEATURES:
        found = [probe_features(start, few), probe_features(start, _with_all_labels(few))]
    else:
        origin = ENCODER | IMAGES
        if start != "random":
            method, _, plain = start.partition("-")
            config = PretrainConfig(
                **data,
                **origin,
                **SHARED,
                **PRETRAIN,
                **METHODS[method],
                out=out / "pretrain",
                plain=bool(plain),
            )
            with _log(out / "pretrain.log"):
                summary = Trainer(config).fit()
            origin, validation = (
                {"checkpoint": summary.checkpoint},
                summary.counters.last_validation,
            )
        few = dataclasses.replace(few, **origin)
        found = [probe(config)[1][0] for config in (few, _with_all_labels(few))]
        tuning = FinetuneConfig(**data, **origin, **SHARED | FINETUNE, out=out / "finetune")
        with _log(out / "finetune.log"):
            accuracy = Finetuner(tuning).fit().counters.accuracy
    return Record(
        start=start,
        seed=seed,
        linear=found[0].linear,
        neighbours=found[0].neighbours,
        finetuned=accuracy,
        linear_all=found[1].linear,
        neighbours_all=found[1].neighbours,
        validation=validation,
        seconds=time.process_time() - began,
    )


def _with_all_labels(few: ProbeConfig) -> ProbeConfig:
    return dataclasses.replace(few, per_class=0, out=few.out.with_name("probe-all"))


def probe_features(name: str, config: ProbeConfig) -> Result:
    """The probe's classifiers on classical features of the same images."""
    classes = split_classes(config)

    def features(part: Labelled) -> np.ndarray:
        return FEATURES[name](np.stack([np.asarray(Image.open(path)) for path in part.paths]))

    train, test = classes.train, classes.test
    sides = features(train), train.labels.numpy(), features(test), test.labels.numpy()
    return measure_features(0, *sides, len(classes.names), config)


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
    train, test = write_crops(out / "crops", ("train", "choose" if choosing else "test"))
    tasks = [
        (start, seed, out, train, test)
        for seed in range(seeds)
        for start in STARTS
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
    parser.add_argument("--redraw", action="store_true", help="only write page and plot anew")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="measure on the crops for choosing settings; print the table and write no page",
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
    (RESULTS / "README.md").write_text(
        report(found, {name: method["epochs"] for name, method in METHODS.items()})
    )
    print(f"\n{table(records)}\n\nwrote {RESULTS / 'README.md'}")


if __name__ == "__main__":
    main()
