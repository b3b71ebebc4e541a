"""The embeddings of transformers' masked image models on the kernels: patches, tokens, positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from simmim_kernels.integrations.instance import has_forward_of, must_be_called
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops.mask_tokens import mask_tokens
from simmim_kernels.ops.masked_patch_embed import masked_patch_embed


def mask_of(
    embeddings: nn.Module, image: Tensor | None, mask: PatchMask | Tensor | None
) -> PatchMask | Tensor | None:
    """The mask as the kernels take it, or None for a call that is left to transformers."""
    if not isinstance(image, Tensor) or image.dim() != 4 or not image.is_floating_point():
        return None
    if is_transformed():
        return None
    conv = convolution(embeddings)
    batch, channels, height, width = image.shape
    if image.requires_grad or channels != conv.in_channels:
        return None
    if height % conv.stride[0] or width % conv.stride[1]:
        return None
    if isinstance(mask, PatchMask):
        return mask
    grid = patch_grid(embeddings, image)
    if not isinstance(mask, Tensor) or mask.is_floating_point():
        return None
    if mask.shape != (batch, grid[0] * grid[1]):
        return None
    return (mask if mask.dtype == torch.bool else mask != 0).view(batch, *grid)


def is_transformed() -> bool:
    """Whether this runs under a transform of `torch.func`, as per-sample gradients do, which no kernel
    supports and transformers' own code does."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def their_mask(
    embeddings: nn.Module, image: Tensor | None, mask: PatchMask | Tensor | None
) -> Tensor | None:
    """The mask `bool (B, h * w)` that transformers takes; of what is no image it speaks first."""
    if not isinstance(mask, PatchMask) or not isinstance(image, Tensor) or image.dim() != 4:
        return mask
    return mask.on_grid(patch_grid(embeddings, image)).mask.flatten(1)


def convolution(embeddings: nn.Module) -> nn.Conv2d:
    """The convolution that says how patches lie, within an adapter or as the projection itself."""
    projection = embeddings.patch_embeddings.projection
    return next((m for m in projection.modules() if isinstance(m, nn.Conv2d)), projection)


def patch_grid(embeddings: nn.Module, image: Tensor) -> tuple[int, int]:
    """How many patches an image `(B, C, H, W)` has in each direction."""
    stride = convolution(embeddings).stride
    return image.shape[2] // stride[0], image.shape[3] // stride[1]


def why_not_embed(embeddings: nn.Module) -> str | None:
    """Why patches can't be embedded one by one, or None where they can."""
    embed, conv = embeddings.patch_embeddings, embeddings.patch_embeddings.projection
    if not has_forward_of(embed, "transformers"):
        return f"its {type(embed).__name__} has a forward of its own"
    if type(conv) is not nn.Conv2d:
        kind = type(conv)
        return f"its projection is a {kind.__module__}.{kind.__name__}, not torch's Conv2d"
    if conv.groups > 1:
        return "its convolution is grouped"
    if conv.kernel_size != conv.stride or conv.padding not in ((0, 0), "valid"):
        return "its patches overlap, so visible ones need pixels of masked ones"
    if getattr(embed, "norm", None) is not None:
        return "it has a norm of its own"
    return None


def embeddings_forward(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of an embeddings module, formed from its class's: patches, mask tokens, prefix
    tokens, positions."""

    def forward(self, pixel_values, bool_masked_pos=None, interpolate_pos_encoding=False):
        mask = mask_of(self, pixel_values, bool_masked_pos)
        if mask is not None:
            embedded = _embed(self, pixel_values, mask, interpolate_pos_encoding)
            if embedded is not None:
                return embedded
        bool_masked_pos = their_mask(self, pixel_values, bool_masked_pos)
        # FocalNet and older versions do not know the last argument.
        options = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
        return theirs(self, pixel_values, bool_masked_pos, **options)

    return forward


def _embed(
    self: nn.Module, image: Tensor, mask: PatchMask | Tensor, interpolate: bool | None
) -> Any:
    """What the embeddings module returns; None for sizes that transformers refuses."""
    grid = patch_grid(self, image)
    names = ("cls_token", "distillation_token")
    prefix = [getattr(self, name) for name in names if hasattr(self, name)]
    rows = len(prefix) + grid[0] * grid[1]
    pos = getattr(self, "position_embeddings", None)
    if pos is not None and interpolate:
        # It reads the shape of its first argument alone.
        pos = self.interpolate_pos_encoding(
            self.mask_token.expand(1, rows, -1), image.shape[2], image.shape[3]
        )
    if pos is not None and pos.shape[1] != rows:
        return None
    if prefix and not interpolate:
        size = self.patch_embeddings.image_size
        if tuple(image.shape[2:]) != ((size, size) if isinstance(size, int) else tuple(size)):
            return None
    patch_pos = None if pos is None else pos[:, len(prefix) :]
    x = _patches(self, image, mask, patch_pos)
    if prefix:
        first = torch.cat(prefix, 1)
        first = first if pos is None else first + pos[:, : len(prefix)]
        x = torch.cat((first.expand(x.shape[0], -1, -1), x), 1)
        return self.dropout(x)
    return self.dropout(x), grid


def _patches(
    self: nn.Module, image: Tensor, mask: PatchMask | Tensor, pos: Tensor | None
) -> Tensor:
    embed, norm = self.patch_embeddings, getattr(self, "norm", None)
    conv = embed.projection
    if why_not_embed(self) is None and not must_be_called(embed, conv, norm):
        weight = conv.weight, conv.bias
        return masked_patch_embed(
            image.to(conv.weight.dtype), *weight, mask, self.mask_token, pos_embed=pos, norm=norm
        )
    x = embed(image)
    x = x[0] if isinstance(x, tuple) else x
    x = x if norm is None else norm(x)
    return mask_tokens(x, mask, self.mask_token, pos_embed=pos)
