"""Index arithmetic between the mask grid, the token grid and the pixels: twin of common/grid.h.

A grid is its lengths along the axes, `(h, w)` for an image and `(d, h, w)` for a volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


def whole_scale(fine_name: str, fine: int, coarse_name: str, coarse: int) -> int:
    """How many cells of the fine grid one cell of the coarse grid spans, along one axis.

    Raises `ValueError`, naming both sizes, where that is no whole number.
    """
    if coarse < 1 or fine < coarse or fine % coarse:
        raise ValueError(
            f"{fine_name} {fine} is not a whole multiple of the {coarse_name} {coarse}; "
            "choose sizes that divide, or another mask unit"
        )
    return fine // coarse


def scale_of(fine: Sequence[int], coarse: Sequence[int]) -> tuple[int, ...]:
    """How many cells of the fine grid one cell of the coarse grid spans, along each axis.

    For sizes that are known to divide; `whole_scale` checks them.
    """
    return tuple([a // b for a, b in zip(fine, coarse, strict=True)])


def refine(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """A mask `(B, *units)` on a finer grid: `(B, *grid)`."""
    for axis, scale in enumerate(scale_of(grid, mask.shape[1:]), 1):
        mask = mask.repeat_interleave(scale, axis)
    return mask


def whole_root(n: int) -> int:
    """The root of a square number; of another the whole number next to it.

    Not `math.isqrt`, which can't be traced where the number is symbolic.
    """
    return int(n**0.5 + 0.5)


def token_grid(tokens: int, grid_h: int, grid_w: int) -> tuple[int, int]:
    """The token grid `(h, w)` of a flat row of tokens, from the mask grid's shape.

    The token grid is taken to be `s` times finer than the mask grid in both directions, so
    `tokens = grid_h * s * grid_w * s`. Raises `ValueError` where no whole `s` satisfies that. Who
    knows the token grid must not ask: 16 tokens under a mask of 1 x 4 may be 4 x 4 as well as 2 x 8.
    """
    units = grid_h * grid_w
    scale = whole_root(tokens // units) if units and tokens > 0 else 0
    if scale < 1 or scale * scale * units != tokens:
        raise ValueError(
            f"{tokens} tokens do not form a grid that is a whole multiple of the mask grid "
            f"{grid_h} x {grid_w}; pass prefix_tokens for class or register tokens, or a mask "
            "whose grid divides the token grid"
        )
    return grid_h * scale, grid_w * scale


class PredictionStrides(NamedTuple):
    """How the prediction of an image lies in memory: pixel `(ty * patch + dy, tx * patch + dx)` of
    channel `c` is at `b * batch + c * channel + ty * token_y + dy * y + tx * token_x + dx * x`.

    Of listed units, row `k` of a sample is at `b * batch + k * token_x`.
    """

    batch: int
    channel: int
    token_y: int
    y: int
    token_x: int
    x: int


def prediction_patch(shape: Sequence[int], image: Sequence[int]) -> int:
    """Pixels in the side of a token of a prediction: an image (1), a map `(B, C*p*p, h, w)`, or
    tokens `(B, L, C*p*p)` or `(R, C*p*p)`. 0 where there is no such number."""
    if len(shape) == 4:
        return 1 if tuple(shape) == tuple(image) else image[2] // max(shape[2], 1)
    return whole_root(shape[-1] // image[1])


def prediction_strides(
    strides: Sequence[int], channels: int, patch: int, tokens_in_row: int, order: str
) -> PredictionStrides:
    """The strides by pixel of tokens or listed units (`tokens_in_row` 0) whose tensor has 2 or 3
    dimensions, of a map or of an image (`patch` 1)."""
    if len(strides) == 4 and patch == 1:
        batch, channel, y, x = strides
        return PredictionStrides(batch, channel, y, 0, x, 0)
    if len(strides) == 4:
        batch, number, token_y, token_x = strides
    else:
        batch = strides[0] if len(strides) == 3 else 0
        token_x, number = strides[-2:]
        token_y = tokens_in_row * token_x
    if order == "cyx":
        return PredictionStrides(
            batch, patch * patch * number, token_y, patch * number, token_x, number
        )
    return PredictionStrides(
        batch, number, token_y, patch * channels * number, token_x, channels * number
    )
