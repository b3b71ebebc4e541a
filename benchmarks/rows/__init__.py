"""Every row of the tables, a file an op."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from benchmarks.rows.common import Row
from benchmarks.rows.shapes import Setting

#: In the order in which a GPU with little time should run them.
FILES = (
    "call_overhead", "random_mask", "mask_strategies", "masked_loss", "mask_tokens", "mask_image",
    "crop_resize", "normalize_targets", "normalize_patches", "masked_linear",
    "masked_patch_embed", "place_tokens", "mae", "last_block", "attention", "precision", "step",
    "transformers", "methods",
)  # fmt: skip


def all_rows(setting: Setting) -> Iterator[Row]:
    """The rows of all ops; nothing large is made before a row is built."""
    for file in FILES:
        yield from import_module(f"benchmarks.rows.{file}").rows(setting)
