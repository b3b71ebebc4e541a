"""The definition of crop_resize once more, and images, boxes and sizes to hold it to."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

MODES = ("bilinear", "bicubic")


def weights(n: int, m: int, interpolation: str, antialias: bool, kind=np.float64) -> np.ndarray:
    """`(m, n)`: what each of n pixels weighs in each of m, from the definition."""
    scale = kind(n) / m
    a = kind(-0.5 if antialias else -0.75)
    center = (np.arange(m, dtype=kind)[:, None] + kind(0.5)) * scale - kind(0.5)
    # without antialiasing the pixels at the border go on beyond it
    pixels = np.arange(n) if antialias else np.arange(-3, n + 3)
    t = abs(pixels - center) / (max(scale, kind(1)) if antialias else kind(1))
    if interpolation == "bilinear":
        weight = np.maximum(0, 1 - t)
    else:
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        weight = np.where(t < 1, near, np.where(t < 2, a * (t**3 - 5 * t**2 + 8 * t - 4), 0))
    found = np.zeros((m, n), kind)
    np.add.at(found, (slice(None), pixels.clip(0, n - 1)), weight)
    return found / found.sum(1, keepdims=True)


def plain(images, boxes, size, flip=None, interpolation="bilinear", antialias=True, dtype=None):
    """The definition as products of matrices of PyTorch's `dtype`, each box for itself; without one,
    of NumPy's longest floating type."""
    made, kind = [], np.longdouble if dtype is None else np.float64
    for sample, (image, (top, left, h, w)) in enumerate(zip(images, boxes.tolist(), strict=True)):
        sides = zip((h, w), size, strict=True)
        rows, columns = (weights(n, m, interpolation, antialias, kind) for n, m in sides)
        part = image[:, top : top + h, left : left + w].double()
        if dtype is None:
            part = torch.from_numpy((rows @ part.numpy() @ columns.T).astype(np.float64))
        else:
            rows, columns = (torch.from_numpy(weight).to(dtype) for weight in (rows, columns))
            part = rows @ part.to(dtype) @ columns.T
        made.append(part.flip(-1) if flip is not None and flip[sample] else part)
    return torch.stack(made)


@st.composite
def cases(draw):
    """Images of one batch or list, a box in each, the size of the result and how it is made."""
    batch, listed = draw(st.integers(1, 3)), draw(st.booleans())
    side, small = st.integers(1, 40), st.integers(1, 45)
    first = draw(st.tuples(side, side))
    sizes = [draw(st.tuples(side, side)) if listed else first for _ in range(batch)]
    boxes = []
    for height, width in sizes:
        h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
        boxes.append((draw(st.integers(0, height - h)), draw(st.integers(0, width - w)), h, w))
    flips = draw(st.lists(st.booleans(), min_size=batch, max_size=batch))
    return {
        "sizes": sizes,
        "listed": listed,
        "channels": draw(st.integers(1, 4)),
        "layout": draw(st.sampled_from(["planar", "interleaved", "sliced", "one channel"])),
        "boxes": torch.tensor(boxes),
        "size": draw(st.tuples(small, small)),
        "flip": torch.tensor(flips) if draw(st.booleans()) else None,
        "interpolation": draw(st.sampled_from(MODES)),
        "antialias": draw(st.booleans()),
    }


def laid_out(images: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "interleaved":
        return images.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        return images.repeat_interleave(2, -1)[..., ::2]
    return images[:, :1].expand(images.shape) if layout == "one channel" else images


def drawn_images(case: dict, make) -> torch.Tensor | list[torch.Tensor]:
    torch.manual_seed(len(case["boxes"]))
    channels, layout = case.pop("channels"), case.pop("layout")
    sizes = case.pop("sizes")
    if case.pop("listed"):
        return [laid_out(make((1, channels, *size)), layout)[0] for size in sizes]
    return laid_out(make((len(sizes), channels, *sizes[0])), layout)
