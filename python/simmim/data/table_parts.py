"""Tables with a column that says of each row which part of the data set it belongs to: train, validation
or test."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Literal

from simmim.data.listing import Listing
from simmim.data.roles import ROLE_OF
from simmim.data.sources import CsvTable
from simmim.data.tables import TableSource
from simmim.errors import UserError

#: names of columns that say it
_COLUMNS = ("split", "subset", "partition")

Part = Literal["train", "held out", "one", "all"]


def take_part(listing: Listing, path: Path, part: Part, labels: str = "") -> Listing:
    """The rows of one part of a table, or the whole ``listing`` where no column says which is which.

    Args:
        path: what the user named.
        part: ``train``; ``held out``, the rows of validation or else of test; ``one`` refuses several
            parts; ``all`` takes them, and says so.
        labels: the column of the labels, which says nothing of parts.

    Raises:
        UserError: several parts and none to train on, none of their rows to validate on, or other words
            among them.
    """
    column, roles = _find_roles(listing, path, labels)
    counts = Counter(role for role in roles if role)
    if len(counts) < 2:
        return listing
    held = ", ".join(f"{count:,} of {role}" for role, count in counts.most_common())
    says = f"{path} says in its column {column} which rows are for what, {held}"
    if part == "one":
        raise UserError(f"{says}: write those that are wanted here into a table of their own")
    if part == "all":
        return dataclasses.replace(
            listing, part=f"all rows, whatever the column {column} says ({held})"
        )
    if "train" not in counts:
        raise UserError(
            f"{says}: none is train, so write those to train on into a table of their own"
        )
    wanted = part if part == "train" else "validation" if "validation" in counts else "test"
    rows = [number for number, role in enumerate(roles) if role == wanted]
    return dataclasses.replace(
        listing,
        paths=[listing.paths[row] for row in rows],
        rows=rows,
        part=f"the rows of {wanted} in the column {column} ({held})",
    )


def _find_roles(listing: Listing, path: Path, labels: str) -> tuple[str, list[str]]:
    """The column, and the part of each image of ``listing``, empty for a row that names none."""
    tables = listing.tables or list(
        dict.fromkeys(getattr(i, "source", None) for i in listing.paths)
    )
    if not all(isinstance(table, CsvTable | TableSource) for table in tables):
        return "", []
    for column in tables[0].columns:
        if column.lower() not in _COLUMNS or column == labels:
            continue
        if not all(column in table.columns for table in tables):
            continue
        try:
            values = {table: table.labels(column)[0] for table in tables}
        # lists or fractions, which name no part
        except UserError:
            continue
        words = {
            t: [str(value or "").strip().lower() for value in found] for t, found in values.items()
        }
        if listing.tables:
            texts = list(chain.from_iterable(words.values()))
        else:
            texts = [words[image.source][image.number] for image in listing.paths]
        other = sorted({*texts} - {"", *ROLE_OF})
        if not {*texts} & {*ROLE_OF}:
            continue
        if other:
            raise UserError(
                f"{path} has {other[0]!r} in its column {column}, beside names of parts: write train, val "
                "or test, or give the column another name"
            )
        return column, [ROLE_OF.get(text, "") for text in texts]
    return "", []
