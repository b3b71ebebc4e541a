"""``simmim pack``: images, read once, in the store that ``packed`` reads."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from simmim.config.images import Reading
from simmim.config.scan import PackConfig
from simmim.data.bands import Picture
from simmim.data.fingerprint import data_fingerprint
from simmim.data.image_contents import collected_notes
from simmim.data.images import BadImageError, LostImageError, file_errors, read_image
from simmim.data.item import Item, name_below
from simmim.data.labels import read_labels
from simmim.data.listing import PACK, Listing, summarize_bad
from simmim.data.packed import HEADER, INDEX, PART, PIXELS, Row, check_pack, damaged_rows, read_rows
from simmim.data.sources import check_column_and_layout, find_source, is_folder_of_files, is_pack
from simmim.data.splits import check_links, find_roles
from simmim.data.statistics import first_contents
from simmim.data.table_parts import take_part
from simmim.errors import UnreadableImageError, UserError, require, say
from simmim.storage.files import TEXT, flush_file, replacing, write_text
from simmim.storage.folder_lock import FolderLock
from simmim.storage.outputs import check_link

transforms = require("torchvision.transforms.v2.functional")
tqdm = require("tqdm")

#: images that are read ahead by each reader, and rows of an image that are copied at a time
_AHEAD, _ROWS = 8, 512


def command(config: PackConfig) -> int:
    """Pack, or check a pack; returns the exit status.

    Raises:
        UserError: no images, others than the pack was begun with, files in the way, a full disk.
    """
    if config.verify:
        packs = [config.out] if (config.out / PACK).exists() else config.out.glob(f"*/{PACK}")
        packs = sorted(path if path.is_dir() else path.parent for path in packs)
        for path in packs:
            print(f"{check_pack(path):,} images in {path} are as they were packed")
        if not packs:
            raise UserError(f"{config.out} is no pack")
        return 0
    roles = find_roles(config.data) if is_folder_of_files(config.data) else {}
    for part in roles.values() if len(roles) > 1 else [config.data]:
        out = config.out / part.name if len(roles) > 1 else config.out
        try:
            packed = pack(config, part, out)
        except BrokenPipeError:  # of the log
            raise
        except OSError as error:
            raise UserError(
                f"cannot write {out}: {error.strerror}; what is packed stays, and the same command "
                "goes on from there"
            ) from error
        # where this fails, all is packed
        print(packed)
    return 0


def pack(config: PackConfig, data: Path, out: Path) -> str:
    """Pack the images of ``data`` into ``out``, or go on where that was interrupted; returns what is
    to be said of it."""
    check_link(out)
    there = {path.suffix for path in out.iterdir()} if out.exists() else set()
    # of a pack that was killed at once there is a lock alone
    if there - {".lock", ".tmp"} and not (out / PACK).exists():
        raise UserError(f"{out} is not empty and holds no pack: choose another --out")
    listing = take_part(find_source(data, config, [config.out]), data, "one", config.label_column)
    check_column_and_layout(config, listing)
    check_links(listing, config.on_bad_image)
    labels, classes = [], []
    if config.label_column or is_pack(data):
        labels, classes = read_labels(listing, data, config)
    if not classes:
        # as of a pack that holds none
        labels, listing.labels = [], ""
    say(listing.summary())
    wanted = first_contents(config, listing.paths)
    source = data_fingerprint(listing.paths, listing.folder, labels=labels)
    about = {**wanted._asdict(), "shortest_side": config.shortest_side, "source": source}
    about |= {"classes": classes} if classes else {}
    if is_pack(data):
        # of a pack that is packed again, what is said of its images still holds
        before = listing.paths[0].source
        about["bands"] = wanted.bands or before.bands
        about["shortest_side"] = config.shortest_side or before.shortest_side
    out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out, "pack", out)
    lock.acquire()
    try:
        rows = _begin(out, json.loads(json.dumps(about)))
        bad = _append(config, listing, wanted, out, rows, labels)
    finally:
        lock.release()
    size = (out / PIXELS).stat().st_size / 2**20
    text = f"{len(rows):,} images of {wanted.dtype}, {size:,.1f} MiB; wrote {out}"
    if bad:
        text += f"\n{len(bad):,} could not be read and were left out: {summarize_bad(bad)}"
    return text


def _begin(out: Path, about: dict) -> list[Row]:
    """What is packed already, held to its checksums; what follows is cut off.

    Raises:
        UserError: it was begun with other images or settings.
    """
    try:
        before = json.loads((out / PACK).read_text()) if (out / PACK).exists() else about
    except ValueError as error:
        raise UserError(f"{out / PACK} is damaged: choose another --out") from error
    changed = [name for name in about if about[name] != before.get(name)]
    if changed:
        raise UserError(
            f"{out} was begun with another {' and '.join(changed)}: give the same --data and "
            "settings, or choose another --out"
        )
    part, index, dtype = out / PART, out / INDEX, np.dtype(about["dtype"])
    if (out / PIXELS).exists():
        (out / PIXELS).rename(part)
    rows = read_rows(index) if index.exists() and part.exists() else []
    if rows:
        count = max(0, part.stat().st_size - HEADER) // dtype.itemsize
        pixels = np.memmap(part, dtype, "r", HEADER, count) if count else np.empty(0, dtype)
        first = next(damaged_rows(pixels, rows), None)
        if first is not None:
            say(f"{out}/{first.name} is damaged: packed anew")
            rows = rows[: rows.index(first)]
        say(f"going on after {len(rows):,} images")
    write_text(out / PACK, json.dumps(about, indent=1) + "\n")
    with replacing(index) as path, path.open("w", **TEXT) as file:
        csv.writer(file, lineterminator="\n").writerows([Row._fields, *rows])
    with part.open("ab") as file:
        file.truncate(HEADER + (rows[-1].end * dtype.itemsize if rows else 0))
    return rows


def _append(
    config: PackConfig, listing: Listing, wanted: Reading, out: Path, rows: list[Row], labels: list
) -> dict[str, str]:
    """Pack the images that follow ``rows``, which grows, under ``labels``, or where there are none under
    their folders; returns why others were left out."""
    names = [name_below(image, listing.folder) for image in listing.paths]
    labels = labels or list(map(_label, listing.paths, names))
    first, bad, dtype = 0, {}, np.dtype(wanted.dtype)
    for row in rows:
        first = names.index(row.name, first) + 1
    interval = 1 if sys.stderr.isatty() else 60
    with (
        (out / PART).open("r+b") as pixels,
        (out / INDEX).open("a", **TEXT) as index,
        tqdm.tqdm(total=len(names), initial=first, unit="images", mininterval=interval) as progress,
    ):
        pixels.seek(0, os.SEEK_END)
        images = listing.paths[first:]
        for name, label, image, found in zip(
            names[first:],
            labels[first:],
            images,
            _read(config, wanted, images),
            strict=True,
        ):
            progress.update()
            start, crc = pixels.tell(), 0
            try:
                for content in _parts(image, found):
                    pixels.write(content)
                    crc = crc32(content, crc)
            except BadImageError as error:
                pixels.seek(start)
                pixels.truncate()
                if config.on_bad_image == "error" or isinstance(error, LostImageError):
                    raise UnreadableImageError(
                        f"cannot read {image}: {error}; what is packed stays, and the same command "
                        "goes on from there"
                    ) from error
                bad[str(image)] = str(error)
                say(f"left out {image}: {error}")
                continue
            channels, height, width = found.shape
            offset = (start - HEADER) // dtype.itemsize
            rows.append(Row(name, label, offset, height, width, channels, crc))
            # the pixels first, so that the index never names what is not there
            pixels.flush()
            csv.writer(index, lineterminator="\n").writerow(rows[-1])
            index.flush()
        if not rows:
            raise UnreadableImageError(f"no image can be read: {summarize_bad(bad)}")
        pixels.seek(0)
        shape = {"descr": dtype.str, "fortran_order": False, "shape": (rows[-1].end,)}
        np.lib.format.write_array_header_1_0(pixels, shape)
    flush_file(out / INDEX)
    flush_file(out / PART)
    (out / PART).rename(out / PIXELS)
    return bad


def _label(image: Path | Item, name: str) -> str:
    """The class of an image that is called ``name``, by its folder; empty if it has none."""
    if not isinstance(image, Path):
        return ""
    folder, _, below = name.partition("/")
    # a list's images may lie elsewhere, and then their folders are no classes
    return folder if below and folder != ".." else ""


def _read(
    config: PackConfig, wanted: Reading, images: list[Path | Item]
) -> Iterator[Picture | BadImageError]:
    """The images in their order, some read ahead by threads."""

    def read(image: Path | Item) -> Picture | BadImageError:
        try:
            with collected_notes() as notes, file_errors(image):
                found = _reduce(read_image(image, wanted), config.shortest_side)
        except BadImageError as error:
            return error
        if notes:
            say(f"{image}: {', '.join(notes)}")
        return found

    workers = max(1, config.workers)
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(images), workers * _AHEAD):
            yield from pool.map(read, images[first : first + workers * _AHEAD])


def _parts(image: Path | Item, found: Picture | BadImageError) -> Iterator[memoryview]:
    """The bytes of an image as ``(H, W, C)``, some rows at a time; raises ``BadImageError``."""
    if isinstance(found, BadImageError):
        raise found
    for top in range(0, found.shape[1], _ROWS):
        with file_errors(image):
            rows = found[:, top : top + _ROWS, :].numpy().transpose(1, 2, 0)
        yield np.ascontiguousarray(rows).data.cast("B")


def _reduce(image: Picture, side: int) -> Picture:
    """``image`` with its shortest side reduced to ``side`` pixels; 0 leaves it as it is."""
    height, width = image.shape[1:]
    if not side or min(height, width) <= side:
        # what is too large to be held is read in parts where it is written
        return image[:, :, :] if height * width < 2**24 else image
    size = [round(edge * side / min(height, width)) for edge in (height, width)]
    whole, dtype = image[:, :, :], image.dtype
    if dtype in (torch.uint16, torch.int16):
        return transforms.resize(whole.float(), size, antialias=True).round().to(dtype)
    return transforms.resize(whole, size, antialias=True)
