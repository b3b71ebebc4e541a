"""Index arithmetic between the mask grid, the token grid and the pixels: twin of common/grid.h."""

from __future__ import annotations


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


def token_grid(tokens: int, grid_h: int, grid_w: int) -> tuple[int, int]:
    """The token grid `(h, w)` of a flat row of tokens, from the mask grid's shape.

    A token grid is `s` times finer than the mask grid in both directions, so
    `tokens = grid_h * s * grid_w * s`. Raises `ValueError` where no whole `s` satisfies that.
    """
    units = grid_h * grid_w
    # Not math.isqrt, which can't be traced where the number of tokens is symbolic.
    scale = int((tokens // units) ** 0.5 + 0.5) if units and tokens > 0 else 0
    if scale < 1 or scale * scale * units != tokens:
        raise ValueError(
            f"{tokens} tokens do not form a grid that is a whole multiple of the mask grid "
            f"{grid_h} x {grid_w}; pass prefix_tokens for class or register tokens, or a mask "
            "whose grid divides the token grid"
        )
    return grid_h * scale, grid_w * scale
