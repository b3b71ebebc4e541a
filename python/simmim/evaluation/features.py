"""``simmim features``: an encoder's features of images, for other tools."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from simmim.config.apply import FeaturesConfig
from simmim.config.images import ImageConfig
from simmim.data.crops import central_crops
from simmim.data.item import name_below
from simmim.data.sources import check_column_and_layout, find_source
from simmim.errors import UserError, printable, require
from simmim.evaluation.inference import results
from simmim.models.classifier import block_features, load_classifier, load_encoder
from simmim.storage.files import TEXT, replacing
from simmim.storage.outputs import check_replaceable
from simmim.training.failures import explained
from simmim.training.processes import chosen_device


def command(config: FeaturesConfig) -> int:
    """Write the features; returns the exit status.

    Raises:
        UserError: no checkpoint, no images, or none that can be read; nothing is written then.
    """
    kind = config.out.suffix
    if kind not in (".npy", ".parquet"):
        raise UserError(f"--out {config.out} must end in .npy or .parquet")
    arrow = require("pyarrow", "data") if kind == ".parquet" else None
    files = [config.out] if arrow else [config.out, config.out.with_suffix(".csv")]
    for path in files:
        check_replaceable(path, config.overwrite, config.checkpoint, config.data)
    device = torch.device(chosen_device(config.device))
    extract, trained = _extractor(config, device)
    trained = dataclasses.replace(trained, data=config.data, column=config.column)
    listing = find_source(config.data, trained)
    check_column_and_layout(config, listing)
    print(printable(listing.summary()), file=sys.stderr)
    images = central_crops(trained, listing.paths)
    names, parts = [], []
    with explained():
        for (found,), sources in results(extract, config, images, device):
            parts.append(found.numpy())
            names += [name_below(listing.paths[n], listing.folder) for n in sources.tolist()]
    features = np.concatenate(parts)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(config.out) as path:
        with path.open("wb") as file:
            if arrow:
                rows = arrow.FixedSizeListArray.from_arrays(features.reshape(-1), features.shape[1])
                # Arrow takes only text, which names of files need not be
                texts = [name.encode(errors="backslashreplace").decode() for name in names]
                table = arrow.table({"file": arrow.array(texts), "features": rows})
                require("pyarrow.parquet", "data").write_table(table, file)
            else:
                # np.save says nothing where a full disk takes only a part
                header = np.lib.format.header_data_from_array_1_0(features)
                np.lib.format.write_array_header_1_0(file, header)
                file.write(features.data)
        if not arrow:
            # before the new features stand beside the names of others
            _write_names(files[1], names)
    print(
        f"{len(names):,} images, {features.shape[1]} features each; wrote {', '.join(map(str, files))}"
    )
    return 0


def _extractor(
    config: FeaturesConfig, device: torch.device
) -> tuple[Callable[[Tensor], list[Tensor]], ImageConfig]:
    """What maps images to features, and the settings of the run that trained it."""
    encoder, trained = load_encoder(config.checkpoint)
    encoder.to(device)
    norm: nn.Module = nn.Identity()
    if getattr(trained, "fc_norm", False):
        norm = load_classifier(config.checkpoint)[0].fc_norm.to(device)
    blocks = len(encoder.blocks())
    if not 0 <= config.block <= blocks:
        raise UserError(f"--block {config.block}: the encoder has blocks 1 to {blocks}")
    number = (config.block or blocks) - 1
    last = norm if number == blocks - 1 else nn.Identity()
    return lambda images: [last(block_features(encoder, images, [number])[0])], trained


def _write_names(path: Path, names: list[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", **TEXT) as file:
        csv.writer(file).writerows([["file"], *([name] for name in names)])
