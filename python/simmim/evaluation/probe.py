"""``simmim probe``: evaluation of a frozen encoder's features."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from simmim.config.labels import ProbeConfig
from simmim.data.classes import Classes, Labelled, split_classes
from simmim.data.crops import central_crops, check_measured
from simmim.errors import UserError, require, say
from simmim.evaluation.inference import results
from simmim.evaluation.plot import confusion_picture
from simmim.models.classifier import block_features, completed, start
from simmim.models.encoders import ConvEncoder, TimmEncoder
from simmim.storage.files import replacing
from simmim.storage.run_folder import RunFolder
from simmim.training.failures import explained
from simmim.training.processes import chosen_device
from simmim.training.records import event_writer
from simmim.training.report import print_written

exceptions = require("sklearn.exceptions", "probe")
linear_model = require("sklearn.linear_model", "probe")
neighbors = require("sklearn.neighbors", "probe")
pipeline = require("sklearn.pipeline", "probe")
preprocessing = require("sklearn.preprocessing", "probe")

COLUMNS = ("block", "linear", "neighbours")


@dataclass(frozen=True)
class Result:
    """Shares of right answers on the features of one block.

    Attributes:
        block: its number, from 1.
        linear, neighbours: of logistic regression and of the nearest neighbours.
        confusion: ``int (classes, classes)``, how often class (row) was taken by the linear
            classifier for class (column).
        train, test: images that could be read, on which the other figures rest.
    """

    block: int
    linear: float
    neighbours: float
    confusion: np.ndarray
    train: int
    test: int


def command(config: ProbeConfig) -> int:
    """Probe, print the table, draw the last block's confusion matrix; returns the exit status."""
    classes, results = probe(config)
    picture = config.out / "confusion.png"
    confusion_picture(results[-1].confusion, classes.names, picture)
    print(
        f"{len(classes.names)} classes, {_counted(results[-1].train, classes.train)} images to "
        f"train on, {_counted(results[-1].test, classes.test)} to test on"
    )
    print("block  linear  neighbours")
    for result in results:
        print(f"{result.block:>5}  {result.linear:6.1%}  {result.neighbours:10.1%}")
    print_written(
        ("numbers", config.out / "probe.csv"),
        (f"block {results[-1].block}", picture),
        ("TensorBoard", config.out / "tensorboard"),
    )
    return 0


def _counted(read: int, files: Labelled) -> str:
    """How many images count, and how many could not be read."""
    bad = len(files.paths) - read
    return f"{read:,}" + (f" ({bad:,} more could not be read)" if bad else "")


def probe(config: ProbeConfig) -> tuple[Classes, list[Result]]:
    """Probe the blocks that ``config`` names, and write ``probe.csv`` and TensorBoard's copy.

    Raises:
        UserError: settings that cannot work, data or a checkpoint that cannot be used.
    """
    config.check()
    with RunFolder(config.out, "probe") as folder:
        folder.lock()
        folder.check_start(config.overwrite)
        classes, results = _probe(config)
        folder.start_anew(config.overwrite)
        _write(folder, results)
    return classes, results


def _probe(config: ProbeConfig) -> tuple[Classes, list[Result]]:
    classes = split_classes(config)
    config, weights = completed(config)
    torch.manual_seed(config.seed)
    encoder = start(config, weights).eval().to(chosen_device(config.device))
    blocks = _blocks(config, len(encoder.blocks()))
    for line in classes.summary:
        say(line)
    with explained():
        train, train_labels = _features(encoder, classes.train, blocks, config)
        test, test_labels = _features(encoder, classes.test, blocks, config)
    if len(np.unique(train_labels)) < 2:
        name = classes.names[train_labels[0]]
        raise UserError(f"only images of class {name!r} can be read: replace those named above")
    results = [
        measure(block + 1, a, train_labels, b, test_labels, len(classes.names), config)
        for block, a, b in zip(blocks, train, test, strict=True)
    ]
    return classes, results


def _blocks(config: ProbeConfig, count: int) -> list[int]:
    wrong = [block for block in config.blocks if not 0 <= block <= count]
    if wrong:
        raise UserError(f"--blocks {wrong[0]}: the encoder has blocks 1 to {count} (0: all)")
    if 0 in config.blocks:
        return list(range(count))
    return [block - 1 for block in config.blocks] or [count - 1]


def _features(
    encoder: TimmEncoder | ConvEncoder, files: Labelled, blocks: Sequence[int], config: ProbeConfig
) -> tuple[list[np.ndarray], np.ndarray]:
    """Features ``(n, width)`` of each block, and the labels ``(n,)``, of the readable files."""
    images = central_crops(config, files.paths)
    check_measured(config, images)
    found, labels = [], []
    device = next(encoder.parameters()).device
    for features, sources in results(
        lambda pixels: block_features(encoder, pixels, blocks), config, images, device
    ):
        found.append([block.numpy() for block in features])
        labels.append(files.labels[sources].numpy())
    return [np.concatenate(parts) for parts in zip(*found, strict=True)], np.concatenate(labels)


def measure(
    block: int,
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    config: ProbeConfig,
) -> Result:
    """Fit both classifiers to features ``(n, width)`` and count right answers on others.

    Raises:
        UserError: logistic regression does not converge.
    """
    linear = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        linear_model.LogisticRegression(C=config.strength, max_iter=2000),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", exceptions.ConvergenceWarning)
        try:
            guesses = linear.fit(train, train_labels).predict(test)
        except exceptions.ConvergenceWarning:
            raise UserError(
                f"the linear classifier on block {block} does not converge: lower --strength"
            ) from None
    near = neighbors.KNeighborsClassifier(
        min(config.neighbours, len(train)), metric="cosine", weights="distance"
    )
    # features that are nearly alike differ by less than float32 keeps of 1 - cosine
    near.fit(train.astype(np.float64), train_labels)
    found = near.predict(test.astype(np.float64))
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (test_labels, guesses), 1)
    return Result(
        block,
        float(np.mean(guesses == test_labels)),
        float(np.mean(found == test_labels)),
        confusion,
        len(train),
        len(test),
    )


def _write(folder: RunFolder, results: list[Result]) -> None:
    with replacing(folder.out / "probe.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((r.block, r.linear, r.neighbours) for r in results)
    folder.claim(folder.out / "confusion.png")
    with event_writer(folder.out / "tensorboard") as board:
        folder.claim_events()
        for result in results:
            board.add_scalar("probe/linear", result.linear, result.block)
            board.add_scalar("probe/neighbours", result.neighbours, result.block)
