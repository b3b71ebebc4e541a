"""Settings of ``simmim predict`` and ``simmim features``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class InferenceConfig:
    """How a trained model is applied to images."""

    batch_size: int = 128
    """Images in one forward pass."""

    workers: int | Literal["auto"] = "auto"
    """Processes that read images; 0 reads them in the main process; auto: see simmim pretrain."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """What to do with an image that cannot be read. skip: name it and leave it out; error: stop."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run the model; auto takes a GPU if there is one."""


@dataclass(frozen=True)
class ApplyConfig:
    """A trained model and the images that it is applied to."""

    checkpoint: Path
    """A checkpoint of simmim, which also holds how images are read and their size."""

    data: Path
    """Images: a folder, or another source as for simmim pretrain."""

    column: str = ""
    """Which column of a table, or which array of a group or an npz file, holds the images or their
    paths; in tar archives the images' ending, such as jpg beside seg.png."""

    overwrite: bool = False
    """Replace the files that are written if they are there already."""


@dataclass(frozen=True)
class PredictConfig(InferenceConfig, ApplyConfig):
    """Predict the class of each image with a fine-tuned model. The central part of each image
    is used, as in fine-tuning's tests."""

    out: Path = Path("predictions.csv")
    """The table to write: file (below --data), class, probability, and the next likely classes. The
    probabilities are the softmax of the classifier's scores, in float64."""

    top: int = 5
    """Classes of each image in the table, the likeliest first."""


@dataclass(frozen=True)
class FeaturesConfig(InferenceConfig, ApplyConfig):
    """Write a feature vector of each image: the mean over the encoder's patch tokens; of a fine-tuned
    model what its classifier sees. The central part of each image is used, as in testing."""

    out: Path = Path("features.npy")
    """The file to write. NAME.npy: float32 (images, width), and beside it NAME.csv with the file of each
    row; NAME.parquet: both, in the columns file and features."""

    block: int = 0
    """Block of the encoder whose tokens are averaged, counted from 1; 0: the last, whose tokens pass the
    final norm."""
