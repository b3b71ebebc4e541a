"""Crops, on one thread: boxes drawn, and a box of each decoded image resized, mirrored and put into a
batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import simmim_kernels as sk
from benchmarks.rows.common import OURS, Contest, Row
from benchmarks.rows.shapes import Setting

SCALE, RATIO = (0.67, 1.0), (3 / 4, 4 / 3)
TARGETS = {"torchvision v2": 3.0}
TURBOLOADER = "TurboLoader, not antialiased, normalised"


def rows(setting: Setting) -> Iterator[Row]:
    batch = 2 if setting.tiny else 256 if setting.on_gpu else 16
    for height, width in ((32, 48),) if setting.tiny else ((256, 341), (375, 500)):
        for size in (24,) if setting.tiny else (192, 224):
            for dtype in ("uint8", "uint16"):
                name = f"{batch} of {width}x{height} to {size} {dtype}"
                make = partial(build, batch, (height, width), size, setting.device, dtype)
                yield Row("crop_resize", name, "crop, resize, flip, stack", make, ("torchvision",))
    if not setting.on_gpu:
        name, make = f"{batch} of 341x256 in a store to 192 uint8", partial(build_store, batch)
        yield Row("crop_resize", name, "crop, resize, flip, all threads", make, ("turboloader",))
    yield Row("random_crops", "256 boxes", "boxes and flips", draw_boxes, ("torchvision",))


def on_one_thread(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(function)
    def run(*arguments: object) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(before)

    return run


def draw_boxes() -> Contest:
    """Two generators draw different boxes, which are not compared."""
    from torchvision.transforms.v2 import RandomResizedCrop

    crop, image = RandomResizedCrop(224, SCALE, RATIO), torch.empty(3, 375, 500, device="meta")
    sizes = torch.tensor([[375, 500]]).expand(256, 2)

    def ours(ids: Tensor) -> tuple[Tensor, Tensor]:
        return sk.random_crops(ids, sizes, (224, 224), SCALE, RATIO, seed=1)

    def torchvision(ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.device("cpu"):
            boxes = [list(crop.make_params([image]).values()) for _ in range(len(ids))]
            return torch.tensor(boxes), torch.rand(len(ids)) < 0.5

    contenders = {OURS: ours, "torchvision v2": torchvision}
    return Contest(contenders, lambda: (torch.arange(256),), kernel="random_crops")


def build(batch: int, image: tuple[int, int], size: int, device: str, dtype: str) -> Contest:
    from torchvision.transforms.v2 import functional

    boxes, flips = sk.random_crops(
        torch.arange(batch, device="cpu"), image, (size, size), SCALE, RATIO, seed=1
    )
    listed = list(zip(boxes.tolist(), flips.tolist(), strict=True))
    kind, narrow = getattr(torch, dtype), dtype == "uint8"
    most = torch.iinfo(kind).max

    def inputs() -> tuple:
        """Smooth pictures as a decoder leaves them, the colours of a pixel side by side."""
        low = torch.rand(batch, 3, 8, 10, device="cpu")
        pixels = torch.nn.functional.interpolate(low, image, mode="bilinear") * most
        pixels = pixels.int().to(kind).permute(0, 2, 3, 1).contiguous()
        pictures = [Image.fromarray(picture.numpy()) for picture in pixels] if narrow else []
        images = list(pixels.to(device).permute(0, 3, 1, 2))
        return images, pictures, boxes.to(device), flips.to(device)

    def ours(images: list[Tensor], _: list, boxes: Tensor, flips: Tensor) -> Tensor:
        return sk.crop_resize(images, boxes, (size, size), flip=flips)

    def torchvision(images: list[Tensor], *_: object) -> Tensor:
        made = []
        for picture, (box, mirrored) in zip(images, listed, strict=True):
            part = functional.resized_crop(picture, *box, [size, size], antialias=True)
            made.append(functional.horizontal_flip(part) if mirrored else part)
        return torch.stack(made)

    def pillow(_: list, pictures: list[Image.Image], *__: object) -> Tensor:
        made = []
        for picture, ((top, left, h, w), mirrored) in zip(pictures, listed, strict=True):
            corners = left, top, left + w, top + h
            part = picture.crop(corners).resize((size, size), Image.Resampling.BILINEAR)
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part
            made.append(torch.from_numpy(np.array(part)).permute(2, 0, 1))
        return torch.stack(made).to(device)

    contenders = {OURS: ours, "torchvision v2": torchvision}
    if narrow:  # Pillow's pictures of 16 bits have one channel
        contenders["Pillow"] = pillow
    return Contest(
        {name: on_one_thread(function) for name, function in contenders.items()},
        inputs,
        moved=kind.itemsize * 3 * (int((boxes[:, 2] * boxes[:, 3]).sum()) + batch * size * size),
        tolerance=0.02,  # Pillow rounds between the passes
        kernel="crop_resize",
        targets=TARGETS if narrow and device != "cuda" else {},
    )


def build_store(batch: int) -> Contest:
    """Crops out of one array of decoded images. TurboLoader writes normalised float32 alone, between
    the two nearest pixels whatever the scale, so results are not compared."""
    import turboloader

    boxes, flips = sk.random_crops(
        torch.arange(batch), (256, 341), (192, 192), SCALE, RATIO, seed=1
    )
    corners = boxes[:, [1, 0, 3, 2]].float().numpy()
    mirrored, rows = flips.to(torch.uint8).numpy(), np.arange(batch)

    def inputs() -> tuple:
        return torch.randint(0, 256, (batch, 256, 341, 3), dtype=torch.uint8), np.empty(
            (batch, 3, 192, 192), np.float32
        )

    def ours(store: Tensor, _: np.ndarray) -> Tensor:
        return sk.crop_resize(store.permute(0, 3, 1, 2), boxes, (192, 192), flip=flips)

    def theirs(store: Tensor, out: np.ndarray) -> np.ndarray:
        turboloader.crop_resize_normalize_u8_gather(
            store.numpy(),
            rows,
            corners,
            mirrored,
            out,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )
        return out

    targets = {TURBOLOADER: 2.0}
    return Contest({OURS: ours, TURBOLOADER: theirs}, inputs, kernel="crop_resize", targets=targets)
