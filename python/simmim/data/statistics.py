"""``simmim stats``: the distribution of every channel's numbers, in one pass over all images."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from simmim.config.images import PERCENTILES, Reading, check_nodata
from simmim.config.scan import ScanConfig, StatsConfig
from simmim.data.bands import Picture
from simmim.data.image_contents import collected_notes
from simmim.data.images import (
    LOST_IN_A_ROW,
    BadImageError,
    LostImageError,
    OtherContentsError,
    file_errors,
    lost_images,
    read_image,
)
from simmim.data.item import Item
from simmim.data.listing import summarize_bad
from simmim.data.sources import check_column_and_layout, find_source
from simmim.data.table_parts import take_part
from simmim.errors import UnreadableImageError, UserError, say
from simmim.storage.files import write_text
from simmim.storage.outputs import check_replaceable

#: rows of an image that are read at a time, and images that one process measures in a row
_ROWS, _PIECE = 512, 64
#: values that are told apart: all of the integers; of float32 sign, exponent and 7 bits
_LEVELS = {"uint8": 2**8, "uint16": 2**16, "int16": 2**16, "float32": 2**16}
#: so a percentile of float32 is off by at most this share of it
FLOAT_ERROR = 2.0**-8


@dataclass
class Tally:
    """Counts and sums over the images so far.

    Attributes:
        counts: ``int64 (C, levels)``, how often each value came.
        sums: ``float64 (C,)`` of float32; of integers the counts tell them.
        squares: ``float64 (C,)`` of float32, the sums of squared differences from the channel's mean.
        low, high: ``(C,)``, the smallest and the largest.
        nodata: numbers without data in each channel.
        images: how many were measured.
        bad: why others were not, by name.
        others: of those the ones with other contents than the first.
        notes: what is not used, by name.
    """

    counts: np.ndarray | int = 0
    sums: np.ndarray | int = 0
    squares: np.ndarray | int = 0
    low: np.ndarray | float = math.inf
    high: np.ndarray | float = -math.inf
    nodata: np.ndarray | int = 0
    images: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count what ``other`` found along with this one's."""
        ours, theirs = (np.sum(tally.counts, -1) for tally in (self, other))
        # differences of the two means: squares of the values themselves would lose a deviation that is
        # small beside the mean
        apart = self.sums / np.maximum(1, ours) - other.sums / np.maximum(1, theirs)
        self.squares = self.squares + apart**2 * ours * (theirs / np.maximum(1, ours + theirs))
        for name in ("counts", "sums", "squares", "nodata", "images"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        for name in ("bad", "others", "notes"):
            getattr(self, name).update(getattr(other, name))


def command(config: StatsConfig) -> int:
    """Measure, print a table, write the file; returns the exit status.

    Raises:
        UserError: no images, none that can be read, or images of several types.
    """
    if config.data is None:
        raise UserError("say which images to measure: --data FOLDER")
    check_replaceable(config.out, config.overwrite, config.data)
    listing = take_part(find_source(config.data, config), config.data, "all")
    check_column_and_layout(config, listing)
    say(listing.summary())
    wanted = first_contents(config, listing.paths)
    tally = measure(config, listing.paths, wanted)
    _report(tally, config)
    found = summary(tally, wanted)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(config.out, json.dumps(found, indent=1) + "\n")
    for channel in range(wanted.channels):
        values = {name: found[name][channel] for name in ("mean", "std", "min", "max")}
        text = "  ".join(f"{name} {value:.6g}" for name, value in values.items())
        print(f"channel {channel + 1}: {text}  without data {found['nodata_pixels'][channel]:,}")
    if any(found["nodata_pixels"]) and not wanted.nodata:
        print(
            "some numbers are NaN or infinite: where they mean no data, measure with --nodata nan"
        )
    print(f"{tally.images:,} images of {wanted.dtype}; wrote {config.out}")
    return 0


def first_contents(config: ScanConfig, images: Sequence[Path | Item]) -> Reading:
    """What is wanted of all images: what the first one that can be read holds.

    Raises:
        UnreadableImageError: none can be read.
        UserError: its numbers cannot be what ``--nodata`` names.
    """
    channels = config.channels or (len(config.bands) or None)
    ways = [config.reading(channels, None)]
    if not config.bands and channels in (None, 1, 3):
        ways.insert(0, config.reading(channels or 3, "uint8"))
    reasons: dict[str, str] = {}
    for image in images:
        for wanted in ways:
            try:
                with collected_notes():
                    picture = read_image(image, wanted)
            except BadImageError as error:
                reasons[str(image)] = str(error)
                continue
            dtype, count = str(picture.dtype).removeprefix("torch."), picture.shape[0]
            check_nodata(wanted.nodata, dtype)
            found = wanted._replace(channels=count, dtype=dtype)
            if found.colours and wanted is ways[-1]:
                # bands that are no colours must not be read as such
                return found._replace(bands=tuple(range(1, count + 1)))
            return found
    name, reason = next(iter(reasons.items()))
    raise UnreadableImageError(
        f"no image can be read: {summarize_bad(reasons)}; the first is {name}: {reason}"
    )


def measure(config: StatsConfig, images: Sequence[Path | Item], wanted: Reading) -> Tally:
    """The tally of all ``images``, the same for any number of processes."""
    total, starts = Tally(), range(0, len(images), _PIECE)
    if config.workers < 2 or len(starts) < 2:
        for start in starts:
            total.add(measure_piece(wanted, images[start : start + _PIECE]))
        return total
    # forked processes have the images already: an array would be sent whole with each of its parts
    context, begun = get_context("fork"), (wanted, images)
    with ProcessPoolExecutor(config.workers, context, _inherit, begun) as pool:
        for found in pool.map(_measure_from, starts):
            total.add(found)
    return total


def _inherit(*begun: object) -> None:
    global _inherited
    _inherited = begun


def _measure_from(start: int) -> Tally:
    wanted, images = _inherited
    return measure_piece(wanted, images[start : start + _PIECE])


def measure_piece(wanted: Reading, images: Sequence[Path | Item]) -> Tally:
    """The tally of some images.

    Raises:
        UnreadableImageError: so many in a row cannot be opened that the disk is taken for lost.
    """
    tally, lost = Tally(), 0
    for image in images:
        try:
            with collected_notes() as notes, file_errors(image):
                tally.add(measure_image(read_image(image, wanted), wanted))
        except OtherContentsError as error:
            tally.others[str(image)] = tally.bad[str(image)] = str(error)
        except BadImageError as error:
            tally.bad[str(image)] = str(error)
            lost = lost + 1 if isinstance(error, LostImageError) else 0
            if lost >= LOST_IN_A_ROW:
                raise lost_images(str(image), str(error)) from error
        else:
            lost = 0
            if notes:
                tally.notes[str(image)] = ", ".join(notes)
    return tally


def measure_image(image: Picture, wanted: Reading) -> Tally:
    """The tally of one image, read in parts."""
    tally = Tally(images=1)
    nodata = float(wanted.nodata) if wanted.nodata else None
    for top in range(0, image.shape[1], _ROWS):
        part = image[:, top : top + _ROWS, :].numpy().reshape(image.shape[0], -1)
        channels = zip(*(_measure_channel(values, nodata) for values in part), strict=True)
        tally.add(Tally(*map(np.stack, channels)))
    return tally


def _measure_channel(values: np.ndarray, nodata: float | None) -> tuple:
    """The first six fields of a ``Tally`` of one channel's numbers ``(n,)``; NaN and infinite ones count
    as without data."""
    kept = values if nodata is None or math.isnan(nodata) else values[values != nodata]
    sums = squares = 0
    if values.dtype.kind == "f":
        kept = kept[np.isfinite(kept)]
        wide = kept.astype(np.float64)
        sums = wide.sum()
        squares = np.square(wide - sums / max(1, wide.size)).sum()
    counts = np.bincount(_level(kept), minlength=_LEVELS[values.dtype.name])
    low, high = (kept.min(), kept.max()) if kept.size else (math.inf, -math.inf)
    return counts, sums, squares, low, high, values.size - kept.size


def _level(values: np.ndarray) -> np.ndarray:
    """A number from 0 for each value, in their order."""
    if values.dtype.kind == "f":
        bits = values.view(np.uint32)
        # of negative numbers larger bits are smaller values
        return np.where(bits >> 31, ~bits, bits | 0x80000000) >> 16
    return values.astype(np.int64) + (2**15 if values.dtype == np.int16 else 0)


def _values(dtype: str) -> np.ndarray:
    """The value of each level, of float32 the middle of those that it stands for."""
    levels = np.arange(_LEVELS[dtype], dtype=np.uint32)
    if dtype != "float32":
        return levels.astype(np.float64) - (2**15 if dtype == "int16" else 0)
    bits = (levels << 16) | 0x8000
    bits = np.where(bits >> 31, bits & 0x7FFFFFFF, ~bits).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        # beyond infinity
        return bits.view(np.float32).astype(np.float64)


def summary(tally: Tally, wanted: Reading) -> dict[str, object]:
    """What ``--stats`` takes; all values are in the numbers that the files hold. Raises
    ``UserError`` for a channel without data."""
    counted = tally.counts.sum(1)
    if not counted.all():
        raise UserError(f"channel {int(np.argmin(counted)) + 1} holds no data at all")
    values = _values(wanted.dtype)
    if wanted.dtype == "float32":
        mean = tally.sums / counted
        variance = tally.squares / counted
    else:
        mean = tally.counts @ values / counted
        squares = np.square(values - mean[:, None])
        variance = (tally.counts * squares).sum(1) / counted
    below = tally.counts.cumsum(1)
    percentiles = {}
    for percentile in PERCENTILES:
        ranks = np.maximum(1, np.ceil(counted * percentile / 100))
        found = [values[np.searchsorted(row, r)] for row, r in zip(below, ranks, strict=True)]
        percentiles[str(percentile)] = np.clip(found, tally.low, tally.high).tolist()
    return {
        "pixel_type": wanted.dtype,
        "channels": wanted.channels,
        "bands": list(wanted.bands),
        "layout": wanted.layout,
        "nodata": wanted.nodata,
        "images": tally.images,
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(variance, 0)).tolist(),
        "min": tally.low.tolist(),
        "max": tally.high.tolist(),
        "percentiles": percentiles,
        "percentile_error": FLOAT_ERROR if wanted.dtype == "float32" else 0,
        "values": counted.tolist(),
        "nodata_pixels": tally.nodata.tolist(),
    }


def _report(tally: Tally, config: StatsConfig) -> None:
    """Name what could not be read or is not used.

    Raises:
        UnreadableImageError: that is to stop the command, or nothing could be read.
        UserError: some images have other contents than the first.
    """
    for name, reason in tally.bad.items():
        say(f"left out {name}: {reason}")
    alike = defaultdict(list)
    for name, note in tally.notes.items():
        alike[note].append(name)
    for note, names in alike.items():
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        say(f"{names[0]}{more}: {note}")
    if tally.others:
        kinds = defaultdict(list)
        for name, reason in tally.others.items():
            kinds[reason].append(name)
        found = "; ".join(f"{len(n):,} with {reason} ({n[0]})" for reason, n in kinds.items())
        raise UserError(
            f"images of one run have one type and number of bands: {tally.images:,} are as the "
            f"first, {found}; move the others elsewhere, or name those that are wanted in a list, "
            "one path a line"
        )
    if tally.bad and (config.on_bad_image == "error" or not tally.images):
        name, reason = next(iter(tally.bad.items()))
        raise UnreadableImageError(f"cannot read {name}: {reason}")
