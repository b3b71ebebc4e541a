"""Single tensors of checkpoints: under the names and in the layouts of one project and another."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from simmim_kernels.integrations.checkpoint_names import QKV, Names, fill, match, pattern

State = Mapping[str, Tensor]


def rename_to_ours(
    name: str, value: Tensor, names: Names, state: State, project: str
) -> dict[str, Tensor]:
    """One of `state`, another project's tensors, under our name; empty for a part that came along."""
    for ours, theirs in names.pairs:
        for part in QKV if "{qkv}" in theirs else ("",):
            groups = pattern(theirs.replace("{qkv}", part)).fullmatch(name)
            if groups is None:
                continue
            target = names.ours + fill(ours, groups.groupdict())
            if not part:
                if ".norm." in target and family_of_theirs(state) == "swinv2":
                    return {target: value}  # of channels that are merged already
                return {target: _merging(target.removeprefix(names.ours), value, project, True)}
            parts = [names.encoder + fill(theirs, groups.groupdict(), p) for p in QKV]
            if part != "query" or not all(p in state for p in parts):
                return {} if all(p in state for p in parts) else {names.encoder + name: value}
            return {target: torch.cat([state[p] for p in parts])}
    return {names.encoder + name: value}


def rename_to_theirs(name: str, value: Tensor, names: Names, project: str) -> dict[str, Tensor]:
    """Inverse of `rename_to_ours`: in parts where another project keeps it apart."""
    inner = name.removeprefix(names.ours)
    value = _merging(inner, value, project, to_ours=False)
    template, groups = match(inner, tuple(a for a, _ in names.pairs), name)
    target = dict(names.pairs)[template]
    parts = zip(QKV, value.chunk(3), strict=True) if "{qkv}" in target else [("", value)]
    return {names.encoder + fill(target, groups, part): v for part, v in parts}


def reorder_head(state: State, channels: int, source: str, target: str) -> dict[str, Tensor]:
    """Our `state` with the rows of its head moved from one order to the other.

    Args:
        channels: of the images.
        source, target: `"cyx"`: (channel, dy, dx), ours and PixelShuffle's; `"yxc"`: MAE's.
    """
    if source == target:
        return dict(state)
    moved = dict(state)
    for name in ("head.weight", "head.bias"):
        rows = state[name]
        side = round((len(rows) // channels) ** 0.5)
        if source == "yxc":
            rows = rows.unflatten(0, (side, side, channels)).movedim(2, 0)
        else:
            rows = rows.unflatten(0, (channels, side, side)).movedim(0, 2)
        moved[name] = rows.flatten(0, 2).contiguous()
    return moved


def _merging(name: str, value: Tensor, project: str, to_ours: bool) -> Tensor:
    """The columns of a patch merging: mmpretrain unfolds (channel, dy, dx), the others put the
    neighbours (0, 0), (1, 0), (0, 1), (1, 1) behind each other."""
    if project != "mmpretrain" or ".downsample." not in name:
        return value
    if to_ours:
        return value.unflatten(-1, (-1, 2, 2)).movedim(-3, -1).transpose(-3, -2).flatten(-3)
    return value.unflatten(-1, (2, 2, -1)).transpose(-3, -2).movedim(-1, -3).flatten(-3)


def family_of_theirs(state: State) -> str:
    """`"vit"`, `"beit"`, `"swin"` or `"swinv2"`, told by another project's names."""
    if any(name.endswith(".logit_scale") for name in state):
        return "swinv2"
    if any(re.search(r"(layers|stages)\.\d+\.blocks\.", name) for name in state):
        return "swin"
    return "beit" if any(name.endswith(".q_bias") for name in state) else "vit"
