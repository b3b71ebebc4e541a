"""Pre-training on 13 bands, as of Sentinel-2: 16-bit reflectances, images that are not square.

Bands are normalised by their own mean and deviation over the data. They lie in memory as 16-bit
integers until a batch is taken; kernels take any number of channels.
"""

from __future__ import annotations

import argparse

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simmim_kernels import PatchNorm, masked_l1, masked_linear_l1, random_mask
from simmim_kernels.integrations.timm import MaskedEncoder

BANDS = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
PATCH, UNIT = 12, 24


def scenes(count: int, height: int, width: int) -> Tensor:
    """Made-up scenes, `int16 (count, 13, height, width)`: four materials, mixed, with a spectrum each."""
    spectra = torch.rand(4, len(BANDS)) * 6000
    shares = F.interpolate(torch.randn(count, 4, 6, 6) * 3, size=(height, width), mode="bicubic")
    return torch.einsum("nmhw,mc->nchw", shares.softmax(1), spectra).short()


def main(steps: int = 60, height: int = 120, width: int = 96, batch: int = 8) -> list[float]:
    torch.manual_seed(0)
    data = scenes(4 * batch, height, width)
    values = data.float()
    mean, std = values.mean((0, 2, 3))[:, None, None], values.std((0, 2, 3))[:, None, None]

    backbone = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=(height, width),
        patch_size=PATCH,
        in_chans=len(BANDS),
        depth=3,
        num_classes=0,
        global_pool="",
    )
    encoder = MaskedEncoder(backbone)
    head = nn.Linear(encoder.width, len(BANDS) * encoder.stride**2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    grid = height // UNIT, width // UNIT
    losses = []
    for step in range(steps):
        ids = torch.randint(len(data), (batch,))
        images = (data[ids] - mean) / std
        mask = random_mask(ids, grid, 0.6, seed=0, epoch=step)
        loss = masked_linear_l1(encoder(images, mask), head.weight, head.bias, images, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.4f}")

    with torch.no_grad():
        images = (data[:batch] - mean) / std
        mask = random_mask(batch, grid, 0.6, seed=1)
        tokens = head(encoder(images, mask)).unflatten(2, (len(BANDS), -1))
        for band, name in enumerate(BANDS):
            one = images[:, band : band + 1]
            print(f"{name:>4}: error {masked_l1(tokens[:, :, band].contiguous(), one, mask):.3f}")
        # The same, where every patch is normalised by itself: how well structure is predicted.
        flat = tokens.flatten(2)
        print(f"per patch: {masked_l1(flat, images, mask, target_norm=PatchNorm()):.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
