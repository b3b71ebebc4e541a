"""``simmim predict``: a fine-tuned model's classes for images."""

from __future__ import annotations

import csv
import dataclasses

import torch

from simmim.config.apply import PredictConfig
from simmim.data.crops import central_crops
from simmim.data.item import name_below
from simmim.data.sources import check_column_and_layout, find_source
from simmim.errors import UserError, say
from simmim.evaluation.inference import results
from simmim.models.classifier import load_classifier
from simmim.storage.files import TEXT, replacing
from simmim.storage.outputs import check_replaceable
from simmim.training.failures import explained
from simmim.training.processes import chosen_device

#: endings of tables that a file of comma-separated values would pretend to be
_OTHER_TABLES = frozenset(
    (".parquet", ".npy", ".npz", ".json", ".jsonl", ".tsv", ".xlsx", ".arrow", ".feather")
)


def command(config: PredictConfig) -> int:
    """Write the table; returns the exit status.

    Raises:
        UserError: another kind of table, no fine-tuned checkpoint, no images, or none that can be read; nothing is written
            then.
    """
    if config.out.suffix.lower() in _OTHER_TABLES:
        raise UserError(f"--out {config.out} must end in .csv, which is what predict writes")
    check_replaceable(config.out, config.overwrite, config.checkpoint, config.data)
    model, trained = load_classifier(config.checkpoint)
    trained = dataclasses.replace(trained, data=config.data, column=config.column)
    listing = find_source(config.data, trained)
    check_column_and_layout(config, listing)
    say(listing.summary())
    device = torch.device(chosen_device(config.device))
    model.to(device)
    top, count = min(config.top, len(model.names)), 0
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(config.out) as path, explained(), path.open("w", **TEXT) as file:
        table = csv.writer(file)
        endings = [f"_{place}" if place > 1 else "" for place in range(1, top + 1)]
        table.writerow(["file", *(f"{n}{p}" for p in endings for n in ("class", "probability"))])
        images = central_crops(trained, listing.paths)
        for (scores,), sources in results(lambda x: [model(x)], config, images, device):
            places = scores.topk(top).indices
            # in float64, and of small ones as many digits: ranks of confident answers stay apart
            found = scores.double().softmax(1).gather(1, places)
            likeliest = sources.tolist(), found.tolist(), places.tolist()
            for source, shares, classes in zip(*likeliest, strict=True):
                row = [name_below(listing.paths[source], listing.folder)]
                for share, number in zip(shares, classes, strict=True):
                    row += [model.names[number], f"{share:.12g}"]
                table.writerow(row)
            count += len(sources)
    print(f"{count:,} images, {len(model.names)} classes; wrote {config.out}")
    return 0
