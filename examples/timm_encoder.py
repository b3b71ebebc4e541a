"""Any timm model with a stage of patches as encoder: here ConvNeXt, and any other by its name."""

from __future__ import annotations

import argparse

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simmim_kernels import masked_linear_l1, random_mask
from simmim_kernels.integrations.timm import MaskedEncoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def blobs(count: int, size: int) -> Tensor:
    """Smooth random images, `uint8 (count, 3, size, size)`."""
    coarse = torch.rand(count, 3, 5, 5)
    return (F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255).byte()


def main(
    name: str = "convnext_atto", steps: int = 50, size: int = 128, batch: int = 8, **arguments
) -> list[float]:
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0, **arguments)
    encoder = MaskedEncoder(backbone, img_size=(size, size), mean=MEAN, std=STD)
    print(encoder.report)
    # One linear map an output token: the head and the loss run on masked tokens alone.
    head = nn.Linear(encoder.width, 3 * encoder.stride**2)

    images = blobs(4 * batch, size)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    losses = []
    for step in range(steps):
        ids = torch.randint(len(images), (batch,))
        mask = random_mask(ids, (size // 32, size // 32), 0.6, seed=0, epoch=step)
        tokens = encoder(images[ids], mask)
        loss = masked_linear_l1(
            tokens, head.weight, head.bias, images[ids], mask, mean=MEAN, std=STD
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.4f}")

    backbone = encoder.undo()  # timm's model as it was, trained
    maps = backbone.forward_intermediates(images[:1] / 255, intermediates_only=True)
    print("features:", *(tuple(m.shape) for m in maps))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="convnext_atto")
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    main(arguments.name, arguments.steps)
