"""How the images of another project's model are normalised, which no tensor shows."""

from __future__ import annotations

import json
from typing import Any

from simmim.config.exchange import ImportConfig
from simmim.config.images import BROUGHT
from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.exchange.files import Source, read_beside
from simmim.models.build import statistics
from simmim.models.classifier import encoder_settings
from simmim.models.simmim import channel_statistics

#: of transformers' image processors, and of timm's models on the Hugging Face Hub
_FILES = {"transformers": "preprocessor_config.json", "timm": "config.json"}


def read_pixels(source: Source, config: ImportConfig) -> tuple[dict[str, Any], list[str]]:
    """Settings of images that belong to the model in ``source``, and what there is to tell.

    Of 8-bit images ``mean`` and ``std`` in 0 to 255, from ``--mean`` and ``--std`` or the project's own
    file beside the model; of a checkpoint of ours whatever it keeps.

    Raises:
        UserError: ``--mean`` or ``--std`` that cannot be those of the channels, or another number of
            channels than a checkpoint of ours has.
    """
    mean, std, channels = config.mean, config.std, config.channels
    stated, notes = bool(mean or std), []
    if source.ours is not None:
        own = json.loads(source.ours)
        held = own.get("channels", channels)
        if held != channels or stated:
            advice = "leave out --mean and --std" if stated else f"add --channels {held}"
            raise UserError(f"{source.path} says how it reads images of {held} channels: {advice}")
        brought = {name: own[name] for name in BROUGHT if name in own}
        brought = {n: tuple(v) if isinstance(v, list) else v for n, v in brought.items()}
        mean = brought.get("mean")
        return brought, [_note(mean, brought["std"], "it")] if mean else []
    name = _FILES.get(source.project)
    if name and not stated:
        mean, std = _said(read_beside(source.path, name) or {})
    fit = len(mean) == len(std) == channels and min(std) > 0
    if stated and not fit:
        raise UserError(
            f"--mean {_words(mean)} --std {_words(std)}: give both, a number each for {channels} "
            "channels, of --std greater than 0"
        )
    if name and not stated:
        # one for three colours may lie beside a model of another number of channels
        notes = [_note(mean if fit else (), std, name)]
    if not fit:
        return {}, notes
    usual = [255 * value for values in channel_statistics(channels) for value in values]
    if all(abs(a - b) < 1e-3 for a, b in zip((*mean, *std), usual, strict=True)):
        return {}, notes
    # pictures go on showing 0 as black and 255 as white
    black, white = (0.0,) * channels, (255.0,) * channels
    return {"mean": tuple(mean), "std": tuple(std), "low": black, "high": white}, notes


def describe_pixels(trained: PretrainConfig | FinetuneConfig) -> str:
    """How images are normalised for the model of a run, in one line."""
    mean, std = statistics(encoder_settings(trained))
    unit = " of the numbers by 255" if trained.pixel_type == "uint8" else ""
    return f"its images are normalised by mean {_words(mean)} and std {_words(std)}{unit}"


def describe_processor(trained: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """The image processor of transformers that does with RGB images what ``simmim predict`` does."""
    mean, std = statistics(encoder_settings(trained))
    height, width = trained.size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(min(height, width) / getattr(trained, "test_crop", 1.0))},
        "resample": {"bilinear": 2, "bicubic": 3}[trained.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _note(mean: Any, std: Any, where: str) -> str:
    if not mean:
        return (
            "no file says how its images were normalised: as ImageNet, unless --mean and --std do"
        )
    return (
        f"its images were normalised by --mean {_words(mean)} --std {_words(std)}, as {where} says"
    )


def _said(file: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Means and deviations in 0 to 255 of a processor of transformers' or a model of timm's."""
    timm = file.get("pretrained_cfg")
    said = timm if isinstance(timm, dict) else file
    mean, std = (said.get(key, said.get(f"image_{key}")) or [] for key in ("mean", "std"))
    if not file.get("do_normalize", True):
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    unit = 1 / file.get("rescale_factor", 1 / 255) if file.get("do_rescale", True) else 1.0
    return [unit * value for value in mean], [unit * value for value in std]


def _words(numbers: Any) -> str:
    return " ".join(f"{number:.9g}" for number in numbers) or "(none)"
