"""How SimMIM's code draws a model's first weights, where timm draws them otherwise."""

from __future__ import annotations

from functools import partial
from math import sqrt

import torch
from torch import nn

from simmim.models.simmim import SimMIM

STD = 0.02


@torch.no_grad()
def initialize_as_published(model: SimMIM) -> None:
    """Draw the encoder's weights anew as microsoft/SimMIM does before pre-training.

    ViT and BEiT: normal, cut at one deviation, the patch embedding too; the last linear layer of both
    branches of block ``n`` is divided by ``sqrt(2n)``. Swin and SwinV2: normal; their patch embedding
    stays as timm and they draw it. Biases are 0. The head is PyTorch's own in both.
    """
    encoder, backbone = model.encoder, model.encoder.backbone
    vit = not hasattr(backbone, "layers")
    draw = (
        partial(nn.init.trunc_normal_, std=STD, a=-STD, b=STD)
        if vit
        # published as cut at 2, a hundred deviations, where float32 leaves a few weights
        else partial(nn.init.normal_, std=STD)
    )
    draw(encoder.mask_token)
    for module in backbone.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d) if vit else nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        table = getattr(module, "relative_position_bias_table", None)
        if table is not None and not vit:
            draw(table)
    if vit:
        for name, parameter in backbone.named_parameters(recurse=False):
            if name in ("cls_token", "reg_token", "pos_embed"):
                draw(parameter)
        for number, block in enumerate(encoder.blocks(), 1):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.div_(sqrt(2 * number))
