"""Mask tokens: forward and gradients of the tokens and of the mask token."""

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.rows.common import BOTH, Case, Contest, against, rows_of


@rows_of("mask_tokens", BOTH)
def rows(case: Case) -> Contest:
    def inputs():
        x = case.leaf(case.batch, case.shape.tokens**2, case.shape.width)
        mask = case.mask()
        return x, mask, case.leaf(1, 1, case.shape.width), case.on_tokens(mask)

    return against(
        lambda x, mask, token, _: sk.mask_tokens(x, mask, token),
        lambda x, _, token, fine: peers.mask_tokens(x, fine, token),
        inputs,
        gradients=(0, 2),
        rewrites={"where": lambda x, _, token, fine: peers.mask_tokens_where(x, fine, token)},
        # Forward: visible rows in, all rows out. Backward: all rows in, all rows out.
        moved=int(case.token_bytes * (1 - case.shape.masked) + 3 * case.token_bytes),
        tolerance=case.tolerance(1e-4, 2e-2),
        kernel="mask_tokens",
    )
