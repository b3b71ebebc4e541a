"""Settings of ``simmim stats`` and ``simmim pack``, which read every image once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simmim.config.images import Reading, SourceConfig
from simmim.config.numbers import check_numbers
from simmim.errors import UserError


@dataclass(frozen=True)
class ScanConfig(SourceConfig):
    """How every image of a source is read."""

    nodata: str = ""
    """Value of pixels without data, a number or nan. simmim stats counts them and leaves them out of all
    else; simmim pack stores them as they are."""

    channels: int | None = None
    """3 reads 8-bit images as RGB and 1 as gray; default 3 for these, and all bands for others."""

    workers: int = 2
    """Number of readers; the result does not depend on it."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """What to do with an image that cannot be read. skip: name it and leave it out; error: stop."""

    def check(self) -> None:
        """Refuse settings that make no sense; raises ``UserError``."""
        check_numbers(self)
        self.check_source()

    def reading(self, channels: int | None, dtype: str | None) -> Reading:
        """How each image is read."""
        return Reading(channels, self.bands, dtype, self.layout, self.nodata, self.column)


@dataclass(frozen=True)
class StatsConfig(ScanConfig):
    """Measure each channel over all images: mean, standard deviation, minimum, maximum, percentiles, and
    the number of pixels without data. Images of another type than the first one are refused."""

    out: Path = Path("stats.json")
    """The file to write, which --stats of the other commands takes."""

    overwrite: bool = False
    """Replace the file --out if it is there already."""


@dataclass(frozen=True)
class PackConfig(ScanConfig):
    """Read images once and store their pixels in a memory-mapped array, from which training reads
    crops without decoding. Lossless: a run on the pack equals one on the files, unless --shortest-side
    is given. Interrupted packing continues when the same command is given again."""

    out: Path = Path("pack")
    """The folder to write. If --data holds train/ and val/ or test/, it gets one pack for each."""

    label_column: str = ""
    """Which column of a table, or ending of the files beside the images in tar archives, holds labels to
    keep. Class folders are kept without it."""

    shortest_side: int = 0
    """Reduce images so that their shortest side has this many pixels, antialiased; smaller ones stay
    as they are. 0: keep all pixels."""

    verify: bool = False
    """Pack nothing, but compare every image in the pack --out with its checksum and name damaged ones."""

    def check(self) -> None:
        """Refuse settings that make no sense; raises ``UserError``."""
        super().check()
        if self.shortest_side and self.nodata:
            raise UserError(
                "--shortest-side would mix pixels without data into others: leave out one of it and "
                "--nodata"
            )
        if self.data is None and not self.verify:
            raise UserError("say which images to pack: --data FOLDER")
