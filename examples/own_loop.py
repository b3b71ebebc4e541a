"""Single kernels in a loop of one's own: masks, mask token, and a loss on window-normalised targets.

The encoder is plain PyTorch. Images stay uint8: the first kernel that reads a pixel normalises it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simmim_kernels import WindowNorm, masked_l1, masked_patch_embed, random_mask
from simmim_kernels.nn import MaskToken

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def blobs(count: int, size: int) -> Tensor:
    """Smooth random images, `uint8 (count, 3, size, size)`."""
    coarse = torch.rand(count, 3, 5, 5)
    return (F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255).byte()


class Encoder(nn.Module):
    """A small transformer that never sees a masked patch."""

    def __init__(self, size: int, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.token = MaskToken(width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3 * patch**2)

    def forward(self, images: Tensor, mask) -> Tensor:
        weights = self.embed.weight, self.embed.bias
        x = masked_patch_embed(
            images, *weights, mask, self.token.token, pos_embed=self.positions, mean=MEAN, std=STD
        )
        return self.head(self.blocks(x))  # (B, tokens, 3 * patch * patch): never an image


def main(steps: int = 100, size: int = 96, batch: int = 16, width: int = 128) -> list[float]:
    torch.manual_seed(0)
    images = blobs(4 * batch, size)
    model = Encoder(size, 8, width, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        epoch, place = divmod(step * batch, len(images))
        ids = torch.arange(place, place + batch)
        # A pure function of seed, epoch and sample: the same for any batch size, worker or rank.
        mask = random_mask(ids, (size // 16, size // 16), 0.6, seed=0, epoch=epoch)
        prediction = model(images[ids], mask)
        loss = masked_l1(
            prediction, images[ids], mask, mean=MEAN, std=STD, target_norm=WindowNorm(15)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    main(parser.parse_args().steps)
