"""Settings of ``simmim pack``.

Each field's docstring is what ``--help`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simmim.config.stats import ScanConfig
from simmim.errors import UserError


@dataclass(frozen=True)
class PackConfig(ScanConfig):
    """Read images once and store their pixels in a memory-mapped array, from which training reads
    crops without decoding. Lossless: a run on the pack equals one on the files, unless --shortest-side
    is given. Interrupted packing continues when the same command is given again."""

    out: Path = Path("pack")
    """The folder to write. If --data holds train/ and val/ or test/, it gets one pack for each."""

    shortest_side: int = 0
    """Reduce images so that their shortest side has this many pixels, antialiased; smaller ones stay
    as they are. 0: keep all pixels."""

    verify: bool = False
    """Pack nothing, but compare every image in the pack --out with its checksum and name damaged ones."""

    def check(self) -> None:
        """Refuse settings that make no sense; raises ``UserError``."""
        super().check()
        if self.shortest_side < 0:
            raise UserError(f"--shortest-side must be at least 0, not {self.shortest_side}")
        if self.shortest_side and self.nodata:
            raise UserError(
                "--shortest-side would mix pixels without data into others: leave out one of it and "
                "--nodata"
            )
        if self.data is None and not self.verify:
            raise UserError("say which images to pack: --data FOLDER")
