"""Whole training steps of one encoder: published arithmetic, transformers, and ours.

Every contender is an object with `step(images, mask)`: forward, backward, gradient clipping and a
fused AdamW update. All start from encoders of the same size and run in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from benchmarks import peers
from simmim_kernels import PatchMask

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Encoder:
    """A timm ViT and its twin's sizes in transformers."""

    name: str
    width: int
    heads: int
    depth: int = 12
    patch: int = 16


VIT_TI = Encoder("vit_tiny_patch16_224", 192, 3)
VIT_S = Encoder("vit_small_patch16_224", 384, 6)
VIT_B = Encoder("vit_base_patch16_224", 768, 12)


class Published(nn.Module):
    """SimMIM's own arithmetic around timm's ViT: float images in, multiplied masks, dense head."""

    def __init__(self, encoder: Encoder, size: int, window: int | None) -> None:
        super().__init__()
        self.vit = timm.create_model(encoder.name, img_size=size, num_classes=0, global_pool="")
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        self.head = nn.Conv2d(encoder.width, 3 * encoder.patch**2, 1)
        self.shuffle = nn.PixelShuffle(encoder.patch)
        self.patch, self.window = encoder.patch, window

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        x = peers.mask_tokens(self.vit.patch_embed(images), mask, self.mask_token)
        x = torch.cat((self.vit.cls_token.expand(len(x), -1, -1), x), 1) + self.vit.pos_embed
        x = self.vit.norm(self.vit.blocks(x))[:, 1:]
        side = images.shape[-1] // self.patch
        pred = self.shuffle(self.head(x.transpose(1, 2).unflatten(2, (side, side))))
        target = images if self.window is None else peers.normalize_targets(images, self.window)
        return peers.masked_loss(pred.float(), target, mask, self.patch, "l1")


def published(encoder: Encoder, size: int, window: int | None) -> nn.Module:
    return Published(encoder, size, window)


def transformers(encoder: Encoder, size: int, window: int | None) -> nn.Module:
    """transformers' ViTForMaskedImageModeling of the same size; it has no window targets."""
    from transformers import ViTConfig, ViTForMaskedImageModeling

    config = ViTConfig(
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        intermediate_size=4 * encoder.width,
        image_size=size,
        patch_size=encoder.patch,
        encoder_stride=encoder.patch,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = ViTForMaskedImageModeling(config)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor, mask: Tensor) -> Tensor:
            return self.model(images, bool_masked_pos=mask.flatten(1).bool()).loss

    return Loss()


def simmim(plain: bool) -> Callable[[Encoder, int, int | None], nn.Module]:
    """This project's model; `plain` runs the published arithmetic in it."""

    def make(encoder: Encoder, size: int, window: int | None) -> nn.Module:
        from simmim.encoders import build_encoder
        from simmim.model import SimMIM
        from simmim_kernels import WindowNorm

        return SimMIM(
            build_encoder(encoder.name, img_size=(size, size), mean=MEAN, std=STD),
            mean=MEAN,
            std=STD,
            target_norm=WindowNorm(window) if window else None,
            plain=plain,
        )

    return make


def set_attention(model: nn.Module, fused: bool) -> None:
    """Choose between `scaled_dot_product_attention` and plain products for every layer."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("sdpa" if fused else "eager")


class Step:
    """A contender: one optimiser step on a batch.

    Args:
        model: takes `(images, mask)` and returns the loss.
        uint8: whether it takes the uint8 image and the `PatchMask`, or, as published, the
            normalised float image and the int64 mask on the token grid. Making those is the data
            loader's work there and is not timed.
        compile: run the model under `torch.compile`.
    """

    def __init__(self, model: nn.Module, device: str, *, uint8: bool, compile: bool) -> None:
        self.model, self.uint8 = model.to(device).train(), uint8
        self.device = device
        self.run = torch.compile(model, dynamic=False) if compile else model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self, batch: tuple[Tensor, PatchMask, Tensor, Tensor]) -> Tensor:
        images, mask, normalized, tokens = batch
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.run(images, mask) if self.uint8 else self.run(normalized, tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def batch_of(size: int, batch: int, device: str) -> tuple[Tensor, PatchMask, Tensor, Tensor]:
    """Random uint8 images and their mask, with what the published arithmetic takes instead."""
    import simmim_kernels as sk

    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    mask = sk.random_mask(batch, (size // 32, size // 32), 0.6, device=device)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    tokens = mask.on_grid((size // 16, size // 16)).mask.long()
    return images, mask, (images / 255 - mean) / std, tokens
