"""crop_resize: held to float64, to Pillow and to torchvision."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import simmim_kernels as sk
from tests.backends import BACKENDS, CASES
from tests.budget import assert_within_budget
from tests.ops.crop_cases import MODES, cases, drawn_images, plain
from tests.ops.integer_images import INTEGERS, integers

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def smooth(*shape: int) -> torch.Tensor:
    """A picture with edges, of all levels: blurred noise, stretched."""
    noise = F.avg_pool2d(torch.rand(1, *shape[:-2], shape[-2] + 8, shape[-1] + 8), 9, 1)[0]
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return ((noise * 1.6 - 0.3).clamp(0, 1) * 255).round().to(torch.uint8)


@given(case=cases())
@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_are_within_a_level(backend, case):
    images = drawn_images(case, lambda shape: integers(shape, torch.uint8))
    with sk.backend(backend):
        found = sk.crop_resize(images, **case)
    expected = plain(images, **case).clamp(0, 255)
    assert found.dtype == torch.uint8 and found.is_contiguous()
    assert (found.double() - expected).abs().max() < 1


@given(case=cases(), dtype=st.sampled_from(FLOATS), out=st.sampled_from((None, *FLOATS)))
@pytest.mark.parametrize("backend", BACKENDS)
def test_floats_are_within_the_budget(backend, case, dtype, out):
    images = drawn_images(case, lambda shape: torch.randn(shape).to(dtype))
    with sk.backend(backend):
        found = sk.crop_resize(images, **case, dtype=out)
    expected = plain(images, **case)
    narrow = out or dtype
    assert found.dtype == narrow
    usual = plain(images, **case, dtype=torch.promote_types(narrow, torch.float32)).to(narrow)
    # What is added up: the sizes of the cubic kernel's weights amount to less than 1.5 an axis.
    largest = 1.5**2 * max(image.abs().max() for image in images).double()
    assert_within_budget(found, usual, expected, magnitude=largest.expand(expected.shape))


@given(case=cases(), dtype=st.sampled_from([d for d in INTEGERS if d != torch.uint8]))
@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_integers_are_rounded_once(backend, case, dtype):
    images = drawn_images(case, lambda shape: integers(shape, dtype))
    with sk.backend(backend):
        found = sk.crop_resize(images, **case)
    limits = torch.iinfo(dtype)
    expected = plain(images, **case).clamp(limits.min, limits.max)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interpolation", MODES)
def test_bytes_become_numbers_from_0_to_1(backend, interpolation):
    images, boxes = (
        integers((2, 3, 20, 30), torch.uint8),
        torch.tensor([[0, 0, 20, 30], [1, 2, 9, 8]]),
    )
    call = {"size": (12, 14), "interpolation": interpolation}
    expected = plain(images, boxes, **call) / 255
    for dtype in FLOATS:
        with sk.backend(backend):
            found = sk.crop_resize(images, boxes, **call, dtype=dtype)
        torch.testing.assert_close(found, expected.to(dtype))


SIZES = [((200, 240), 192), ((320, 430), 224), ((333, 251), 224), ((60, 47), 128), ((900, 700), 64)]


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize(("size", "out"), SIZES)
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_bytes_are_nearer_to_exact_than_pillows(size, out, interpolation, kind):
    """Pillow's `resize(box=...)` also sees pixels beside the box where there are some; so that both
    mean the same, the box is the image; and once more its own crop, which sees the box alone."""
    make = smooth if kind == "smooth" else lambda *shape: integers(shape, torch.uint8)
    whole = make(3, size[0] + 9, size[1] + 7)
    top, left, resampling = 5, 3, getattr(Image.Resampling, interpolation.upper())
    part = whole[:, top : top + size[0], left : left + size[1]]
    for image, box in ((part, (0, 0, *size)), (whole, (top, left, *size))):
        boxes = torch.tensor([box])
        expected = plain(
            [part],
            torch.tensor([[0, 0, *size]]),
            (out, out),
            interpolation=interpolation,
            dtype=torch.float64,
        )
        expected = expected.clamp(0, 255)
        ours = sk.crop_resize([image], boxes, (out, out), interpolation=interpolation)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        corners = (box[1], box[0], box[1] + size[1], box[0] + size[0])
        theirs = [picture.resize((out, out), resampling, box=corners)]
        theirs.append(picture.crop(corners).resize((out, out), resampling))
        our_error = (ours.double() - expected).abs()
        assert our_error.max() < 1
        for resized in theirs:
            pillow = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].double()
            assert our_error.mean() <= (pillow - expected).abs().mean()


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_torchvisions_resized_crop_gives_the_same(dtype, interpolation):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    image = smooth(3, 375, 500).to(dtype)
    boxes, flips = sk.random_crops(
        torch.arange(6), (375, 500), (96, 128), (0.1, 1), (0.5, 2), seed=1
    )
    ours = sk.crop_resize([image] * 6, boxes, (96, 128), flip=flips, interpolation=interpolation)
    for sample, (top, left, h, w) in enumerate(boxes.tolist()):
        theirs = functional.resized_crop(
            image,
            top,
            left,
            h,
            w,
            [96, 128],
            getattr(functional.InterpolationMode, interpolation.upper()),
        )
        theirs = functional.horizontal_flip(theirs) if flips[sample] else theirs
        if dtype == torch.uint8:
            difference = (ours[sample].double() - theirs.double()).abs()
            assert difference.mean() < 0.2
            # theirs rounds to bytes between the passes, which cuts off what the cubic kernel overshoots
            assert difference.max() <= 1 or interpolation == "bicubic"
        else:
            call = {"interpolation": interpolation, "dtype": torch.float64}
            right = plain(
                [image], boxes[sample : sample + 1], (96, 128), flip=flips[sample:], **call
            )
            assert_within_budget(ours[sample], theirs, right[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_box_of_the_results_size_is_copied(backend, dtype):
    height = 9 if CASES else 20  # emulation is slow
    images = integers((2, 2, height + 10, 80), torch.uint8).to(dtype)
    boxes = torch.tensor([[3, 4, height, 66], [10, 14, height, 66]])
    for interpolation in MODES:
        with sk.backend(backend):
            found = sk.crop_resize(images, boxes, (height, 66), interpolation=interpolation)
        for sample, (top, left, h, w) in enumerate(boxes.tolist()):
            assert torch.equal(found[sample], images[sample, :, top : top + h, left : left + w])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [0, 1, 77, 254, 255])
def test_flat_areas_keep_their_level(backend, level):
    images = torch.full((1, 1, 20, 170), level, dtype=torch.uint8)
    for size in ((13, 70), (18, 169), (21, 200))[: 1 if CASES else 3]:  # emulation is slow
        for interpolation in MODES:
            with sk.backend(backend):
                found = sk.crop_resize(
                    images, torch.tensor([[1, 0, 18, 169]]), size, interpolation=interpolation
                )
            assert (found == level).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", MODES)
def test_nothing_outside_the_box_is_seen(backend, interpolation, antialias):
    images = torch.full((2, 2, 30, 30), float("nan"))
    boxes = torch.tensor([[3, 5, 20, 9], [0, 21, 30, 9]])
    for sample, (top, left, h, w) in enumerate(boxes.tolist()):
        images[sample, :, top : top + h, left : left + w] = torch.randn(2, h, w)
    with sk.backend(backend):
        found = sk.crop_resize(
            images, boxes, (11, 12), interpolation=interpolation, antialias=antialias
        )
    assert found.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pixel_that_is_no_number_spoils_what_is_made_of_it_alone(backend):
    image, boxes = torch.randn(1, 1, 8, 8), torch.tensor([[0, 0, 8, 8]])
    image[0, 0, 4, 4] = float("inf")
    with sk.backend(backend):
        found = sk.crop_resize(image, boxes, (4, 4))
    spoiled = (~found.isfinite())[0, 0]
    assert spoiled[2, 2] and spoiled.sum() <= 4 and not spoiled[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_tall_image_to_a_few_pixels(backend, dtype):
    """More taps than fixed point has bits for."""
    images = integers((1, 3, 611, 977), torch.uint8)
    boxes = torch.tensor([[11, 0, 600, 970]])
    expected = plain(images, boxes, (5, 9), dtype=torch.float64)
    with sk.backend(backend):
        found = sk.crop_resize(images.to(dtype), boxes, (5, 9)).double()
    assert (found - expected).abs().max() <= (0.51 if dtype == torch.uint8 else 1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_a_list_of_its_images(backend):
    whole, size = ((23, 31), (11, 21)) if CASES else ((33, 45), (24, 40))  # emulation is slow
    images = integers((3, 13, *whole), torch.uint8)
    boxes, flips = sk.random_crops(torch.arange(3), whole, size, (0.2, 1), (0.5, 2), seed=2)
    with sk.backend(backend):
        together = sk.crop_resize(images, boxes, size, flip=flips)
        apart = sk.crop_resize(list(images), boxes, size, flip=flips)
        one = sk.crop_resize(tuple(images[1:2]), boxes[1:2], size, flip=flips[1:2])
    assert torch.equal(together, apart) and torch.equal(one, together[1:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images(backend):
    with sk.backend(backend):
        found = sk.crop_resize(
            torch.empty(0, 3, 9, 9), torch.empty(0, 4, dtype=torch.int64), (4, 5)
        )
    assert found.shape == (0, 3, 4, 5)


IMAGES, BOXES = torch.zeros(2, 3, 20, 30), torch.tensor([[0, 0, 20, 30], [1, 2, 3, 4]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "box",
    [
        *((-1, 0, 5, 5), (0, -1, 5, 5), (16, 0, 5, 5), (0, 26, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0)),
        *((0, 0, -3, 5), (0, 0, 21, 30), (2**62, 0, 2**62, 5), (0, 0, 2**63 - 1, 1)),
    ],
)
def test_boxes_beyond_the_image_are_refused(backend, box):
    if backend not in ("cpu", "reference"):
        pytest.skip("on a GPU they are cut, without looking at them")
    boxes = torch.tensor([[0, 0, 20, 30], box])
    with sk.backend(backend), pytest.raises(ValueError, match=r"boxes\[1\] is \(top .*20 x 30"):
        sk.crop_resize(IMAGES, boxes, (4, 4))
    with pytest.raises(ValueError, match=r"boxes\[1\] is"):
        sk.crop_resize(list(IMAGES), boxes, (4, 4))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": []}, ValueError, "images is an empty list"),
        (
            {"images": IMAGES[0]},
            ValueError,
            r"images has shape .*; allowed: \(B, C, H, W\) or a list",
        ),
        ({"images": [IMAGES]}, ValueError, r"images\[0\] has shape"),
        ({"images": IMAGES[..., :0]}, ValueError, "at least one pixel"),
        ({"images": [IMAGES[0], IMAGES[1, :2]]}, ValueError, r"images\[1\] has 2 channels, but"),
        (
            {"images": [IMAGES[0], IMAGES[1].half()]},
            TypeError,
            r"images\[1\] has dtype torch.float16",
        ),
        ({"images": [IMAGES[0], IMAGES[1, 0]]}, ValueError, r"images\[1\] has shape \(20, 30\)"),
        ({"images": [IMAGES[0], None]}, TypeError, "got list that holds NoneType"),
        ({"images": IMAGES.long()}, TypeError, "images has dtype int64; allowed: .*uint8"),
        ({"images": IMAGES.clone().requires_grad_()}, ValueError, "images requires a gradient"),
        ({"boxes": BOXES[:1]}, ValueError, r"boxes has shape \(1, 4\); allowed for 2 images"),
        ({"boxes": BOXES.int()}, TypeError, "boxes has dtype int32; allowed: int64"),
        ({"flip": torch.zeros(3, dtype=torch.bool)}, ValueError, r"flip has shape \(3,\)"),
        ({"flip": torch.zeros(2)}, TypeError, "flip has dtype float32; allowed: bool"),
        ({"size": (0, 4)}, ValueError, r"size is \(0, 4\)"),
        ({"size": 4}, TypeError, "size is 4; allowed: two whole numbers"),
        ({"interpolation": "nearest"}, ValueError, "interpolation is 'nearest'; allowed: bilinear"),
        ({"dtype": torch.uint8}, TypeError, "dtype is torch.uint8; allowed: that of the images"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        sk.crop_resize(**{"images": IMAGES, "boxes": BOXES, "size": (4, 4)} | changes)


@given(case=cases(), dtype=st.sampled_from((*INTEGERS, torch.float16, torch.float32)))
def test_results_are_the_same_wherever_pixels_lie(case, dtype):
    """Interleaved, one channel after the other, and as part of a wider pixel: paths of their own."""
    make = torch.randn if dtype.is_floating_point else partial(integers, dtype=dtype)
    images = drawn_images(case, lambda shape: make(shape).to(dtype))
    expected = sk.crop_resize(images, **case)
    for lay in (_interleaved, _planar, _part_of_a_pixel):
        laid = (
            lay(images) if isinstance(images, torch.Tensor) else [lay(i[None])[0] for i in images]
        )
        assert torch.equal(sk.crop_resize(laid, **case), expected)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16])
def test_bands_of_16_bits_are_rounded_once_in_every_tile(dtype, interpolation):
    for channels, whole, size in (
        (13, (37, 150), (35, 131)),
        (3, (90, 270), (50, 70)),
        (17, (20, 30), (33, 65)),
    ):
        images, (height, width) = integers((2, channels, *whole), dtype), whole
        boxes = torch.tensor([[0, 0, height, width], [3, 5, height - 9, width - 7]])
        call = {"flip": torch.tensor([True, False]), "interpolation": interpolation}
        limits = torch.iinfo(dtype)
        expected = plain(images, boxes, size, **call).clamp(limits.min, limits.max)
        for laid in (images, _interleaved(images)):
            found = sk.crop_resize(laid, boxes, size, **call)
            assert (found.double() - expected).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_gathered_as_far_as_a_reduction_reaches(channels, interpolation):
    for height, width, size in ((40, 33, 65), (90, 140, 70), (150, 257, 70), (60, 250, 65)):
        images = integers((2, channels, height, width), torch.uint8)
        boxes = torch.tensor([[0, 0, height, width], [3, 5, height - 9, width - 7]])
        call = {"flip": torch.tensor([True, False]), "interpolation": interpolation}
        found = sk.crop_resize(_interleaved(images), boxes, (size, size), **call)
        expected = sk.crop_resize(_part_of_a_pixel(images), boxes, (size, size), **call)
        assert torch.equal(found, expected)


def _interleaved(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _planar(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.contiguous_format)


def _part_of_a_pixel(images: torch.Tensor) -> torch.Tensor:
    wider = torch.cat((images, images[:, :1], images[:, :1]), 1)
    return _interleaved(wider)[:, : images.shape[1]]
