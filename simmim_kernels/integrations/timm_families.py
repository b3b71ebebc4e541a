"""How each family of timm's transformers runs under a mask: ViT, BEiT, Swin and SwinV2.

The mask token stands in the place of hidden patches right after the patch embedding (for Swin,
after its LayerNorm). Of the last block and the final norm, the loss needs the hidden tokens alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from timm import layers
from timm.models import beit
from timm.models import swin_transformer as swin
from timm.models import swin_transformer_v2 as swin_v2
from timm.models import vision_transformer as vit
from torch import Tensor, nn

from simmim_kernels.integrations.last_block import MaskedLastBlock
from simmim_kernels.ops._channels import Channels
from simmim_kernels.ops.masked_patch_embed import masked_patch_embed
from simmim_kernels.patch_mask import PatchMask


class Family(ABC):
    """A backbone of timm's, run under a mask.

    Attributes:
        backbone: the model, which owns all parameters.
        last: its last block for hidden tokens alone; None where that block needs them all.
        why_not_last: why it does; None otherwise.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        block = self.blocks()[-1]
        prefix = getattr(backbone, "num_prefix_tokens", 0)
        self.why_not_last = MaskedLastBlock.why_not(block)
        fits = self.why_not_last is None
        self.last = MaskedLastBlock(block, prefix_tokens=prefix) if fits else None

    def blocks(self) -> list[nn.Module]:
        """All blocks, from the first that runs to the last."""
        return list(self.backbone.blocks)

    @abstractmethod
    def tokens(self, patches: Tensor, mask: PatchMask | None) -> Tensor:
        """Output tokens `(B, L, width)` of embedded patches `(B, h*w, D)`; with a mask those of
        its hidden tokens alone, `(B, K, width)`, which needs `last`."""

    def pos_embed(self) -> Tensor | None:
        """The position embedding of the patches, `(1, h*w, D)`."""
        return None

    def patches(
        self,
        images: Tensor,
        mask: PatchMask | Tensor,
        token: Tensor,
        mean: Channels,
        std: Channels,
    ) -> Tensor:
        """Embedded patches `(B, h*w, D)`, the token in the place of hidden ones, whose pixels are
        not read."""
        embed = self.backbone.patch_embed
        return masked_patch_embed(
            images,
            embed.proj.weight,
            embed.proj.bias,
            mask,
            token,
            pos_embed=self.pos_embed(),
            mean=mean,
            std=std,
            norm=None if isinstance(embed.norm, nn.Identity) else embed.norm,
        )


class ViT(Family):
    def _embeds_prefix(self) -> bool:
        """Whether the position embedding has rows for the class and register tokens too."""
        return not self.backbone.no_embed_class and self.backbone.num_prefix_tokens > 0

    def pos_embed(self) -> Tensor | None:
        pos = self.backbone.pos_embed
        if pos is None or not self._embeds_prefix():
            return pos
        return pos[:, self.backbone.num_prefix_tokens :]

    def tokens(self, patches: Tensor, mask: PatchMask | None) -> Tensor:
        b = self.backbone
        prefix = [t for t in (b.cls_token, b.reg_token) if t is not None]
        x = patches
        if prefix:
            first = torch.cat(prefix, 1)
            if b.pos_embed is not None and self._embeds_prefix():
                first = first + b.pos_embed[:, : b.num_prefix_tokens]
            x = torch.cat([first.expand(len(x), -1, -1), x], 1)
        x = b.norm_pre(b.pos_drop(x))
        *body, last = b.blocks
        for block in body:
            x = block(x)
        return (
            b.norm(last(x))[:, b.num_prefix_tokens :]
            if mask is None
            else b.norm(self.last(x, mask))
        )


class Beit(Family):
    def pos_embed(self) -> Tensor | None:
        pos = self.backbone.pos_embed
        return None if pos is None else pos[:, 1:]

    def tokens(self, patches: Tensor, mask: PatchMask | None) -> Tensor:
        b = self.backbone
        first = b.cls_token if b.pos_embed is None else b.cls_token + b.pos_embed[:, :1]
        x = b.pos_drop(torch.cat([first.expand(len(patches), -1, -1), patches], 1))
        bias = None if b.rel_pos_bias is None else b.rel_pos_bias()
        *body, last = b.blocks
        for block in body:
            x = block(x, shared_rel_pos_bias=bias)
        if mask is None:
            return b.norm(last(x, shared_rel_pos_bias=bias))[:, 1:]
        return b.norm(self.last(x, mask, shared_rel_pos_bias=bias))


class Swin(Family):
    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.backbone.layers for block in stage.blocks]

    def tokens(self, patches: Tensor, mask: PatchMask | None) -> Tensor:
        b = self.backbone
        x = patches.unflatten(1, b.patch_embed.grid_size)
        if mask is None:
            return b.norm(b.layers(x)).flatten(1, 2)
        *stages, stage = b.layers
        for other in stages:
            x = other(x)
        x = stage.downsample(x)
        for block in stage.blocks[:-1]:
            x = block(x)
        return b.norm(self.last(x, mask))


def family_of(backbone: nn.Module) -> Family | None:
    """The family of a timm model, told by class and by unchanged methods; None for another's."""
    embed = getattr(backbone, "patch_embed", None)
    if not isinstance(embed, layers.PatchEmbed) or (
        type(embed).forward is not layers.PatchEmbed.forward
    ):
        return None
    if isinstance(backbone, swin.SwinTransformer | swin_v2.SwinTransformerV2):
        return Swin(backbone)
    if isinstance(backbone, beit.Beit):
        return Beit(backbone)
    # subclasses that embed positions differently (distilled DeiT) would be silently wrong here
    cls = type(backbone)
    if (
        isinstance(backbone, vit.VisionTransformer)
        and cls._pos_embed is vit.VisionTransformer._pos_embed
        and cls.forward_features is vit.VisionTransformer.forward_features
        and isinstance(backbone.patch_drop, nn.Identity)
    ):
        return ViT(backbone)
    return None
