"""Files, crops and order: every kind of image, and nothing that depends on workers."""

from __future__ import annotations

import dataclasses
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from simmim.config.images import Reading
from simmim.config.pretrain import PretrainConfig
from simmim.data.batches import collate
from simmim.data.cropping import Cropping
from simmim.data.crops import (
    Crops,
    central_crops,
    check_readable,
)
from simmim.data.demo import demo_photographs
from simmim.data.images import BadImageError
from simmim.data.item import Paths
from simmim.data.order import Order
from simmim.data.read_ahead import Way, read_batches, validation_batches, way_to_validate
from simmim.data.splits import split_files
from simmim.errors import UserError
from simmim_kernels import crop_resize, random_crops

from .conftest import smooth_image
from .pictures import find_images, read_image

CROPPING = Cropping((16, 24), (0.3, 1.0), (0.75, 4 / 3), 0.5, seed=7)


def crops(folder: Path, **options) -> Crops:
    return Crops(find_images(folder), CROPPING, Reading(3), **options)


@pytest.mark.parametrize("held", [1, 4000, 1 << 30])
@pytest.mark.parametrize("options", [{}, {"crops": 2}, {"cache": True}, {"replace": False}])
def test_samples_read_together_are_those_read_alone(tmp_path, monkeypatch, held, options):
    """Of images of several sizes, a damaged one and one of which parts are read among them."""
    for number in range(6):
        pixels = Image.fromarray(smooth_image(number, 30 + 5 * number, 50))
        pixels.save(tmp_path / f"{number}.png")
    tifffile.imwrite(tmp_path / "3.tif", smooth_image(9, 40, 40), tile=(16, 16))
    (tmp_path / "4.png").write_bytes(b"no image")
    clipped = dataclasses.replace(CROPPING, clip=((20.0,) * 3, (200.0,) * 3), central_first=True)
    wanted = Reading(3, bands=(1, 2, 3))
    monkeypatch.setattr("simmim.data.crops.HELD", held)
    for cropping, wants in ((CROPPING, Reading(3)), (clipped, wanted)):
        indices = [(epoch, sample) for epoch in (0, 1) for sample in range(7)]
        together = Crops(find_images(tmp_path), cropping, wants, **options).__getitems__(indices)
        alone = Crops(find_images(tmp_path), cropping, wants, **options)
        for index, sample in zip(indices, together, strict=True):
            assert torch.equal(sample.image, alone[index].image)
            assert (sample.source, sample.read) == (alone[index].source, alone[index].read)
        assert len({sample.image.sum().item() for sample in together}) > 5


def test_images_that_wait_for_their_crops_are_few(tmp_path, monkeypatch):
    """However large they are and however many a process reads at a time."""
    for number in range(6):
        Image.fromarray(smooth_image(number, 100, 100)).save(tmp_path / f"{number}.png")
    dataset, several = crops(tmp_path), Cropping.several
    seen = []
    monkeypatch.setattr("simmim.data.crops.HELD", 60_000)
    monkeypatch.setattr(
        Cropping, "several", lambda self, i, d: seen.append(len(i)) or several(self, i, d)
    )
    dataset.__getitems__([(0, sample) for sample in range(6)] * 2)
    assert seen == [2] * 6


def test_paths_in_arrays_are_the_paths_themselves():
    paths = [Path("a/b.png"), Path("ü.png"), Path(os.fsdecode(b"\xff.png")), Path("/c\nd.png")]
    kept = pickle.loads(pickle.dumps(Paths(paths)))
    assert [*kept] == paths
    assert (kept[-1], [*kept[1:3]], len(kept), len(Paths([]))) == (paths[-1], paths[1:3], 4, 0)
    with pytest.raises(IndexError):
        kept[4]


def test_a_tree_is_searched_in_the_order_of_its_parts(tmp_path):
    for name in ("b/2.png", "b/10.png", "b.d/1.png", "B/1.png", "a.png", "c.png", "b-c/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert found == sorted(found, key=lambda path: path.parts)
    assert len(found) == 7


def test_a_tree_is_searched_in_one_order(photographs):
    (photographs / "notes.txt").write_text("no image")
    (photographs / "part0" / "UPPER.JPG").write_bytes(b"")
    names = [str(p.relative_to(photographs)) for p in find_images(photographs)]
    assert names == [
        *(f"part0/{n}" for n in ("0.png", "2.png", "4.png", "6.png", "UPPER.JPG")),
        *(f"part1/{n}.png" for n in (1, 3, 5, 7)),
    ]


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_and_channels(tmp_path, suffix, channels):
    pixels = smooth_image(1, 40, 50)
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **options)
    got = read_image(tmp_path / f"a.{suffix}", channels)
    mode = "RGB" if channels == 3 else "L"
    expected = np.array(Image.fromarray(pixels).convert(mode)).reshape(40, 50, channels)
    difference = np.abs(got.permute(1, 2, 0).numpy().astype(int) - expected)
    assert got.dtype == torch.uint8
    # JPEG loses detail; the others keep every bit
    assert difference.mean() < 4 if suffix == "jpg" else not difference.any()


def test_gray_files_become_rgb(tmp_path):
    Image.fromarray(smooth_image(1, 20, 20)[..., 0]).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", 3)
    assert got.shape == (3, 20, 20)
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[0], got[2])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_lie_on_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    image.putpixel((0, 0), (9, 9, 9, 0))
    image.convert(mode).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 3)[:, 0, 0].tolist() == [255, 255, 255]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for suffix in ("jpg", "png"):
        Image.fromarray(smooth_image(1, 20, 30)).save(tmp_path / f"a.{suffix}", exif=exif)
        assert read_image(tmp_path / f"a.{suffix}", 3).shape == (3, 30, 20)


def damaged_files(folder: Path) -> list[Path]:
    """One file of every kind that cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = smooth_image(2, 64, 64)
    Image.fromarray(whole).save(folder / "cut.jpg")
    Image.fromarray(whole).save(folder / "cut.png")
    for name in ("cut.jpg", "cut.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.webp").write_text("this is no image")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(folder / "deep.png")
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(folder / "float.tiff")
    return sorted(folder.iterdir())


def test_damaged_files_are_told_from_images(tmp_path):
    for path in damaged_files(tmp_path):
        with pytest.raises(BadImageError):
            read_image(path, 3)


def test_the_next_readable_image_stands_in(photographs):
    good = crops(photographs)
    bad = photographs / "part0" / "2.png"
    bad.write_bytes(b"nothing")
    dataset = crops(photographs)
    sample = dataset[3, 1]
    assert sample.bad[0][0] == str(bad)
    assert sample.id == 1
    following = read_image(good.paths[2], 3)
    assert torch.equal(sample.image, CROPPING(following, 3, 1, 0).pixels)
    batch = collate([sample])
    check_readable(batch, "skip")
    with pytest.raises(UserError, match=r"2\.png"):
        check_readable(batch, "error")


def test_a_folder_without_any_readable_image_is_an_error(tmp_path):
    damaged_files(tmp_path)
    batch = collate([crops(tmp_path)[0, 0]])
    assert len(batch.bad) == 6
    with pytest.raises(UserError, match="no image can be read"):
        check_readable(batch, "skip")


def test_crops_depend_on_seed_epoch_and_sample_only(photographs):
    dataset = crops(photographs, crops=3)
    first = dataset[2, 17]
    for index in [(0, 3), (2, 5)]:
        _ = dataset[index]
    assert torch.equal(dataset[2, 17].image, first.image)
    others = [dataset[3, 17], dataset[2, 17 - 8], dataset[2, 18]]
    reseeded = Crops(dataset.paths, dataclasses.replace(CROPPING, seed=8), Reading(3), crops=3)
    for other in [*others, reseeded[2, 17]]:
        assert not torch.equal(other.image, first.image)


@pytest.mark.parametrize("cache", [False, True])
def test_batches_are_the_same_for_any_number_of_workers(photographs, cache):
    def batches(kind: str, count: int) -> list:
        order = Order(samples=16, batch=3, accumulate=1, seed=5, epochs=2)
        dataset = crops(photographs, crops=2, cache=cache)
        return list(read_batches(dataset, order.batches(0), Way(kind, count)))

    alone = batches("processes", 0)
    assert len(alone) == 10
    for way in (("processes", 1), ("processes", 3), ("threads", 3), ("pause", 2)):
        for one, other in zip(alone, batches(*way), strict=True):
            assert torch.equal(one.ids, other.ids)
            assert torch.equal(one.images, other.images)


def test_a_loader_leaves_the_default_generator_alone(photographs):
    order = Order(samples=8, batch=4, accumulate=1, seed=5, epochs=1)
    before = torch.get_rng_state()
    for way in (Way("processes", 0), Way("processes", 1), Way("threads", 2)):
        list(read_batches(crops(photographs), order.batches(0), way))
    assert torch.equal(torch.get_rng_state(), before)


def test_order_visits_everything_once_an_epoch():
    order = Order(samples=20, batch=5, accumulate=2, seed=1, epochs=3)
    batches = list(order.batches(0))
    assert order.updates_per_epoch == 2
    assert len(batches) == 12
    epochs = [[i for b in batches[4 * e : 4 * e + 4] for i in b] for e in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(s for _, s in epoch) == list(range(20))
        assert {e for e, _ in epoch} == {number}
    assert [s for _, s in epochs[0]] != [s for _, s in epochs[1]]


@pytest.mark.parametrize("way", [Way("processes", 0), Way("pause", 2), Way("threads", 3)], ids=str)
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_validation_batches_count_everything_once(photographs, world, way):
    dataset = crops(photographs)
    orders = [
        Order(samples=8, batch=2, accumulate=1, seed=1, epochs=1, rank=rank, world=world)
        for rank in range(world)
    ]
    parts = [list(validation_batches(dataset, order, way)) for order in orders]
    assert len({len(batches) for batches in parts}) == 1
    counted = [int(i) for batches in parts for batch, count in batches for i in batch.ids[:count]]
    assert sorted(counted) == list(range(8))


@pytest.mark.parametrize(
    ("workers", "device", "cores", "way"),
    [
        ("auto", "cpu", 2, ("pause", 2)),
        ("auto", "cpu", 32, ("threads", 32)),
        ("auto", "cuda", 4, ("threads", 4)),
        (3, "cuda", 4, ("threads", 3)),
        (0, "cuda", 4, ("processes", 0)),
    ],
)
def test_threads_read_what_is_validated_on(workers, device, cores, way):
    assert way_to_validate(workers, device, cores) == way


def test_threads_end_with_the_validation_that_is_left_early(photographs):
    order = Order(samples=8, batch=2, accumulate=1, seed=1, epochs=1)
    batches = validation_batches(crops(photographs), order, Way("threads", 2))
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("samples", [24, 13, 25, 3])
def test_what_is_left_over_makes_a_smaller_update(samples, world):
    """Whatever the number of processes, an update's images weigh the same and are the same."""
    alone = Order(samples=samples, batch=12, accumulate=1, seed=1, epochs=2, keep_rest=True)
    whole = list(alone.batches(0))
    assert sorted(s for batch in whole[: len(whole) // 2] for _, s in batch) == list(range(samples))
    accumulate = 2
    orders = [
        dataclasses.replace(
            alone, batch=12 // world // accumulate, accumulate=accumulate, rank=r, world=world
        )
        for r in range(world)
    ]
    parts = [list(order.batches(0)) for order in orders]
    assert all(order.updates == alone.updates for order in orders)
    for update, expected in enumerate(whole):
        weights = dict.fromkeys(expected, 0.0)
        for order, part in zip(orders, parts, strict=True):
            for turn in range(accumulate):
                batch = part[update * accumulate + turn]
                for sample in batch:
                    # as gradients are: averaged over processes, added over passes
                    weights[sample] += order.weight(update, turn) / len(batch) / world
        assert list(weights.values()) == pytest.approx([1 / len(expected)] * len(expected))


def test_order_from_the_middle_is_the_rest():
    order = Order(samples=21, batch=2, accumulate=2, seed=1, epochs=3)
    everything = list(order.batches(0))
    for update in range(order.updates + 1):
        assert list(order.batches(update)) == everything[2 * update :]


def test_processes_share_the_global_batches():
    alone = list(Order(samples=24, batch=6, accumulate=1, seed=1, epochs=2).batches(0))
    parts = [
        list(Order(samples=24, batch=3, accumulate=1, seed=1, epochs=2, rank=r, world=2).batches(0))
        for r in range(2)
    ]
    assert alone == [a + b for a, b in zip(*parts, strict=True)]


def test_skipped_samples_are_not_decoded(photographs, monkeypatch):
    read = []
    monkeypatch.setattr(
        "simmim.data.crops.read_image",
        lambda path, channels: read.append(path) or torch.zeros(3, 9, 9),
    )
    order = Order(samples=8, batch=2, accumulate=1, seed=1, epochs=1)
    for count, way in enumerate((Way("processes", 0), Way("pause", 2), Way("threads", 2)), 1):
        assert len(list(read_batches(crops(photographs), order.batches(3), way))) == 1
        assert len(read) == 2 * count


def test_a_crop_is_that_of_the_kernels():
    """Whatever reads it: a sample's crop is `crop_resize` of the box of `random_crops`."""
    image, ids = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8), torch.arange(20)
    boxes, flips = random_crops(
        ids, (90, 130), CROPPING.size, CROPPING.scale, CROPPING.ratio, seed=7, epoch=3
    )
    expected = crop_resize([image] * 20, boxes, CROPPING.size, flip=flips)
    for sample in ids.tolist():
        assert torch.equal(CROPPING(image, 3, sample, 0).pixels, expected[sample])


@pytest.mark.parametrize(
    ("image", "size", "rows", "columns"),
    [
        ((10, 400), (16, 16), slice(0, 10), slice(195, 205)),
        ((64, 40), (16, 24), slice(18, 45), slice(0, 40)),
        ((3, 30), (8, 8), slice(0, 3), slice(13, 16)),
    ],
)
def test_the_first_crop_of_a_held_out_image_is_the_largest_central_one(image, size, rows, columns):
    cropping = dataclasses.replace(CROPPING, size=size, central_first=True)
    pixels = torch.randint(0, 256, (3, *image), dtype=torch.uint8)
    part = pixels[:, rows, columns].float()[None].contiguous()
    expected = torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)
    found = cropping(pixels, 0, 5, 0).pixels
    assert (found.float() - expected[0]).abs().max() < 0.6
    assert torch.equal(cropping(pixels, 4, 6, 0).pixels, found)
    assert not torch.equal(cropping(pixels, 4, 6, 1).pixels, found)


def test_held_out_images_are_fixed_and_apart(photographs):
    config = PretrainConfig(data=photographs, val_count=3, img_size=(16, 24), val_crops=2)
    files = split_files(config)
    assert files == split_files(dataclasses.replace(config, seed=9))
    assert len(files.validation) == 3
    assert sorted(files.train + files.validation) == sorted(find_images(photographs))
    dataset = central_crops(config, files.validation, crops=config.val_crops)
    order = Order(samples=6, batch=4, accumulate=1, seed=1, epochs=1, keep_rest=True)
    batches = list(validation_batches(dataset, order, Way("pause", 2)))
    assert [(len(b.ids), count) for b, count in batches] == [(4, 4), (2, 2)]
    assert torch.equal(batches[0][0].images[0], dataset[0, 0].image)
    # the first crop of an image is central whatever the random numbers
    assert torch.equal(dataset[0, 1].image, dataset[5, 1].image)
    assert not torch.equal(dataset[0, 4].image, dataset[5, 4].image)


def test_too_many_held_out(photographs):
    with pytest.raises(UserError, match="leaves nothing to train on"):
        split_files(PretrainConfig(data=photographs, val_count=8))


def test_demo_photographs_are_there():
    train, held_out = demo_photographs()
    assert len(held_out) == 2
    assert not set(train) & set(held_out)
    for path in held_out:
        assert read_image(path, 3).shape[0] == 3


def test_collate_keeps_what_was_passed_over(photographs):
    (photographs / "part1" / "7.png").write_bytes(b"")
    batch = collate([crops(photographs)[0, 7], crops(photographs)[0, 0]])
    assert batch.ids.tolist() == [7, 0]
    assert len(batch.bad) == 1
