"""Mask-token substitution in one pass each way: csrc/cuda/mask_tokens.cu."""

from __future__ import annotations

import torch

from simmim_kernels.backends._results import contiguous, empty_gradients, wanted
from simmim_kernels.backends.cuda import kernels, stream


def mask_tokens_forward(x, mask, token, pos_embed, prefix_tokens, keep_dtype):
    dtype = x.dtype if keep_dtype else torch.promote_types(x.dtype, token.dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    mask, token, pos_embed = contiguous(mask, token, pos_embed)
    kernels.mask_tokens_forward(x, mask, token, pos_embed, out, prefix_tokens, stream(x))
    return out


def mask_tokens_backward(grad, mask, prefix_tokens, x_dtype, token_dtype, pos_rows, pos_dtype):
    mask, width = mask.contiguous(), grad.shape[-1]
    results = empty_gradients(
        grad, (grad.shape, x_dtype), ((width,), token_dtype), ((pos_rows, width), pos_dtype)
    )
    written = wanted(results, x_dtype, token_dtype, pos_dtype)
    size = kernels.mask_tokens_scratch(grad, mask, *written[1:], prefix_tokens)
    scratch = torch.empty(size, dtype=torch.float64, device=grad.device)
    kernels.mask_tokens_backward(grad, mask, *written, prefix_tokens, scratch, stream(grad))
    return results
