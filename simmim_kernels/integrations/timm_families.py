"""How each family of timm's transformers runs under a mask: ViT, BEiT, Swin and SwinV2.

The mask token stands in the place of hidden patches right after the patch embedding (for Swin,
after its LayerNorm). Of the last block and the final norm, the loss needs the hidden tokens alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from timm import layers
from timm.models import beit
from timm.models import swin_transformer as swin
from timm.models import swin_transformer_v2 as swin_v2
from timm.models import vision_transformer as vit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simmim_kernels.integrations.instance import has_hooks, is_changed
from simmim_kernels.integrations.last_block import MaskedLastBlock
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._channels import Channels
from simmim_kernels.ops.mask_image import mask_image
from simmim_kernels.ops.mask_tokens import mask_tokens
from simmim_kernels.ops.masked_patch_embed import masked_patch_embed, visible_patch_embed
from simmim_kernels.ops.place_tokens import take_tokens


class Family(ABC):
    """A backbone of timm's, run under a mask, with activation checkpointing where it asks for it.

    Attributes:
        backbone: the model, which owns all parameters.
        why_not_last: why its last block could not run on hidden tokens alone when this was made;
            None where it could.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.why_not_last = MaskedLastBlock.why_not(self.blocks()[-1])
        self._last: MaskedLastBlock | None = None
        self._find_last()

    def fits(self) -> bool:
        """Whether the model still runs as this family does. Compiled code keeps what the last eager
        look found."""
        return torch.compiler.is_compiling() or _class_of(self.backbone) is type(self)

    def blocks(self) -> list[nn.Module]:
        """All blocks, from the first that runs to the last."""
        return list(self.backbone.blocks)

    def stride(self) -> int:
        """Pixels a side of an output token."""
        return self.backbone.feature_info[-1]["reduction"]

    @abstractmethod
    def tokens(
        self, patches: Tensor, grid: tuple[int, int], last: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Output tokens `(B, L, width)` of embedded patches `(B, h*w, D)` on their `grid` `(h, w)`.
        With `last`, which is called in the last block's place and gives hidden tokens alone, those."""

    def last_for(self, out_grid: tuple[int, int]) -> MaskedLastBlock | None:
        """The last block for hidden tokens alone, where output tokens lie on `out_grid`; None where
        it needs them all.

        Looked at anew in every eager call: models are pruned, given hooks, adapted. Compiled code
        keeps what the last eager look found.
        """
        if not torch.compiler.is_compiling():
            self._find_last()
        return self._last

    def _find_last(self) -> None:
        block = self.blocks()[-1]
        if MaskedLastBlock.why_not(block) is not None:
            self._last = None
        elif self._last is None or self._last.block is not block:
            prefix = getattr(self.backbone, "num_prefix_tokens", 0)
            self._last = MaskedLastBlock(block, prefix_tokens=prefix)

    def pos_embed(self, grid: tuple[int, int]) -> Tensor | None:
        """The position embedding `(1, h*w, D)` of patches on `grid` `(h, w)`."""
        return None

    def patches(
        self,
        images: Tensor,
        mask: PatchMask | Tensor,
        token: Tensor | None,
        mean: Channels,
        std: Channels,
    ) -> Tensor:
        """Embedded patches `(B, h*w, D)`, the token in the place of hidden ones, whose pixels are
        not read, or are 0 where the embedding must be called (a hook, an adapter). Without a token
        those of the visible patches of a `PatchMask` alone.

        Raises:
            ValueError: images of another size than the model takes.
        """
        embed = self.backbone.patch_embed
        size = tuple(images.shape[2:])
        if embed.img_size is not None and embed.strict_img_size and size != tuple(embed.img_size):
            raise ValueError(
                f"images are {size[0]} x {size[1]}, this {type(self.backbone).__name__} takes "
                f"{embed.img_size[0]} x {embed.img_size[1]}; build it with that img_size"
            )
        grid = size[0] // embed.patch_size[0], size[1] // embed.patch_size[1]
        pos = self.pos_embed(grid)
        norm = None if isinstance(embed.norm, nn.Identity) else embed.norm
        plain = type(embed.proj) is nn.Conv2d and embed.proj.groups == 1
        called = not plain or any(has_hooks(m) or is_changed(m) for m in (embed, embed.proj))
        if called or (token is None and norm is not None):
            dtype = next(embed.parameters()).dtype
            x = embed(mask_image(images, mask, 0.0, mean=mean, std=std, dtype=dtype))
            if token is None:
                x = x.flatten(1, -2) if pos is None else x.flatten(1, -2) + pos
                visible = mask.on_grid(grid).visible.shape
                return take_tokens(x, mask.mask, grid, visible.numel()).view(*visible, -1)
            x = x.unflatten(1, grid) if x.dim() == 3 else x
            return mask_tokens(x, mask, token, pos_embed=pos).flatten(1, 2)
        conv = embed.proj.weight, embed.proj.bias
        if token is None:
            return visible_patch_embed(images, *conv, mask, pos_embed=pos, mean=mean, std=std)
        return masked_patch_embed(
            images, *conv, mask, token, pos_embed=pos, mean=mean, std=std, norm=norm
        )


class ViT(Family):
    def _embeds_prefix(self) -> bool:
        """Whether the position embedding has rows for the class and register tokens too."""
        return not self.backbone.no_embed_class and self.backbone.num_prefix_tokens > 0

    def pos_embed(self, grid: tuple[int, int]) -> Tensor | None:
        b = self.backbone
        prefix = b.num_prefix_tokens if self._embeds_prefix() else 0
        pos = b.pos_embed
        if pos is None:
            return None
        if b.dynamic_img_size:
            own = b.patch_embed.grid_size
            pos = layers.resample_abs_pos_embed(pos, grid, own, num_prefix_tokens=prefix)
        return pos[:, prefix:]

    def tokens(
        self, patches: Tensor, grid: tuple[int, int], last: Callable[..., Tensor] | None = None
    ) -> Tensor:
        x = self.all_tokens(patches, last)
        return x if last else x[:, self.backbone.num_prefix_tokens :]

    def all_tokens(self, patches: Tensor, last: Callable[..., Tensor] | None = None) -> Tensor:
        """As `tokens`, behind the prefix tokens; `patches` may be any of them, in any order."""
        b = self.backbone
        prefix = [t for t in (b.cls_token, b.reg_token) if t is not None]
        x = patches
        if prefix:
            first = torch.cat(prefix, 1)
            if b.pos_embed is not None and self._embeds_prefix():
                first = first + b.pos_embed[:, : b.num_prefix_tokens]
            x = torch.cat([first.expand(x.shape[0], -1, -1), x], 1)
        if b.pos_embed is not None:
            x = b.pos_drop(x)
        x = b.norm_pre(x)
        *body, block = b.blocks
        for other in body:
            x = _run(other, b.grad_checkpointing, x)
        return b.norm(_run(last or block, b.grad_checkpointing, x))


class Beit(Family):
    def pos_embed(self, grid: tuple[int, int]) -> Tensor | None:
        pos = self.backbone.pos_embed
        return None if pos is None else pos[:, 1:]

    def tokens(
        self, patches: Tensor, grid: tuple[int, int], last: Callable[..., Tensor] | None = None
    ) -> Tensor:
        b = self.backbone
        first = b.cls_token if b.pos_embed is None else b.cls_token + b.pos_embed[:, :1]
        x = b.pos_drop(torch.cat([first.expand(patches.shape[0], -1, -1), patches], 1))
        bias = None if b.rel_pos_bias is None else b.rel_pos_bias()
        *body, block = b.blocks
        for other in body:
            x = _run(other, b.grad_checkpointing, x, shared_rel_pos_bias=bias)
        x = b.norm(_run(last or block, b.grad_checkpointing, x, shared_rel_pos_bias=bias))
        return x if last else x[:, 1:]


class Swin(Family):
    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.backbone.layers for block in stage.blocks]

    def stride(self) -> int:
        # of the stages that are there: pruning takes some away
        return self.backbone.feature_info[len(self.backbone.layers) - 1]["reduction"]

    def last_for(self, out_grid: tuple[int, int]) -> MaskedLastBlock | None:
        last, stage = super().last_for(out_grid), self.backbone.layers[-1]
        stages = swin.SwinTransformerStage.forward, swin_v2.SwinTransformerV2Stage.forward
        if last is None or type(stage).forward not in stages:
            return None
        if has_hooks(stage) or is_changed(stage) or tuple(last.block.window_size) != out_grid:
            return None
        return last

    def tokens(
        self, patches: Tensor, grid: tuple[int, int], last: Callable[..., Tensor] | None = None
    ) -> Tensor:
        b = self.backbone
        x = patches.unflatten(1, grid)
        if last is None:
            return b.norm(b.layers(x)).flatten(1, 2)
        *stages, stage = b.layers
        for other in stages:
            x = other(x)
        x = stage.downsample(x)
        for block in stage.blocks[:-1]:
            x = _run(block, stage.grad_checkpointing, x)
        return b.norm(_run(last, stage.grad_checkpointing, x))


def _run(
    block: Callable[..., Tensor], checkpointing: bool, x: Tensor, **options: Tensor | None
) -> Tensor:
    """A block's output, its activations kept or made again in the backward pass."""
    if checkpointing:
        return checkpoint(block, x, use_reentrant=False, **options)
    return block(x, **options)


def family_of(backbone: nn.Module) -> Family | None:
    """The family of a timm model, told by class and by unchanged methods; None for another's."""
    family = _class_of(backbone)
    return None if family is None else family(backbone)


def _class_of(backbone: nn.Module) -> type[Family] | None:
    embed = getattr(backbone, "patch_embed", None)
    if not isinstance(embed, layers.PatchEmbed) or (
        type(embed).forward is not layers.PatchEmbed.forward
    ):
        return None
    # subclasses that run differently (distilled DeiT) would be silently wrong here
    cls = type(backbone)
    if "forward_features" in backbone.__dict__:
        return None
    for base, family in (
        (swin.SwinTransformer, Swin),
        (swin_v2.SwinTransformerV2, Swin),
        (beit.Beit, Beit),
    ):
        if isinstance(backbone, base):
            return family if cls.forward_features is base.forward_features else None
    if (
        isinstance(backbone, vit.VisionTransformer)
        and cls._pos_embed is vit.VisionTransformer._pos_embed
        and cls.forward_features is vit.VisionTransformer.forward_features
        and isinstance(backbone.patch_drop, nn.Identity)
    ):
        return ViT
    return None
