"""Mask-token substitution: the tokens of masked patches become one learnable token."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_kernels._numbers import to_bool, to_int
from simmim_kernels.backends._results import empty_gradients
from simmim_kernels.grid import token_grid, whole_scale
from simmim_kernels.masks import PatchMask, mask_grid
from simmim_kernels.ops._check import FLOATS, has_dims, is_mask, is_tensor, is_token, same_device
from simmim_kernels.ops._define import apply, define, differentiate, first_order, needs_grad

_LAYOUTS = {3: "(B, L, D)", 4: "(B, h, w, D)"}


def tokens_of(x: Tensor, mask: Tensor, prefix_tokens: int) -> tuple[int, int]:
    """The token grid `(h, w)` of `x` under `mask`; `ValueError` where the two don't fit."""
    if x.dim() == 4:
        whole_scale("token grid height", x.shape[1], "mask grid height", mask.shape[1])
        whole_scale("token grid width", x.shape[2], "mask grid width", mask.shape[2])
        return x.shape[1], x.shape[2]
    return token_grid(x.shape[1] - prefix_tokens, mask.shape[1], mask.shape[2])


def check(x, mask, token, pos_embed, prefix_tokens, keep_dtype) -> None:
    is_tensor("x", x, FLOATS)
    has_dims("x", x, _LAYOUTS)
    is_mask(mask, x.shape[0])
    width = x.shape[-1]
    is_token(token, width)
    if prefix_tokens < 0 or (x.dim() == 4 and prefix_tokens != 0):
        raise ValueError(
            f"prefix_tokens is {prefix_tokens}; allowed: 0 or more, 0 for (B, h, w, D)"
        )
    h, w = tokens_of(x, mask, prefix_tokens)
    if pos_embed is not None:
        is_tensor("pos_embed", pos_embed, FLOATS)
        rows = pos_embed.shape[:-1].numel()
        allowed = (h * w, prefix_tokens + h * w)
        grid_shaped = pos_embed.shape in ((h, w, width), (1, h, w, width))
        flat = pos_embed.shape in ((rows, width), (1, rows, width)) and rows in allowed
        if not (grid_shaped or flat):
            raise ValueError(
                f"pos_embed has shape {tuple(pos_embed.shape)}; allowed: one row of {width} for each "
                f"of the {h} x {w} patch tokens, or for those and the {prefix_tokens} prefix tokens"
            )
    same_device(x=x, mask=mask, token=token, pos_embed=pos_embed)


def out_dtype(x: Tensor, token: Tensor, keep_dtype: bool) -> torch.dtype:
    return x.dtype if keep_dtype else torch.promote_types(x.dtype, token.dtype)


def _fake_forward(x, mask, token, pos_embed, prefix_tokens, keep_dtype):
    return x.new_empty(x.shape, dtype=out_dtype(x, token, keep_dtype))


def _check_backward(grad, mask, prefix_tokens, x_dtype, token_dtype, pos_rows, pos_dtype) -> None:
    is_tensor("grad", grad, FLOATS)
    has_dims("grad", grad, _LAYOUTS)
    is_mask(mask, grad.shape[0])
    h, w = tokens_of(grad, mask, prefix_tokens)
    if pos_dtype is not None and pos_rows not in (h * w, prefix_tokens + h * w):
        raise ValueError(f"pos_rows is {pos_rows}; allowed: {h * w} or {prefix_tokens + h * w}")
    same_device(grad=grad, mask=mask)


def _fake_backward(grad, mask, prefix_tokens, x_dtype, token_dtype, pos_rows, pos_dtype):
    width = grad.shape[-1]
    return empty_gradients(
        grad, (grad.shape, x_dtype), ((width,), token_dtype), ((pos_rows, width), pos_dtype)
    )


_forward = define(
    "mask_tokens_forward(Tensor x, Tensor mask, Tensor token, Tensor? pos_embed,"
    " int prefix_tokens, bool keep_dtype) -> Tensor",
    module="mask_tokens",
    check=check,
    fake=_fake_forward,
    gradient=lambda *args: apply(_MaskTokens, *args),
)

# A dtype of None asks for no gradient of that input; its place is then an empty tensor.
_backward = define(
    "mask_tokens_backward(Tensor grad, Tensor mask, int prefix_tokens, ScalarType? x_dtype,"
    " ScalarType? token_dtype, int pos_rows, ScalarType? pos_dtype) -> (Tensor, Tensor, Tensor)",
    module="mask_tokens",
    check=_check_backward,
    fake=_fake_backward,
)


class _MaskTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask, token, pos_embed, prefix_tokens, keep_dtype):
        ctx.save_for_backward(mask)
        ctx.prefix_tokens = prefix_tokens
        ctx.x_dtype, ctx.token = x.dtype, (token.dtype, token.shape)
        ctx.pos = None if pos_embed is None else (pos_embed.dtype, pos_embed.shape)
        return _forward(x, mask, token, pos_embed, prefix_tokens, keep_dtype)

    @first_order
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        wants_x, _, wants_token, wants_pos, *_ = ctx.needs_input_grad
        pos_dtype, pos_shape = ctx.pos if ctx.pos else (None, ())
        x_dtype, token_dtype = (
            ctx.x_dtype if wants_x else None,
            ctx.token[0] if wants_token else None,
        )
        pos = (pos_shape[:-1].numel(), pos_dtype) if wants_pos else (0, None)
        dx, dtoken, dpos = _backward(grad, mask, ctx.prefix_tokens, x_dtype, token_dtype, *pos)
        dtoken = dtoken.view(ctx.token[1]) if wants_token else None
        dpos = dpos.view(pos_shape) if wants_pos else None
        return dx if wants_x else None, None, dtoken, dpos, None, None


def mask_tokens(
    x: Tensor,
    mask: PatchMask | Tensor,
    token: Tensor,
    *,
    pos_embed: Tensor | None = None,
    prefix_tokens: int = 0,
    keep_dtype: bool = False,
) -> Tensor:
    """Put the mask token in the place of every masked patch token.

        out = where(masked, token, x) (+ pos_embed)

    It selects and does not multiply: a NaN or Inf in a masked token is gone, in the value and in
    every gradient.

    Args:
        x: tokens, `(B, L, D)` in row-major order of the token grid after `prefix_tokens`, or
            `(B, h, w, D)`; float32, float64, bfloat16 or float16, any strides.
        mask: `PatchMask` or `bool (B, gh, gw)` on a grid of which the token grid is a whole
            multiple: the same multiple in both directions for `(B, L, D)`, whose `h` and `w` are
            told by it; pass `(B, h, w, D)` for units that are not square in tokens.
        token: the mask token, `(D,)` or `(1, 1, D)`.
        pos_embed: added to the result: one row of `D` for each patch token, or for each token with
            the prefix; `(rows, D)`, `(1, rows, D)`, `(h, w, D)` or `(1, h, w, D)`.
        prefix_tokens: class or register tokens in front, never masked.
        keep_dtype: return `x.dtype` instead of the promoted type.

    Returns:
        A contiguous tensor of `x`'s shape, in `torch.result_type(x, token)` as the published
        arithmetic gives it under autocast, or in `x.dtype` with `keep_dtype`.

    Gradients: for `x` (zero where masked), `token` (sum over masked rows) and `pos_embed` (sum over
    the batch); sums in float32 or better, in a fixed order.

    Raises:
        TypeError: wrong dtypes.
        ValueError: shapes that don't fit.
        RuntimeError: tensors on different devices; a second derivative.

    Source: SimMIM, `x * (1 - w) + mask_token * w` in the published encoders.
    """
    # Before autograd looks at their types.
    is_tensor("x", x, FLOATS)
    is_tensor("token", token, FLOATS)
    if pos_embed is not None:
        is_tensor("pos_embed", pos_embed, FLOATS)
    grid = mask_grid(mask)
    prefix_tokens = to_int("prefix_tokens", prefix_tokens)
    args = (x, grid, token, pos_embed, prefix_tokens, to_bool("keep_dtype", keep_dtype))
    if needs_grad(x, token, pos_embed):
        return differentiate(_MaskTokens, *args)
    return _forward(*args)
