"""A fingerprint of a run's images, to tell whether a resumed run has the same ones.

Seen are another number of files, other paths below the folder of the data, other sizes, other
class names and other labels. Not seen is a file that was changed and kept its size, and any change of
the images that are only validated on. Where the folder itself lies does not matter.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from simmim.data.item import Item, name_below, size_of

#: on network drives a question about a file takes long, and many can be asked at once
_THREADS = 32


def data_fingerprint(
    paths: Sequence[Path | Item],
    root: Path,
    classes: Sequence[str] = (),
    labels: Sequence[object] = (),
) -> dict[str, int | str]:
    """The fingerprint of images, as checkpoints hold it.

    Args:
        paths: images to train on, in the order of the run.
        root: the folder that they were found in, which may be moved.
        classes: names in the order of the labels.
        labels: that of each image.

    Returns:
        ``images``, how many files, and SHA-256 hashes in hexadecimal: ``paths``, of their paths below
        ``root``, ``sizes``, of their bytes, ``classes``, empty without them, and where there are labels
        ``labels``.
    """
    pieces = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = [size for piece in pool.map(_sizes, pieces) for size in piece]
    found: dict[str, int | str] = {
        "images": len(paths),
        "paths": _hash(os.fsencode(name_below(path, root)) for path in paths),
        "sizes": _hash(str(size).encode() for size in sizes),
        "classes": _hash(map(os.fsencode, classes)) if classes else "",
    }
    # packs that were begun before there were labels go on
    if labels:
        found["labels"] = _hash(os.fsencode(str(label)) for label in labels)
    return found


def difference(now: dict[str, int | str], kept: dict[str, int | str]) -> str:
    """What is other in one fingerprint than in one that was kept, in one line; empty if nothing is."""
    if kept["images"] != now["images"]:
        return f"{kept['images']:,} images then, {now['images']:,} now"
    words = {
        "classes": "other class names",
        "labels": "other labels",
        "paths": "other file names or folders",
        "sizes": "files of other sizes",
    }
    return ", ".join(
        text for name, text in words.items() if kept.get(name, now.get(name)) != now.get(name)
    )


def _sizes(paths: Sequence[Path | Item]) -> list[int]:
    return [size_of(path) for path in paths]


def _hash(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        # no name holds this byte
        found.update(part + b"\0")
    return found.hexdigest()
