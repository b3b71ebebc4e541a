"""What a user would run without this library: the published arithmetic in plain PyTorch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PIXEL_LOSS = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


def pixel_mask(mask: Tensor, unit: int) -> Tensor:
    """`(B, gh, gw)` -> `(B, 1, H, W)`, by two `repeat_interleave` as published."""
    return mask.repeat_interleave(unit, 1).repeat_interleave(unit, 2).unsqueeze(1).contiguous()


def masked_loss(pred: Tensor, target: Tensor, mask: Tensor, unit: int, loss: str) -> Tensor:
    """The published loss of a full-size prediction; `mask` is the int64 one of the generator.

    The prediction is cast to the target's type: the gradient of `F.mse_loss` takes no mixed types.
    """
    pixels = pixel_mask(mask, unit)
    difference = PIXEL_LOSS[loss](pred.to(target.dtype), target, reduction="none")
    return (difference * pixels).sum() / (pixels.sum() + 1e-5) / target.shape[1]


def token_loss(pred: Tensor, target: Tensor, mask: Tensor, norm: bool) -> Tensor:
    """The mean squared error of masked tokens `(B, L, N)` as in MAE, `mask` float `(B, gh, gw)` on the
    tokens' grid; with `norm` of targets normalised by token."""
    if norm:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6) ** 0.5
    loss = (pred - target).square().mean(-1)
    mask = mask.flatten(1)
    return (loss * mask).sum() / mask.sum()


def tokens_to_image(tokens: Tensor, stride: int) -> Tensor:
    """Head output `(B, L, C*p*p)` to the full-size prediction, through PixelShuffle."""
    batch, length, width = tokens.shape
    side = int(length**0.5)
    return F.pixel_shuffle(tokens.transpose(1, 2).reshape(batch, width, side, side), stride)


def mask_tokens(x: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """The published substitution: multiply by the weight and its complement."""
    weight = mask.flatten(1).unsqueeze(-1).type_as(token)
    return x * (1.0 - weight) + token * weight


def mask_tokens_where(x: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """The best rewrite in plain PyTorch: one `where`, in the promoted type."""
    dtype = torch.promote_types(x.dtype, token.dtype)
    return torch.where(mask.flatten(1).unsqueeze(-1).bool(), token.to(dtype), x.to(dtype))


def mask_image(image: Tensor, mask: Tensor, unit: int, mean: Tensor, std: Tensor) -> Tensor:
    """A uint8 image normalised, then zero where masked."""
    pixels = (image.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return pixels.masked_fill(pixel_mask(mask, unit), 0.0)


def place_tokens(rows: Tensor, token: Tensor, restore: Tensor) -> Tensor:
    """MAE's decoder input: mask tokens behind the visible rows, then all of them in their order.

    Args:
        rows: `(B, V, D)`, the visible tokens.
        token: `(1, 1, D)`.
        restore: `int64 (B, L)`, for each token its place among the visible ones, then the masked.
    """
    batch, visible, width = rows.shape
    tokens = token.expand(batch, restore.shape[1] - visible, -1)
    return torch.cat((rows, tokens), 1).gather(1, restore[..., None].expand(-1, -1, width))


def normalize_patches(image: Tensor, patch: int) -> Tensor:
    """MAE's targets, back in the image's layout: each patch by its own mean and variance."""
    batch, channels, height, width = image.shape
    x = image.reshape(batch, channels, height // patch, patch, width // patch, patch)
    x = x.permute(0, 2, 4, 3, 5, 1).flatten(3)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
    x = x.unflatten(3, (patch, patch, channels)).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(image.shape)


def random_mask(batch: int, grid: int, ratio: float) -> Tensor:
    """The published NumPy generator, a permutation a sample, collated into one tensor.

    The mask stays on the grid of mask units, as ours does.
    """
    units = grid * grid
    count = int(np.ceil(units * ratio))
    masks = []
    for _ in range(batch):
        chosen = np.random.permutation(units)[:count]
        mask = np.zeros(units, dtype=int)
        mask[chosen] = 1
        masks.append(torch.from_numpy(mask.reshape(grid, grid)))
    return torch.stack(masks)


def box_mask(grid: int, ratio: float) -> Tensor:
    """One square at a random place, as in tutorials of inpainting."""
    side = int(grid * ratio)
    top, left = np.random.randint(0, grid - side + 1, 2)
    mask = torch.zeros(grid, grid, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def uniform_mask(grid: int) -> Tensor:
    """One visible unit in every 2 x 2."""
    visible = torch.from_numpy(np.random.randint(0, 4, (grid // 2, grid // 2)))
    mask = torch.arange(4).view(1, 2, 1, 2) != visible[:, None, :, None]
    return mask.reshape(grid, grid)


def block_mask(grid: int, ratio: float) -> Tensor:
    """Rectangles of at least 16 units, log-uniform in their aspect ratio, until enough are masked
    (BEiT's algorithm 1, trimmed to the exact count)."""
    count, mask = int(np.ceil(grid * grid * ratio)), np.zeros((grid, grid), bool)
    while (wanting := count - mask.sum()) > 0:
        area = np.random.uniform(min(16, wanting), wanting)
        aspect = np.exp(np.random.uniform(np.log(0.3), -np.log(0.3)))
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if not (0 < h <= grid and 0 < w <= grid):
            continue
        top, left = np.random.randint(0, grid - h + 1), np.random.randint(0, grid - w + 1)
        free = np.argwhere(~mask[top : top + h, left : left + w])[:wanting]
        mask[top + free[:, 0], left + free[:, 1]] = True
    return torch.from_numpy(mask)


def avg_dist(mask: Tensor, unit: int) -> float:
    """The mean distance of masked pixels to the nearest visible one, by SciPy's distance transform."""
    from scipy.ndimage import distance_transform_edt

    pixels = mask.repeat_interleave(unit, 1).repeat_interleave(unit, 2).cpu().numpy()
    return float(np.concatenate([distance_transform_edt(p)[p] for p in pixels]).mean())


def _normalized(image: Tensor, mean: Tensor, square: Tensor, count: Tensor) -> Tensor:
    variance = ((square - mean * mean) * (count / (count - 1))).clamp_min(0.0)
    return (image - mean) / (variance + 1e-6).sqrt()


def normalize_targets(image: Tensor, window: int) -> Tensor:
    """The published form: three poolings whose cost grows with the square of the window."""

    def box(x: Tensor, valid_only: bool) -> Tensor:
        return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=not valid_only)

    count = box(torch.ones_like(image), False) * window**2
    return _normalized(image, box(image, True), box(image * image, True), count)


def _extent(size: int, window: int) -> tuple[Tensor, Tensor]:
    """First and one past the last position of the cut window around each position of an axis."""
    at, half = torch.arange(size), window // 2
    return (at - half).clamp_min(0), (at + half + 1).clamp_max(size)


def _counts(height: int, width: int, window: int) -> Tensor:
    (top, bottom), (left, right) = _extent(height, window), _extent(width, window)
    return ((bottom - top)[:, None] * (right - left)[None, :]).float()


def normalize_targets_banded(window: int, height: int, width: int):
    """A rewrite: sums over rows and columns as products with banded matrices of ones, made once."""

    def band(size: int) -> Tensor:
        at = torch.arange(size)
        return ((at[:, None] - at[None, :]).abs() <= window // 2).float()

    rows, columns, count = band(height), band(width), _counts(height, width, window)

    def run(image: Tensor) -> Tensor:
        mean = rows @ image @ columns / count
        square = rows @ (image * image) @ columns / count
        return _normalized(image, mean, square, count)

    return run


def normalize_targets_cumulative(window: int, height: int, width: int):
    """A rewrite: differences of cumulative sums along both axes, in float64 for their size."""
    (top, bottom), (left, right) = _extent(height, window), _extent(width, window)
    count = _counts(height, width, window)

    def box(x: Tensor) -> Tensor:
        sums = F.pad(x.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
        rows = sums.index_select(-2, bottom) - sums.index_select(-2, top)
        return (rows.index_select(-1, right) - rows.index_select(-1, left)).float() / count

    def run(image: Tensor) -> Tensor:
        return _normalized(image, box(image), box(image * image), count)

    return run


def normalize_targets_separable(window: int, height: int, width: int):
    """A rewrite: two one-dimensional poolings in the place of each two-dimensional one."""
    count = _counts(height, width, window)
    half = window // 2

    def box(x: Tensor) -> Tensor:
        rows = F.avg_pool2d(x, (window, 1), 1, (half, 0), divisor_override=1)
        return F.avg_pool2d(rows, (1, window), 1, (0, half), divisor_override=1) / count

    def run(image: Tensor) -> Tensor:
        return _normalized(image, box(image), box(image * image), count)

    return run
