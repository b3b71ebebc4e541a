"""The constants of block-wise masks; everything else about these masks is integer arithmetic."""

from __future__ import annotations

BLOCK_ATTEMPTS = 256

# round(2^16 * sqrt(r)) for 64 aspect ratios r, log-uniform in [0.3, 1/0.3]. Read backwards it holds
# the roots of 1/r.
ROOT_ASPECT = tuple(round(65536 * 0.3 ** (0.5 - (2 * a + 1) / 128)) for a in range(64))


def block_areas(grid_h: int, grid_w: int) -> tuple[int, int]:
    """The least and the greatest area, in units, of a rectangle drawn for this grid."""
    short = min(grid_h, grid_w)
    widest = short * (10 * short // 3)
    return max(1, min(16, 16 * grid_h * grid_w // 196, widest)), widest
