"""A masked image model of transformers on the kernels: one line, and one line back."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForMaskedImageModeling

from simmim_kernels import apply_kernels, random_mask


def blobs(count: int, size: int) -> Tensor:
    """Smooth random images, normalised, `(count, 3, size, size)`."""
    return F.interpolate(torch.randn(count, 3, 5, 5), size=(size, size), mode="bicubic")


def main(steps: int = 100, size: int = 96, batch: int = 16, width: int = 128) -> list[float]:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=size,
        patch_size=8,
        encoder_stride=8,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * width,
    )
    model = ViTForMaskedImageModeling(config).train()
    report = apply_kernels(model)
    print(report)

    images = blobs(4 * batch, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        ids = torch.randint(len(images), (batch,))
        # Units of two by two patches. The model takes the mask as it is; transformers' own form,
        # mask.on_grid((size // 8, size // 8)).mask.flatten(1), works too.
        mask = random_mask(ids, (size // 16, size // 16), 0.6, seed=0, epoch=step)
        loss = model(images[ids], bool_masked_pos=mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.4f}")

    report.undo()  # what is left is transformers' own model with the weights that were learnt
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    main(parser.parse_args().steps)
