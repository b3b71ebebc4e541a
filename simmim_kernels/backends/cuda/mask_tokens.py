"""Mask-token substitution in one pass each way: csrc/cuda/mask_tokens.cu."""

from __future__ import annotations

import torch

from simmim_kernels.backends._results import contiguous, empty_gradients
from simmim_kernels.backends.cuda import kernels, stream


def mask_tokens_forward(x, mask, token, pos_embed, prefix_tokens, keep_dtype):
    dtype = x.dtype if keep_dtype else torch.promote_types(x.dtype, token.dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    mask, token, pos_embed = contiguous(mask, token, pos_embed)
    kernels.mask_tokens_forward(x, mask, token, pos_embed, out, prefix_tokens, stream(x))
    return out


def mask_tokens_backward(grad, mask, prefix_tokens, x_dtype, token_dtype, pos_rows, pos_dtype):
    mask, width = mask.contiguous(), grad.shape[-1]
    dx, dtoken, dpos = empty_gradients(
        grad, (grad.shape, x_dtype), ((width,), token_dtype), ((pos_rows, width), pos_dtype)
    )
    wanted_x = dx if x_dtype else None
    wanted = dtoken if token_dtype else None, dpos if pos_dtype else None
    size = kernels.mask_tokens_scratch(grad, mask, *wanted, prefix_tokens)
    scratch = torch.empty(size, dtype=torch.float64, device=grad.device)
    kernels.mask_tokens_backward(
        grad, mask, wanted_x, *wanted, prefix_tokens, scratch, stream(grad)
    )
    return dx, dtoken, dpos
