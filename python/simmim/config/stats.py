"""What ``simmim stats`` can be told, and every command that reads all images once.

Each field's docstring is what ``--help`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simmim.config.images import Reading, SourceConfig
from simmim.config.numbers import check_numbers


@dataclass(frozen=True)
class ScanConfig(SourceConfig):
    """How all images of a source are read once."""

    channels: int | None = None
    """3 reads 8-bit images as RGB, 1 as gray; default 3 for these, and all bands of all others."""

    workers: int = 2
    """Readers at work at a time. The result is the same whatever the number."""

    on_bad_image: Literal["skip", "error"] = "skip"
    """An image that cannot be read: skip names it and leaves it out; error stops."""

    def check(self) -> None:
        """Refuse settings that make no sense; raises ``UserError``."""
        check_numbers(self)
        self.check_source()

    def reading(self, channels: int | None, dtype: str | None) -> Reading:
        """What is wanted of each image."""
        return Reading(channels, self.bands, dtype, self.layout, self.nodata, self.column)


@dataclass(frozen=True)
class StatsConfig(ScanConfig):
    """Measure images, channel by channel, over all files: mean, deviation, smallest and largest value,
    percentiles, and how many numbers hold no data. The type is that of the first image; others are
    refused."""

    out: Path = Path("stats.json")
    """The file to write, which --stats of the other commands takes."""

    overwrite: bool = False
    """Replace the file --out if it is there already."""
