"""Shared by the crops' backends: constants of the random boxes, and checks of boxes and sizes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

# Boxes drawn before the central one is used; twin: csrc/cpu/random_crops.cpp.
CROP_ATTEMPTS = 10
# exp(x) is computed as (1 + x/256 + ... + (x/256)^6/6!)^256, with float64 multiplications and additions
# only, which round the same way on every processor.
EXP_TERMS = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
# Adding this to a smaller number and taking it away again rounds to the nearest whole, ties to even.
WHOLE = 4503599627370496.0
WORD = 1 / 4294967296  # scales a random 32-bit word to [0, 1)


def image_sizes(images: list[Tensor]) -> Iterator[tuple[int, int]]:
    """Height and width of each image: of one batch, or of a list of images."""
    if images[0].dim() == 4:
        height, width = images[0].shape[2:]
        return ((height, width) for _ in range(images[0].shape[0]))
    return (tuple(image.shape[1:]) for image in images)


def check_boxes(boxes: Tensor, images: list[Tensor]) -> None:
    """`ValueError` unless every box lies in its image and has a pixel. Reads the boxes, which on a
    GPU would be a synchronisation: there they are cut to their images instead."""
    numbers = zip(boxes.tolist(), image_sizes(images), strict=True)
    for sample, ((top, left, height, width), (rows, columns)) in enumerate(numbers):
        if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
            raise ValueError(
                f"boxes[{sample}] is (top {top}, left {left}, height {height}, width {width}); "
                f"allowed: at least one pixel, inside the image of {rows} x {columns}"
            )


def check_sizes(sizes: Tensor) -> None:
    """`ValueError` unless every image has 1 to 2^31 - 1 rows and columns. Reads the sizes, which on a
    GPU would be a synchronisation: there they are brought into that range instead."""
    if not sizes.numel():
        return
    least, most = (int(limit) for limit in sizes.aminmax())
    if least < 1 or most >= 1 << 31:
        wrong = least if least < 1 else most
        raise ValueError(f"sizes names {wrong} rows or columns; allowed: 1 to 2^31 - 1")
