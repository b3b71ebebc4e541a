"""Visible tokens at their places, mask tokens elsewhere, positions added: an MAE decoder's input.

Forward and gradients of the visible tokens, the mask token and the position embedding.
"""

import torch

from benchmarks import peers
from benchmarks.rows.common import BOTH, Case, Contest, against, rows_of
from simmim_kernels.ops.place_tokens import place_tokens


@rows_of("place_tokens", BOTH)
def rows(case: Case) -> Contest:
    width, grid = case.shape.width, (case.shape.tokens, case.shape.tokens)

    def inputs():
        mask = case.mask()
        fine = mask.on_grid(grid)
        # The published code keeps the inverse of the order in which it drew the tokens.
        restore = torch.cat((fine.visible, fine.masked), 1).argsort(1)
        tokens = case.leaf(fine.visible.numel(), width)
        pos_embed = case.leaf(1, grid[0] * grid[1], width)
        return tokens, case.leaf(1, 1, width), pos_embed, mask, restore

    def published(tokens, token, pos_embed, _, restore):
        return peers.place_tokens(tokens.view(case.batch, -1, width), token, restore) + pos_embed

    return against(
        lambda tokens, token, pos, mask, _: place_tokens(tokens, mask, token, grid, pos_embed=pos),
        published,
        inputs,
        gradients=(0, 1, 2),
        # Forward: visible rows in, all rows out. Backward: all rows in, visible rows out.
        moved=int(case.token_bytes * (2 + 2 * (1 - case.shape.masked))),
        tolerance=case.tolerance(1e-4, 2e-2),
        kernel="place_tokens",
    )
