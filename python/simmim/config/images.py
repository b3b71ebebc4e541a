"""Settings of all commands that read images."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from simmim.config.conflicts import check_conflicts
from simmim.config.numbers import check_numbers, flag
from simmim.errors import UserError, first_line

PIXEL_TYPES = ("uint8", "uint16", "int16", "float32")
#: percentiles that simmim stats measures
PERCENTILES = (1, 2, 50, 98, 99)
#: settings that --stats sets
MEASURED = ("channels", "bands", "layout", "pixel_type", "mean", "std", "low", "high", "nodata")
#: settings that describe an encoder, which commands take over from a checkpoint
ENCODER = ("encoder", "encoder_args", "img_size", "channels")
#: settings of images that they take over too
BROUGHT = (
    *("bands", "layout", "pixel_type", "mean", "std", "low", "high", "clip_percentile"),
    *("nodata", "nodata_share"),
)


class Reading(NamedTuple):
    """How an image file is read.

    Attributes:
        channels: number of channels; ``None`` takes all.
        bands: bands that become the channels, counted from 1, in this order; empty for all.
        dtype: pixel type in memory; ``None`` takes any of ``PIXEL_TYPES``.
        layout: band axis of arrays: ``"chw"``, ``"hwc"``, or ``"auto"``, decided by the sizes.
        nodata: the value of pixels without data, as text; empty for none.
        column: name of one of several arrays or columns.
    """

    channels: int | None = 3
    bands: tuple[int, ...] = ()
    dtype: str | None = "uint8"
    layout: str = "auto"
    nodata: str = ""
    column: str = ""

    @property
    def colours(self) -> bool:
        """Whether files are read as 8-bit gray or RGB, with conversion between the two."""
        return not self.bands and self.channels in (1, 3) and self.dtype == "uint8"


@dataclass(frozen=True)
class SourceConfig:
    """A source of images, and the bands of them that are used."""

    data: Path | None = None
    """A folder of images, searched through all its subfolders, or another source of images."""

    bands: tuple[int, ...] | str = ()
    """Bands that become the channels, counted from 1, in this order, for example 4,3,2; default all.
    With --bands neither colours nor transparency are converted."""

    layout: Literal["auto", "chw", "hwc"] = "auto"
    """Where arrays have their bands: chw, on the first axis; hwc, on the last. auto takes the one of the
    two that is at most half as long as both other axes."""

    column: str = ""
    """Which column of a table, or which array of a group or an npz file, holds the images or their
    paths; default: the only one that can. In tar archives the images' ending, such as jpg beside seg.png;
    default: all."""

    nodata: str = ""
    """Value of pixels without data, a number or nan. A crop with more than --nodata-share of them is
    drawn again, up to ten times; those that remain are replaced by the channel's mean and not scored."""

    def __post_init__(self) -> None:
        if isinstance(self.bands, str):
            object.__setattr__(self, "bands", _parse_bands(self.bands))

    def check_source(self) -> None:
        """Refuse band numbers and values that make no sense; raises ``UserError``."""
        if any(band < 1 for band in self.bands):
            raise UserError(f"--bands are counted from 1, not {min(self.bands)}")
        if self.nodata:
            try:
                float(self.nodata)
            except ValueError:
                raise UserError(f"--nodata is a number or nan, not {self.nodata!r}") from None


@dataclass(frozen=True)
class ImageConfig(SourceConfig):
    """Pixel type and statistics of images; ``simmim stats`` measures most of them."""

    stats: Path | None = None
    """File written by simmim stats for these images; needed unless they are 8-bit gray or RGB. Sets
    --channels, --bands, --layout, --nodata, --pixel-type, --mean, --std, --low and --high."""

    pixel_type: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    """Type of the files' numbers. Files of another type are refused, each by name."""

    mean: tuple[float, ...] = ()
    """Mean of each channel, in the units of the files' numbers; default ImageNet's, for 8 bits."""

    std: tuple[float, ...] = ()
    """Standard deviation of each channel, in the units of --mean."""

    low: tuple[float, ...] = ()
    """Value of each channel that pictures show as black; --stats sets it to the 2nd percentile."""

    high: tuple[float, ...] = ()
    """Value of each channel that pictures show as white; --stats sets it to the 98th percentile."""

    clip_percentile: tuple[float, float] | None = None
    """Clip the pixels of crops to these percentiles of --stats, each one of 1, 2, 50, 98, 99; 0 and
    100 are the smallest and the largest value."""

    nodata_share: float = 0.5
    """Largest share of pixels without data in a crop; beyond it the crop is drawn again."""

    @property
    def reading(self) -> Reading:
        """How each image is read, once ``channels`` is known."""
        return Reading(
            self.channels, self.bands, self.pixel_type, self.layout, self.nodata, self.column
        )

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of the model's input in pixels, once ``img_size`` is known."""
        return (self.img_size,) * 2 if isinstance(self.img_size, int) else self.img_size

    def check(self) -> None:
        """Raise ``UserError`` for numbers that make no sense and settings that contradict each
        other."""
        check_numbers(self)
        check_conflicts(self, self.defaults())
        self.check_images()

    def defaults(self) -> ImageConfig | None:
        """What the settings were before the command line, where that is not the class's defaults."""
        return None

    def check_images(self, *, measured: bool = False) -> None:
        """Raise ``UserError`` for settings about images that contradict each other; ``measured``
        says whether what --stats brings is there."""
        self.check_source()
        if self.clip_percentile and self.stats is None and not self.low:
            raise UserError("--clip-percentile takes its values from --stats: give that too")
        if self.clip_percentile and not self.clip_percentile[0] < self.clip_percentile[1]:
            raise UserError("--clip-percentile takes two percentiles, the smaller one first")
        if len(self.mean) != len(self.std):
            raise UserError("--mean and --std belong together: one number of each a channel")
        if self.stats is None and len(self.low) != len(self.high):
            raise UserError("--low and --high belong together: one number of each a channel")
        if any(not value > 0 for value in self.std):
            raise UserError(f"--std must be greater than 0, not {min(self.std):g}")
        if measured or self.stats is None:
            self._check_per_channel()
        brought = self.stats or getattr(self, "checkpoint", None)
        if not brought:
            check_nodata(self.nodata, self.pixel_type)
        odd = self.bands or self.nodata or self.pixel_type != "uint8"
        known = self.mean or brought
        if (odd or self.channels not in (None, 1, 3)) and not known:
            raise UserError(f"the images' mean and deviation are needed: {how_to_measure(self)}")

    def _check_per_channel(self) -> None:
        for name in ("mean", "low", "high"):
            count = len(getattr(self, name))
            if count and self.channels not in (None, count):
                raise UserError(
                    f"{flag(name)} has {count} numbers for {self.channels} channels: give one a "
                    "channel"
                )
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise UserError("--low is larger than --high in some channel: give smaller numbers")


def values_of(config: object, names: Iterable[str]) -> dict[str, Any]:
    """The settings called ``names`` of ``config``."""
    return {name: getattr(config, name) for name in names}


def check_nodata(nodata: str, pixel_type: str) -> None:
    """Raise ``UserError`` where no number of ``pixel_type`` can be ``nodata``, which would have no
    effect. NaN may always be asked for."""
    limits = {"uint8": (0, 2**8), "uint16": (0, 2**16), "int16": (-(2**15), 2**15)}
    if not nodata or pixel_type not in limits or math.isnan(value := float(nodata)):
        return
    low, beyond = limits[pixel_type]
    if not (low <= value < beyond and value.is_integer()):
        raise UserError(
            f"--nodata {nodata} is no value of {pixel_type} images, whose numbers are whole, {low} to "
            f"{beyond - 1}"
        )


def check_show_bands(bands: tuple[int, ...], channels: int) -> None:
    """Raise ``UserError`` where ``bands`` are not one or three of the channels from 1."""
    if len(bands) not in (1, 3) or not all(1 <= band <= channels for band in bands):
        raise UserError(
            f"--show-bands {' '.join(map(str, bands))}: give one or three of the channels 1 to "
            f"{channels}"
        )


Config = TypeVar("Config", bound=ImageConfig)


def how_to_measure(config: ImageConfig) -> str:
    """The commands that measure images and use what was measured."""
    given = {
        "bands": ",".join(map(str, config.bands)),
        "layout": config.layout.removeprefix("auto"),
        "column": config.column,
        "nodata": config.nodata,
    }
    more = "".join(f" {flag(name)} {value}" for name, value in given.items() if value)
    return (
        f"run  simmim stats --data {config.data}{more} --out stats.json  and add --stats stats.json"
    )


def measured(config: Config) -> Config:
    """``config`` with what its ``--stats`` file says; unchanged without one.

    Raises:
        UserError: no such file, none of simmim stats, or one that other settings contradict.
    """
    if config.stats is None:
        return config
    try:
        found = json.loads(config.stats.read_text())
        pixel_type, channels = found["pixel_type"], found["channels"]
        measures = {"mean": found["mean"], "std": found["std"], **found["percentiles"]}
        measures |= {"0": found["min"], "100": found["max"]}
        measures = {name: tuple(map(float, values)) for name, values in measures.items()}
        given = {name: found[name] for name in ("bands", "layout", "nodata")}
        given["bands"] = tuple(given["bands"])
        if pixel_type not in PIXEL_TYPES or {*map(len, measures.values())} != {channels}:
            raise ValueError("one number a channel is missing, or the type is unknown")
    except OSError as error:
        raise UserError(f"cannot read --stats {config.stats}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--stats {config.stats} is no file of simmim stats ({first_line(error)})"
        ) from None
    for name, value in given.items():
        own = getattr(config, name)
        if own not in ((), "", "auto", value):
            raise UserError(
                f"--stats {config.stats} was measured with {flag(name)} {value or '(none)'}, not "
                f"{own}: measure anew, or leave out {flag(name)}"
            )
    if config.channels not in (None, 3, channels):
        raise UserError(f"--stats {config.stats} has {channels} channels, not {config.channels}")
    low, high = config.clip_percentile or (2, 98)
    for percentile in (low, high):
        if f"{percentile:g}" not in measures:
            raise UserError(
                f"--clip-percentile {percentile:g} is none of those that are measured: 0, "
                f"{', '.join(map(str, PERCENTILES))}, 100"
            )
    config = dataclasses.replace(
        config,
        channels=channels,
        pixel_type=pixel_type,
        mean=config.mean or measures["mean"],
        std=config.std or tuple(value or 1.0 for value in measures["std"]),
        low=config.low or measures[f"{low:g}"],
        high=config.high or measures[f"{high:g}"],
        **given,
    )
    config.check_images(measured=True)
    return config


def _parse_bands(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise UserError(f"--bands takes whole numbers, as in 4,3,2, not {text!r}") from None
