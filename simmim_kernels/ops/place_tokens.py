"""Compact rows of chosen tokens: to their places in the token grid, and out of it."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels._numbers import to_bool, to_int, to_sides
from simmim_kernels.backends._results import empty_gradients
from simmim_kernels.grid import token_grid, whole_scale
from simmim_kernels.masks import PatchMask, mask_grid
from simmim_kernels.ops._check import FLOATS, has_dims, is_mask, is_tensor, is_token, same_device
from simmim_kernels.ops._define import apply, define, differentiate, first_order, needs_grad


def check_grid(mask: Tensor, batch: int, h: int, w: int, count: int) -> None:
    """The mask fits a token grid `(h, w)`, and `count` rows fit the batch."""
    is_mask(mask, batch)
    whole_scale("token grid height", h, "mask grid height", mask.shape[1])
    whole_scale("token grid width", w, "mask grid width", mask.shape[2])
    if h * w >= 1 << 31:
        raise ValueError(f"grid is {h} x {w} tokens; allowed: up to 2^31 - 1")
    if not 0 <= count <= batch * h * w:
        raise ValueError(f"{count} rows came for {batch} samples of {h} x {w} tokens")


def _check_place(rows, mask, token, pos_embed, prefix_tokens, prefixed, h, w, dtype) -> None:
    is_tensor("rows", rows, FLOATS)
    has_dims("rows", rows, {2: "(n, D)"})
    is_tensor("mask", mask, (torch.bool,))
    if prefix_tokens < 0:
        raise ValueError(f"prefix_tokens is {prefix_tokens}; allowed: 0 or more")
    batch = mask.shape[0]
    _check_prefixed(batch, prefix_tokens, prefixed, rows.shape[0])
    check_grid(mask, batch, h, w, rows.shape[0] - (batch * prefix_tokens if prefixed else 0))
    width = rows.shape[1]
    if token is not None:
        is_token(token, width)
    if pos_embed is not None:
        is_tensor("pos_embed", pos_embed, FLOATS)
        shapes = [(h * w, width), (1, h * w, width), (h, w, width), (1, h, w, width)]
        if prefixed:
            length = prefix_tokens + h * w
            shapes += [(length, width), (1, length, width)]
        if pos_embed.shape not in shapes:
            raise ValueError(
                f"pos_embed has shape {tuple(pos_embed.shape)}; allowed: one row of {width} for "
                f"each of the {h} x {w} patch tokens"
            )
    if dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; allowed: floating types")
    same_device(rows=rows, mask=mask, token=token, pos_embed=pos_embed)


def _check_prefixed(batch: int, prefix_tokens: int, prefixed: bool, count: int) -> None:
    """With a prefix every sample has the same number of rows."""
    if prefixed and batch and (count % batch or count // batch < prefix_tokens):
        raise ValueError(
            f"{count} rows came for {batch} samples with {prefix_tokens} prefix tokens each; "
            "allowed: the same number for each"
        )


def _fake_place(rows, mask, token, pos_embed, prefix_tokens, prefixed, h, w, dtype):
    return rows.new_empty((mask.shape[0], prefix_tokens + h * w, rows.shape[1]), dtype=dtype)


def _place_with_gradient(rows, mask, token, pos_embed, prefix_tokens, prefixed, h, w, dtype):
    if token is None:  # the gradient of `_take`
        return None
    return apply(_PlaceTokens, rows, mask, token, pos_embed, prefix_tokens, h, w, dtype)


def _check_take(
    x, mask, prefix_tokens, prefixed, h, w, count, rows_dtype, token_dtype, pos_rows, pos_dtype
) -> None:
    is_tensor("x", x, FLOATS)
    has_dims("x", x, {3: "(B, L, D)"})
    _check_prefixed(x.shape[0], prefix_tokens, prefixed, count)
    check_grid(mask, x.shape[0], h, w, count - (x.shape[0] * prefix_tokens if prefixed else 0))
    if pos_dtype and pos_rows not in (h * w, x.shape[1]):
        raise ValueError(f"pos_rows is {pos_rows}; allowed: {h * w}, {x.shape[1]}")
    if prefix_tokens < 0 or x.shape[1] != prefix_tokens + h * w:
        raise ValueError(
            f"x has {x.shape[1]} tokens; {prefix_tokens} prefix tokens and a grid of {h} x {w} "
            f"make {prefix_tokens + h * w}"
        )
    same_device(x=x, mask=mask)


def _fake_take(
    x, mask, prefix_tokens, prefixed, h, w, count, rows_dtype, token_dtype, pos_rows, pos_dtype
):
    width = x.shape[2]
    return empty_gradients(
        x, ((count, width), rows_dtype), ((width,), token_dtype), ((pos_rows, width), pos_dtype)
    )


def _take_with_gradient(
    x, mask, prefix_tokens, prefixed, h, w, count, rows_dtype, token_dtype, pos_rows, pos_dtype
):
    if prefixed or rows_dtype is None or token_dtype or pos_dtype:  # the gradient of `_place`
        return None
    rows = apply(_TakeTokens, x, mask, prefix_tokens, h, w, count)
    return rows, x.new_empty(0), x.new_empty(0)


# Rows in ascending order of the visible tokens, sample after sample; rows beyond the last visible
# token are padding. With `prefixed` those of each sample begin with its prefix tokens; without,
# prefix tokens become zeros. No token means zeros.
_place = define(
    "place_tokens(Tensor rows, Tensor mask, Tensor? token, Tensor? pos_embed, SymInt prefix_tokens,"
    " bool prefixed, SymInt h, SymInt w, ScalarType dtype) -> Tensor",
    module="place_tokens",
    check=_check_place,
    fake=_fake_place,
    gradient=_place_with_gradient,
)

# The visible rows of x, after those of the prefix with `prefixed`; the sum of the masked ones; and
# the sum over the batch of the last `pos_rows` tokens. A dtype of None asks for nothing; its place is then
# an empty tensor. Padding rows are zeros.
_take = define(
    "take_tokens(Tensor x, Tensor mask, SymInt prefix_tokens, bool prefixed, SymInt h, SymInt w,"
    " SymInt count, ScalarType? rows_dtype, ScalarType? token_dtype, SymInt pos_rows,"
    " ScalarType? pos_dtype)"
    " -> (Tensor, Tensor, Tensor)",
    module="place_tokens",
    check=_check_take,
    fake=_fake_take,
    gradient=_take_with_gradient,
)


class _PlaceTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, mask, token, pos_embed, prefix_tokens, h, w, dtype):
        ctx.save_for_backward(mask)
        ctx.layout = prefix_tokens, prefix_tokens > 0, h, w, rows.shape[0]
        ctx.rows = rows.dtype
        ctx.token = token.dtype, token.shape
        ctx.pos = None if pos_embed is None else (pos_embed.dtype, pos_embed.shape)
        return _place(rows, mask, token, pos_embed, prefix_tokens, prefix_tokens > 0, h, w, dtype)

    @first_order
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        wants_rows, _, wants_token, wants_pos, *_ = ctx.needs_input_grad
        rows_dtype = ctx.rows if wants_rows else None
        token_dtype = ctx.token[0] if wants_token else None
        pos = (ctx.pos[1][:-1].numel(), ctx.pos[0]) if wants_pos else (0, None)
        drows, dtoken, dpos = _take(grad, mask, *ctx.layout, rows_dtype, token_dtype, *pos)
        dtoken = dtoken.view(ctx.token[1]) if wants_token else None
        dpos = dpos.view(ctx.pos[1]) if wants_pos else None
        return drows if wants_rows else None, None, dtoken, dpos, *(None,) * 4


class _TakeTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask, prefix_tokens, h, w, count):
        ctx.save_for_backward(mask)
        ctx.layout = prefix_tokens, False, h, w, x.dtype
        return _take(x, mask, prefix_tokens, False, h, w, count, x.dtype, None, 0, None)[0]

    @first_order
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return _place(grad, mask, None, None, *ctx.layout), None, None, None, None, None


def place_tokens(
    rows: Tensor,
    mask: PatchMask | Tensor,
    token: Tensor,
    grid: tuple[int, int],
    *,
    pos_embed: Tensor | None = None,
    keep_dtype: bool = False,
) -> Tensor:
    """Write compact rows of visible tokens to their places and the mask token everywhere else.

    Args:
        rows: `(n, D)`, the visible tokens in ascending order, sample after sample; surplus rows at
            the end are left out.
        mask: `PatchMask` or `bool (B, gh, gw)` on a grid that divides `grid`.
        token: the mask token, `(D,)` or `(1, 1, D)`.
        grid: the token grid `(h, w)`.
        pos_embed: added to the result: `(h*w, D)`, `(1, h*w, D)`, `(h, w, D)` or `(1, h, w, D)`.
        keep_dtype: return `rows.dtype` instead of `torch.result_type(rows, token)`.

    Returns:
        Contiguous `(B, h*w, D)`.

    Gradients: for `rows`, `token` (sum over masked tokens) and `pos_embed` (sum over the batch),
    summed in float32 or better, in a fixed order.
    """
    is_tensor("rows", rows, FLOATS)
    is_tensor("token", token, FLOATS)
    if pos_embed is not None:
        is_tensor("pos_embed", pos_embed, FLOATS)
    keep_dtype = to_bool("keep_dtype", keep_dtype)
    dtype = rows.dtype if keep_dtype else torch.promote_types(rows.dtype, token.dtype)
    args = (rows, mask_grid(mask), token, pos_embed)
    return _placed(*args, 0, *to_sides("grid", grid), dtype)


def _placed(rows, mask, token, pos_embed, prefix_tokens, h, w, dtype) -> Tensor:
    """`rows` `(n, D)` in their places in `(B, prefix_tokens + h * w, D)`, with gradients."""
    if needs_grad(rows, token, pos_embed):
        return differentiate(_PlaceTokens, rows, mask, token, pos_embed, prefix_tokens, h, w, dtype)
    return _place(rows, mask, token, pos_embed, prefix_tokens, prefix_tokens > 0, h, w, dtype)


def restore_tokens(
    x: Tensor,
    mask: PatchMask,
    token: Tensor,
    *,
    pos_embed: Tensor | None = None,
    prefix_tokens: int = 0,
    keep_dtype: bool = False,
) -> Tensor:
    """A decoder's input: every visible token in its place, the mask token in all others.

        out[b, prefix + i] = (x's next token where unit i is visible, else token) (+ pos_embed[i])

    Args:
        x: `(B, prefix_tokens + N - K, D)`: prefix tokens, then the visible tokens in ascending order
            of their positions, as `visible_patch_embed` and MAE's encoder give them.
        mask: a `PatchMask` on the grid of the tokens, `K` of `N` masked in every sample.
        token: the mask token, `(D,)` or `(1, 1, D)`.
        pos_embed: added in the same pass: one row of `D` for each patch token, or for each token with
            the prefix; `(rows, D)` or `(1, rows, D)`.
        prefix_tokens: class or register tokens in front.
        keep_dtype: return `x.dtype` instead of `torch.result_type(x, token)`.

    Returns:
        Contiguous `(B, prefix_tokens + N, D)`.

    Gradients: for `x`, `token` (sum over masked tokens) and `pos_embed` (sum over the batch), summed
    in float32 or better, in a fixed order.

    Raises:
        TypeError: a plain bool mask; wrong dtypes.
        ValueError: shapes that don't fit.
        RuntimeError: tensors on different devices; a second derivative.

    Source: MAE (He et al., 2022), where the mask tokens are appended and then unshuffled.
    """
    check_patch_mask(mask)
    is_tensor("x", x, FLOATS)
    has_dims("x", x, {3: "(B, L, D)"})
    is_tensor("token", token, FLOATS)
    if pos_embed is not None:
        is_tensor("pos_embed", pos_embed, FLOATS)
    grid = mask_grid(mask)
    prefix_tokens = to_int("prefix_tokens", prefix_tokens)
    expected = (mask.visible.shape[0], prefix_tokens + mask.visible.shape[1])
    if prefix_tokens < 0 or x.shape[:2] != expected:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; allowed for {prefix_tokens} prefix tokens and a mask that "
            f"leaves {mask.visible.shape[1]} units visible in each of {mask.visible.shape[0]} "
            f"samples: {(*expected, x.shape[2])}; mask.on_grid gives the mask of smaller units"
        )
    keep_dtype = to_bool("keep_dtype", keep_dtype)
    dtype = x.dtype if keep_dtype else torch.promote_types(x.dtype, token.dtype)
    rows = x.reshape(expected[0] * expected[1], x.shape[2])
    return _placed(rows, grid, token, pos_embed, prefix_tokens, *grid.shape[1:], dtype)


def check_patch_mask(mask: object) -> None:
    """`TypeError` unless `mask` is a `PatchMask`."""
    if not isinstance(mask, PatchMask):
        raise TypeError(
            f"mask must be a PatchMask, got {type(mask).__name__}: every sample must have the "
            "same number of masked tokens; PatchMask.from_mask makes one of a bool mask"
        )


def take_tokens(
    x: Tensor, mask: Tensor, grid: tuple[int, int], count: int, *, prefix_tokens: int = 0
) -> Tensor:
    """`(count, D)`: the tokens of `x` `(B, L, D)` that `mask` leaves visible, in ascending order,
    sample after sample; surplus rows are zeros."""
    prefix_tokens = to_int("prefix_tokens", prefix_tokens)
    place = (*to_sides("grid", grid), to_int("count", count))
    if needs_grad(x):
        return differentiate(_TakeTokens, x, mask, prefix_tokens, *place)
    return _take(x, mask, prefix_tokens, False, *place, x.dtype, None, 0, None)[0]


def take_masked_tokens(
    x: Tensor, mask: PatchMask, *, prefix_tokens: int = 0, grid: tuple[int, int] | None = None
) -> Tensor:
    """The masked tokens of `x`, in ascending order of their positions.

    Args:
        x: tokens `(B, L, D)` in row-major order of the token grid, after `prefix_tokens`.
        mask: `PatchMask` on a grid that divides the token grid.
        prefix_tokens: class or register tokens in front, never masked.
        grid: the token grid `(h, w)`; by default the mask's, made finer by the same number in both
            directions.

    Returns:
        `(B, K, D)`, `K` the number of masked tokens of every sample.

    Gradient: for `x`, zero at the visible and prefix tokens.

    Raises:
        TypeError: a plain bool mask, whose number of masked tokens may differ between samples.
        ValueError: tokens, grid and mask that don't fit.
    """
    check_patch_mask(mask)
    is_tensor("x", x, FLOATS)
    has_dims("x", x, {3: "(B, L, D)"})
    batch, length, width = x.shape
    prefix_tokens = to_int("prefix_tokens", prefix_tokens)
    grid_of_units = mask_grid(mask)
    units = grid_of_units.shape[1:]
    h, w = token_grid(length - prefix_tokens, *units) if grid is None else to_sides("grid", grid)
    per_unit = whole_scale("token grid height", h, "mask grid height", units[0])
    per_unit *= whole_scale("token grid width", w, "mask grid width", units[1])
    tokens = mask.masked.shape[1] * per_unit
    rows = take_tokens(x, ~grid_of_units, (h, w), batch * tokens, prefix_tokens=prefix_tokens)
    return rows.view(batch, tokens, width)
