"""Whole training steps of one encoder: published arithmetic, transformers, and ours.

Every contender is a `Step`: forward, backward, gradient clipping and a fused AdamW update. All start
from encoders of the same size and run in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.shapes import RATIO, type_of_steps

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNIT = 32

Batch = tuple[Tensor, sk.PatchMask, Tensor, Tensor]


@dataclass(frozen=True)
class Encoder:
    """A timm ViT or Swin, and a ViT's sizes in transformers.

    Attributes:
        name: what the application calls it.
        patch: side of the tokens that the published mask lies on.
        timm_name: timm's name where the application's is another.
        options: timm's arguments; where there is a `timm_name`, for the published model alone.
    """

    name: str
    width: int
    heads: int
    depth: int = 12
    patch: int = 16
    timm_name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


_SWIN_B = "swin_base_patch4_window7_224"
ENCODERS = {
    "VIT_TI": Encoder("vit_tiny_patch16_224", 192, 3),
    "VIT_S": Encoder("vit_small_patch16_224", 384, 6),
    "VIT_B": Encoder("vit_base_patch16_224", 768, 12),
    "SWIN_B": Encoder("simmim_swin_base", 128, 4, 24, 4, _SWIN_B, {"window_size": 6}),
    "SWIN_V2_B": Encoder("swinv2_base_window12_192", 128, 4, 24, 4),
}
# Of trials: timm's smallest models with one block a stage.
SHALLOW = {
    "vit_tiny_patch16_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)},
}
VIT, SWIN = SHALLOW
ENCODERS |= {
    "TRIAL_VIT": Encoder(VIT, 192, 3, 1, options=SHALLOW[VIT]),
    "TRIAL_SWIN": Encoder(SWIN, 96, 3, 4, 4, options=SHALLOW[SWIN]),
}


class Published(nn.Module):
    """SimMIM's own arithmetic around a timm model: float images in, multiplied masks, dense head.

    Subclasses give the encoder's tokens as a map `(B, D, h, w)`.
    """

    def __init__(self, encoder: Encoder, size: int, window: int | None) -> None:
        import timm

        super().__init__()
        options = {"img_size": size, "num_classes": 0, "global_pool": ""} | encoder.options
        self.encoder = timm.create_model(encoder.timm_name or encoder.name, **options)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        stride = self.stride(encoder)
        self.head = nn.Conv2d(self.encoder.num_features, 3 * stride**2, 1)
        self.shuffle = nn.PixelShuffle(stride)
        self.patch, self.window = encoder.patch, window

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        pred = self.shuffle(self.head(self.features(images, mask)))
        target = images if self.window is None else peers.normalize_targets(images, self.window)
        return peers.masked_loss(pred.float(), target, mask, self.patch, "l1")


class PublishedViT(Published):
    def stride(self, encoder: Encoder) -> int:
        return encoder.patch

    def features(self, images: Tensor, mask: Tensor) -> Tensor:
        vit = self.encoder
        x = peers.mask_tokens(vit.patch_embed(images), mask, self.mask_token)
        x = torch.cat((vit.cls_token.expand(len(x), -1, -1), x), 1) + vit.pos_embed
        x = vit.norm(vit.blocks(x))[:, 1:]
        side = images.shape[-1] // self.patch
        return x.transpose(1, 2).unflatten(2, (side, side))


class PublishedSwin(Published):
    def stride(self, encoder: Encoder) -> int:
        return encoder.patch * 2 ** (self.encoder.num_layers - 1)

    def features(self, images: Tensor, mask: Tensor) -> Tensor:
        x = self.encoder.patch_embed(images)
        x = peers.mask_tokens(x.flatten(1, 2), mask, self.mask_token).view(x.shape)
        return self.encoder.norm(self.encoder.layers(x)).permute(0, 3, 1, 2)


class Transformers(nn.Module):
    """transformers' ViTForMaskedImageModeling of the same size; it has no window targets."""

    def __init__(self, encoder: Encoder, size: int) -> None:
        from transformers import ViTConfig, ViTForMaskedImageModeling

        super().__init__()
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
        self.model = ViTForMaskedImageModeling(config)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        return self.model(images, bool_masked_pos=mask.flatten(1).bool()).loss


def make_model(name: str, encoder: Encoder, size: int, window: int | None) -> nn.Module:
    """The model of a contender; `"ours --plain"` runs the published arithmetic in ours."""
    if name == "transformers":
        return Transformers(encoder, size)
    if name == "published":
        return (PublishedViT if encoder.patch == 16 else PublishedSwin)(encoder, size, window)
    from simmim.models.encoders import build_encoder
    from simmim.models.simmim import SimMIM

    arguments = {} if encoder.timm_name else encoder.options
    return SimMIM(
        build_encoder(encoder.name, img_size=(size, size), mean=MEAN, std=STD, **arguments),
        mean=MEAN,
        std=STD,
        target_norm=sk.WindowNorm(window) if window else None,
        plain=name == "ours --plain",
    )


def set_attention(model: nn.Module, fused: bool) -> None:
    """Choose between `scaled_dot_product_attention` and plain products for every layer."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("sdpa" if fused else "eager")


class Step:
    """A contender: one optimiser step on a batch, in the device's `type_of_steps`.

    Args:
        model: returns the loss, or an output that holds it.
        arguments: what the model takes of a batch.
    """

    def __init__(self, model: nn.Module, device: str, arguments: Callable[..., tuple]) -> None:
        self.model = self.run = model.to(device).train()
        self.device, self.arguments = device, arguments
        self.is_mixed = type_of_steps(device) == "bfloat16"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def compile(self) -> None:
        self.run = torch.compile(self.model, dynamic=False)

    def __call__(self, *batch: Any) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.is_mixed):
            out = self.run(*self.arguments(*batch))
        loss = getattr(out, "loss", out)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def make_step(name: str, encoder: Encoder, size: int, window: int | None, device: str) -> Step:
    """The contender called `name`, from weights of the same seed each time.

    Ours takes the uint8 images and the `PatchMask`; the others, as published, normalised images and the
    int64 mask on the token grid. Making those is the data loader's work there and is not timed.
    """
    torch.manual_seed(0)
    model = make_model(name, encoder, size, window)
    if name.startswith("ours"):
        return Step(model, device, lambda images, mask, *_: (images, mask))
    return Step(model, device, lambda _, __, normalized, tokens: (normalized, tokens))


def draw_batch(encoder: Encoder, size: int, count: int) -> Batch:
    """Random uint8 images and their mask, with what the published arithmetic takes instead."""
    device = torch.get_default_device()
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    mask = sk.random_mask(count, (size // UNIT, size // UNIT), RATIO, device=device)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    tokens = mask.on_grid((size // encoder.patch,) * 2).mask.long()
    return images, mask, (images / 255 - mean) / std, tokens
