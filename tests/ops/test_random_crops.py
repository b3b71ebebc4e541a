"""random_crops: torchvision's boxes for the same random numbers, the same bits everywhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.ops.numpy_masks import random_crop, uniform, words

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def rising(least, most):
    return st.tuples(st.floats(least, most), st.floats(least, most)).map(
        lambda pair: tuple(sorted(pair))
    )


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    data=st.data(),
    scale=rising(0.01, 1.0),
    ratio=rising(0.1, 10.0),
    flip=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_boxes_as_numpy(backend, ids, data, scale, ratio, flip, seed, epoch):
    side = st.integers(1, 700)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=len(ids), max_size=len(ids)))
    with sk.backend(backend):
        boxes, flips = sk.random_crops(
            *(torch.tensor(ids), torch.tensor(sizes), (8, 8), scale, ratio),
            flip=flip, seed=seed, epoch=epoch,
        )  # fmt: skip
    assert boxes.dtype == torch.int64 and flips.dtype == torch.bool
    for row, (sample, size) in enumerate(zip(ids, sizes, strict=True)):
        expected = random_crop(sample, *size, scale, ratio, flip, seed, epoch)
        assert (tuple(boxes[row].tolist()), bool(flips[row])) == expected


@pytest.mark.parametrize("size", [(375, 500), (10, 400), (500, 20), (1, 1)])
def test_torchvision_makes_the_same_boxes_of_the_same_numbers(size, monkeypatch):
    """Its own class, fed with our words in the order in which it asks for numbers."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs, image = v2.RandomResizedCrop(8, SCALE, RATIO), torch.empty(3, *size)
    asked, empty = {"draws": 0, "places": 0}, torch.empty

    class Drawn:
        """Stands for `torch.empty(1)`: a number of float64, where torchvision's is float32."""

        def uniform_(self, least, most):
            attempt, word = divmod(asked["draws"], 2)
            asked["draws"] += 1
            part = int(tries[attempt, word]) / 2**32
            return empty(1, dtype=torch.float64).fill_(least + part * (most - least))

    def randint(least, most, size):
        asked["places"] += 1
        return torch.tensor([uniform(tries[asked["draws"] // 2 - 1, 1 + asked["places"]], most)])

    ours, _ = sk.random_crops(torch.arange(200), size, (8, 8), SCALE, RATIO, seed=3, epoch=2)
    monkeypatch.setattr(torch, "empty", lambda *_: Drawn())
    monkeypatch.setattr(torch, "randint", randint)
    for sample in range(200):
        tries = words(sample, 0x83000000 + np.arange(10), 3, 2)
        asked.update(draws=0, places=0)
        box = theirs.make_params([image])
        if box[
            "height"
        ]:  # of an image of a column or two torchvision's central box may have no pixel
            expected = [box[key] for key in ("top", "left", "height", "width")]
            assert ours[sample].tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_has_the_same_box_in_every_batch(backend):
    ids, sizes = torch.arange(300), torch.stack((torch.arange(300) + 20, torch.full((300,), 90)), 1)
    call = {"size": (8, 8), "scale": SCALE, "ratio": RATIO, "seed": 7, "epoch": 1}
    with sk.backend(backend):
        boxes, flips = sk.random_crops(ids, sizes, **call)
        order = torch.randperm(300)[:40]
        some, some_flips = sk.random_crops(order, sizes[order], **call)
        one, _ = sk.random_crops(order[:1], tuple(sizes[order[0]].tolist()), **call)
    assert torch.equal(some, boxes[order]) and torch.equal(some_flips, flips[order])
    assert torch.equal(one, some[:1])
    assert 0.35 < flips.float().mean() < 0.65


def test_areas_and_ratios_are_spread_as_promised():
    boxes, flips = sk.random_crops(
        torch.arange(4000), (400, 400), (8, 8), (0.67, 1.0), RATIO, flip=0.25, seed=1
    )
    top, left, h, w = boxes.double().unbind(1)
    area, ratio = h * w / 400**2, w / h
    assert ((top >= 0) & (left >= 0) & (top + h <= 400) & (left + w <= 400)).all()
    assert 0.66 < area.min() < 0.68 and area.max() > 0.95
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.34
    assert abs(ratio.log().mean()) < 0.01
    assert abs(flips.float().mean() - 0.25) < 0.03


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("image", "size", "expected"),
    [
        ((30, 50), (10, 10), (0, 10, 30, 30)),
        ((50, 30), (10, 20), (17, 0, 15, 30)),
        ((24, 36), (16, 24), (0, 0, 24, 36)),
        ((5, 1), (1, 9), (2, 0, 1, 1)),
    ],
)
def test_the_whole_at_the_ratio_of_the_result_is_the_central_box(backend, image, size, expected):
    with sk.backend(backend):
        boxes, flips = sk.random_crops(torch.arange(3), image, size, (1, 1), None, flip=0, seed=2)
    assert boxes.tolist() == [list(expected)] * 3 and not flips.any()


def test_a_seed_of_none_follows_pytorchs():
    def draw():
        return sk.random_crops(torch.arange(4), (90, 90), (8, 8), SCALE, RATIO)[0]

    torch.manual_seed(4)
    first, second = draw(), draw()
    torch.manual_seed(4)
    assert torch.equal(draw(), first) and not torch.equal(first, second)


def test_no_samples():
    boxes, flips = sk.random_crops(torch.arange(0), (9, 9), (8, 8), SCALE, RATIO, seed=1)
    assert boxes.shape == (0, 4) and flips.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sizes": torch.ones(3, 2, dtype=torch.int64)},
            r"sizes has shape \(3, 2\); allowed: .*2 ids",
        ),
        ({"sizes": torch.tensor([[4, 4], [0, 4]])}, "sizes names 0 rows or columns"),
        ({"sizes": (4, 0)}, r"sizes is \(4, 0\)"),
        ({"size": (0, 4)}, r"size is \(0, 4\)"),
        ({"scale": (0.5, 0.4)}, r"scale is \(0.5, 0.4\); allowed: two positive numbers that rise"),
        ({"ratio": (0.0, 1.0)}, r"ratio is \(0.0, 1.0\)"),
        ({"ratio": (1.0, math.inf)}, r"ratio is \(1.0, inf\)"),
        ({"flip": 1.5}, "flip is 1.5; allowed: a probability"),
        ({"ids": torch.ones(2, 1, dtype=torch.int64)}, "ids has shape"),
        ({"epoch": -1}, "epoch is -1"),
    ],
)
def test_wrong_values_are_named(changes, message):
    call = {"ids": torch.arange(2), "sizes": (9, 9), "size": (8, 8), "scale": SCALE, "ratio": RATIO}
    with pytest.raises(ValueError, match=message):
        sk.random_crops(**call | {"seed": 1} | changes)


def test_wrong_types_are_named():
    call = {"sizes": (9, 9), "size": (8, 8), "scale": SCALE, "ratio": RATIO}
    with pytest.raises(TypeError, match="ids has dtype int32; allowed: int64"):
        sk.random_crops(torch.arange(2, dtype=torch.int32), **call)
    for listed in ([(20, 20), (30, 30)], [(20, 20)] * 3, 20, (20.0, 20)):
        with pytest.raises(TypeError, match=r"^sizes .*; sizes of several images are a tensor"):
            sk.random_crops(torch.arange(2), **call | {"sizes": listed})
    with pytest.raises(TypeError, match="sizes has dtype float32"):
        sk.random_crops(torch.arange(2), **call | {"sizes": torch.ones(2, 2)})
