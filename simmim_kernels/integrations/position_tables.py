"""Position tables of one grid made to fit another, as timm does it or as SimMIM's code does.

The grid that a table belongs to cannot be told from its number of rows (576 rows are 24 x 24, or
18 x 32, or 576 x 1), so both grids are always given.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Table(NamedTuple):
    """How the rows of a position table lie.

    Attributes:
        height, width: of the grid of patches, or for relative tables of the window.
        prefix: rows that belong to no place: of class and register tokens, first in tables of
            absolute positions, last in relative ones.
        relative: one row for each offset between two places, `(2h - 1) * (2w - 1)`, instead of one
            for each place.
    """

    height: int
    width: int
    prefix: int
    relative: bool

    @property
    def sides(self) -> tuple[int, int]:
        """Rows of the table's own grid: places, or offsets."""
        if self.relative:
            return 2 * self.height - 1, 2 * self.width - 1
        return self.height, self.width

    @property
    def rows(self) -> int:
        return math.prod(self.sides) + self.prefix


def tables_of(backbone: nn.Module) -> dict[str, Table]:
    """The position tables of a timm ViT, BEiT, Swin or SwinV2, by the names of their parameters."""
    tables = {}
    for name, module in backbone.named_modules():
        table = getattr(module, "relative_position_bias_table", None)
        if isinstance(table, Tensor):
            height, width = module.window_size
            prefix = len(table) - (2 * height - 1) * (2 * width - 1)
            tables[f"{name}.relative_position_bias_table"] = Table(height, width, prefix, True)
    embedding = getattr(backbone, "pos_embed", None)
    if isinstance(embedding, Tensor):
        height, width = backbone.patch_embed.grid_size
        prefix = embedding.shape[1] - height * width
        tables["pos_embed"] = Table(height, width, prefix, False)
    return tables


def square_table(rows: int, like: Table) -> Table | None:
    """The table with that many rows over a square grid, of `like`'s kind; None if there is none."""
    side = math.isqrt(max(rows - like.prefix, 0))
    if side * side + like.prefix != rows or side == 0 or (like.relative and side % 2 == 0):
        return None
    side = (side + 1) // 2 if like.relative else side
    return Table(side, side, like.prefix, like.relative)


def resample(table: Tensor, source: Table, target: Table, *, cubic: bool = False) -> Tensor:
    """`table` interpolated from one grid to another.

    Absolute positions: `timm.layers.resample_abs_pos_embed`, bicubic with antialiasing. Relative
    ones: `timm.layers.resize_rel_pos_bias_table`, linear between places that lie as in BEiT's code
    on a geometric progression, so that near offsets keep their values. Rows of `prefix` are kept.

    Args:
        table: `(1, rows, D)` for absolute, `(rows, heads)` for relative positions.
        source, target: `source` describes the rows of `table`.
        cubic: interpolate relative positions by cubic splines through these places, as BEiT's,
            SimMIM's and Swin-Transformer's code does for fine-tuning.

    Raises:
        ValueError: other rows than `source` has, another kind or prefix than `target` has, or grids
            between which timm's functions do not work.
    """
    axis = 0 if source.relative else 1
    if table.dim() != 2 + axis or table.shape[axis] != source.rows:
        raise ValueError(
            f"a table {tuple(table.shape)} does not have the {source.rows} rows of its grid"
        )
    if (source.prefix, source.relative) != (target.prefix, target.relative):
        raise ValueError(f"{source.prefix} prefix rows do not become {target.prefix}")
    if source == target:
        return table
    if not source.relative:
        from timm import layers

        old, grid = (source.height, source.width), (target.height, target.width)
        return layers.resample_abs_pos_embed(table, grid, old, num_prefix_tokens=source.prefix)
    places = math.prod(source.sides)
    # as a map of heads, which says its own sides whatever the version of timm
    image = table[:places].T.reshape(-1, *source.sides).contiguous()
    if cubic:
        rows, columns = map(_spline_weights, source.sides, target.sides)
        resized = rows @ image.double() @ columns.T
    else:
        resized = _resample_linear(image, target)
    resized = resized.to(table.dtype)
    if resized.isfinite().all() < table.isfinite().all():
        raise ValueError("it is interpolated to values that are not finite")
    return torch.cat((resized.flatten(1).T, table[places:]))


def _resample_linear(image: Tensor, target: Table) -> Tensor:
    from timm import layers

    grid, shape = (target.height, target.width), (len(image), *target.sides)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of PyTorch
            return layers.resize_rel_pos_bias_table(image, grid, shape)
    except (IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"timm cannot interpolate it: {error}") from None


def _geometric_places(count: int, wanted: int) -> Tensor:
    """Where `count` offsets lie among `wanted` ones at whole numbers, `float64 (count,)`: the middle
    at 0, neighbours 1 away, and each further step `q` times the one before, so that the outermost lie
    at the ends."""
    low, high, half = 1.01, 1.5, count // 2
    while high - low > 1e-6:
        q = (low + high) / 2
        if (q**half - 1) / (q - 1) > wanted // 2:
            high = q
        else:
            low = q
    places = torch.tensor([q**n for n in range(half)], dtype=torch.float64).cumsum(0)
    return torch.cat((-places.flip(0), places.new_zeros(1), places))


def _spline_weights(count: int, wanted: int) -> Tensor:
    """Weights `float64 (wanted, count)` that take values at `_geometric_places` to whole numbers: the
    cubic spline without a knot at the second and the last but one place (FITPACK's); of three values
    the parabola, of one the constant. Beyond the outermost places it is constant."""
    if count == wanted:
        return torch.eye(count, dtype=torch.float64)
    places = _geometric_places(count, wanted)
    end = places[-1].clamp(min=1)
    targets = (torch.arange(wanted) - wanted // 2).double().clamp(places[0], places[-1])
    powers = torch.arange(min(4, count))

    def basis(x: Tensor) -> Tensor:
        x = x[:, None] / end
        return torch.cat((x**powers, (x - places[2:-2] / end).clamp(min=0) ** 3), 1)

    return torch.linalg.solve(basis(places), basis(targets), left=False)
