"""Mask-token substitution in one pass each way: csrc/cpu/mask_tokens.cpp."""

from __future__ import annotations

import torch

from simmim_kernels.backends._results import contiguous, empty_gradients, wanted
from simmim_kernels.backends.cpu import kernels, threads


def mask_tokens_forward(x, mask, token, pos_embed, prefix_tokens, keep_dtype):
    dtype = x.dtype if keep_dtype else torch.promote_types(x.dtype, token.dtype)
    out = torch.empty(x.shape, dtype=dtype, device="cpu")
    mask, token, pos_embed = contiguous(mask, token, pos_embed)
    kernels.mask_tokens_forward(x, mask, token, pos_embed, out, prefix_tokens, threads())
    return out


def mask_tokens_backward(grad, mask, prefix_tokens, x_dtype, token_dtype, pos_rows, pos_dtype):
    width = grad.shape[-1]
    results = empty_gradients(
        grad, (grad.shape, x_dtype), ((width,), token_dtype), ((pos_rows, width), pos_dtype)
    )
    if not grad.shape[0]:
        results[2].zero_()
    written = wanted(results, x_dtype, token_dtype, pos_dtype)
    kernels.mask_tokens_backward(grad, mask.contiguous(), *written, prefix_tokens, threads())
    return results
