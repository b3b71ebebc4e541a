"""Weights of masked image models between this project's names and those of others.

Ours are timm's names of the encoder behind `encoder.backbone.`, `encoder.mask_token`, and the linear
head `head.weight` `(C*p*p, D)`, rows in `"cyx"` order, with `head.bias`. All of the other projects
have a 1x1 convolution for head, with the same rows.

| project | models |
| --- | --- |
| `microsoft` | microsoft/SimMIM and microsoft/Swin-Transformer: their ViT (timm's BEiT), Swin, SwinV2 |
| `mmpretrain` | open-mmlab/mmpretrain: Swin |
| `transformers` | ViT, Swin, Swinv2 `ForMaskedImageModeling`, the names of their files |
| `timm` | any encoder alone |

Functions here map dictionaries of tensors and read no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
PROJECTS = ("simmim", "microsoft", "mmpretrain", "transformers", "timm")
_ENCODER = "encoder.backbone."
_DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask", "attn.k_bias")
_QKV = ("query", "key", "value")


class _Names(NamedTuple):
    """Where a project keeps a family of models: prefix of the encoder, names of the mask token and
    of the head, and pairs of templates (ours, theirs) for the encoder's other names.

    `{i}` and `{j}` stand for numbers, `{i+1}` for the number after, `{p}` for any rest; `{qkv}` for
    three tensors that are one of ours.
    """

    encoder: str
    mask_token: str
    head: str
    pairs: tuple[tuple[str, str], ...]


_SHIFTED = (("layers.{i+1}.downsample.{p}", "layers.{i}.downsample.{p}"), ("{p}", "{p}"))
_MICROSOFT = _Names("encoder.", "encoder.mask_token", "decoder.0.", _SHIFTED)
_MMPRETRAIN = (
    ("patch_embed.proj.{p}", "patch_embed.projection.{p}"),
    ("patch_embed.norm.{p}", "patch_embed.norm.{p}"),
    ("layers.{i}.blocks.{j}.attn.{p}", "stages.{i}.blocks.{j}.attn.w_msa.{p}"),
    ("layers.{i}.blocks.{j}.mlp.fc1.{p}", "stages.{i}.blocks.{j}.ffn.layers.0.0.{p}"),
    ("layers.{i}.blocks.{j}.mlp.fc2.{p}", "stages.{i}.blocks.{j}.ffn.layers.1.{p}"),
    ("layers.{i}.blocks.{j}.{p}", "stages.{i}.blocks.{j}.{p}"),
    ("layers.{i+1}.downsample.{p}", "stages.{i}.downsample.{p}"),
)


def _transformers(name: str, ours: str, theirs: str, attention: str, *others: tuple[str, str]):
    """transformers' names, whose blocks differ between families in little."""
    pairs = (
        ("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
        (f"{ours}.norm1.{{p}}", f"{theirs}.layernorm_before.{{p}}"),
        (f"{ours}.norm2.{{p}}", f"{theirs}.layernorm_after.{{p}}"),
        (f"{ours}.attn.proj.{{p}}", f"{theirs}.attention.output.dense.{{p}}"),
        (f"{ours}.mlp.fc1.{{p}}", f"{theirs}.intermediate.dense.{{p}}"),
        (f"{ours}.mlp.fc2.{{p}}", f"{theirs}.output.dense.{{p}}"),
        *((f"{ours}.attn.{a}", f"{theirs}.attention.{attention}.{b}") for a, b in others),
        ("norm.{p}", "layernorm.{p}"),
    )
    embeddings = (
        (("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"))
        if name == "vit"
        else (
            ("patch_embed.norm.{p}", "embeddings.norm.{p}"),
            ("layers.{i+1}.downsample.{p}", "encoder.layers.{i}.downsample.{p}"),
        )
    )
    return _Names(f"{name}.", f"{name}.embeddings.mask_token", "decoder.0.", embeddings + pairs)


_BLOCK = "layers.{i}.blocks.{j}"
_TRANSFORMERS = {
    "vit": _transformers(
        "vit", "blocks.{i}", "encoder.layer.{i}", "attention", ("qkv.{p}", "{qkv}.{p}")
    ),
    "swin": _transformers(
        "swin",
        _BLOCK,
        f"encoder.{_BLOCK}",
        "self",
        ("qkv.{p}", "{qkv}.{p}"),
        ("relative_position_bias_table", "relative_position_bias_table"),
    ),
    "swinv2": _transformers(
        "swinv2",
        _BLOCK,
        f"encoder.{_BLOCK}",
        "self",
        ("qkv.weight", "{qkv}.weight"),
        ("q_bias", "query.bias"),
        ("v_bias", "value.bias"),
        ("logit_scale", "logit_scale"),
        ("cpb_mlp.{p}", "continuous_position_bias_mlp.{p}"),
    ),
}


def project_of(state: State) -> str:
    """The project whose names `state` has.

    Raises:
        ValueError: names of none.
    """
    for project, sign in (
        ("simmim", "encoder.backbone."),
        ("mmpretrain", "backbone.patch_embed.projection."),
        ("microsoft", "encoder.patch_embed.proj."),
        ("microsoft", "layers.0.downsample."),
        ("timm", "patch_embed.proj."),
        *(("transformers", f"{name}.embeddings.") for name in _TRANSFORMERS),
    ):
        if any(name.startswith(sign) for name in state):
            return project
    raise ValueError(
        f"no names of {', '.join(PROJECTS)} among the {len(state)} tensors"
        + (f", such as {next(iter(state))}" if state else "")
    )


def to_simmim(state: State, project: str) -> dict[str, Tensor]:
    """The tensors of another project's model under our names and in our layouts.

    What the encoder computes for itself (indices, attention masks) is left out. A tensor that we
    have no name for keeps its own, so that it shows as surplus.
    """
    state = {k: v for k, v in state.items() if not k.endswith(_DERIVED)}
    if project == "simmim":
        return state
    if project == "timm":
        return {_ENCODER + name: value for name, value in state.items()}
    if project == "microsoft" and not any(name.startswith("encoder.") for name in state):
        state = {f"encoder.{name}": value for name, value in state.items()}  # a classifier
    names = _names(project, _family_of_theirs(state), _stages(state))
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == names.mask_token:
            ours["encoder.mask_token"] = value
        elif name.startswith(names.head):
            ours["head." + name.removeprefix(names.head)] = (
                value.flatten(1) if value.dim() > 1 else value
            )
        elif name.startswith(names.encoder):
            ours |= _encoder_to_ours(name.removeprefix(names.encoder), value, names, state, project)
        else:
            ours[name] = value
    return ours


def from_simmim(state: State, project: str) -> dict[str, Tensor]:
    """Inverse of `to_simmim`; for `timm` the encoder alone.

    Raises:
        ValueError: a family of encoders that the project does not have.
    """
    if project == "simmim":
        return dict(state)
    if not any(name.startswith(_ENCODER) for name in state):
        raise ValueError(f"the encoder is none of timm's, and {project} has no other of ours")
    if project == "timm":
        return {k.removeprefix(_ENCODER): v for k, v in state.items() if k.startswith(_ENCODER)}
    family = family_of_names(state)
    names = _names(project, family, _stages(state))
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "encoder.mask_token":
            theirs[names.mask_token] = value
        elif name.startswith("head."):
            kept = value[:, :, None, None] if value.dim() > 1 else value
            theirs[names.head + name.removeprefix("head.")] = kept
        else:
            inner = name.removeprefix(_ENCODER)
            value = _merging(inner, value, project, to_ours=False)
            template, groups = _match(inner, tuple(a for a, _ in names.pairs), name)
            target = dict(names.pairs)[template]
            parts = zip(_QKV, value.chunk(3), strict=True) if "{qkv}" in target else [("", value)]
            theirs |= {names.encoder + _fill(target, groups, part): v for part, v in parts}
    return theirs


def family_of_names(state: State) -> str:
    """`"vit"`, `"beit"`, `"swin"` or `"swinv2"`, told by our names."""
    if any(".logit_scale" in name for name in state):
        return "swinv2"
    if any(name.startswith(f"{_ENCODER}layers.") for name in state):
        return "swin"
    return "beit" if any(name.endswith(".attn.q_bias") for name in state) else "vit"


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


def resize_like(state: State, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Our `state` with position tables of other sizes interpolated to `shapes`.

    Relative-position tables `((2h-1)*(2w-1), heads)`, BEiT's with three further rows for the class
    token, and position embeddings `(1, prefix + h*w, D)`, from square grids to square grids, by
    bicubic interpolation. Any other tensor stays as it is.
    """
    out = dict(state)
    for name, value in state.items():
        shape = shapes.get(name)
        if shape is None or shape == value.shape or value.shape[-1] != shape[-1]:
            continue
        if name.endswith("relative_position_bias_table"):
            extra = 0 if name.startswith(f"{_ENCODER}layers.") else 3
            resized = _resize(value[: len(value) - extra], shape[0] - extra)
            out[name] = torch.cat((resized, value[len(value) - extra :]))
        elif name == f"{_ENCODER}pos_embed":
            rows, wanted = value.shape[1], shape[1]
            prefix = rows - int(rows**0.5) ** 2
            resized = _resize(value[0, prefix:], wanted - prefix)
            out[name] = torch.cat((value[0, :prefix], resized))[None]
    return out


def _resize(rows: Tensor, wanted: int) -> Tensor:
    """Rows of a square grid, interpolated to a square grid of `wanted` cells."""
    side, new = round(len(rows) ** 0.5), round(wanted**0.5)
    if side * side != len(rows) or new * new != wanted:
        return rows
    grid = rows.T.reshape(1, -1, side, side).float()
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.reshape(-1, wanted).T.to(rows.dtype).contiguous()


def _encoder_to_ours(
    name: str, value: Tensor, names: _Names, state: State, project: str
) -> dict[str, Tensor]:
    for ours, theirs in names.pairs:
        for part in _QKV if "{qkv}" in theirs else ("",):
            groups = _pattern(theirs.replace("{qkv}", part)).fullmatch(name)
            if groups is None:
                continue
            target = _ENCODER + _fill(ours, groups.groupdict())
            if not part:
                return {target: _merging(target.removeprefix(_ENCODER), value, project, True)}
            parts = [names.encoder + _fill(theirs, groups.groupdict(), p) for p in _QKV]
            if part != "query" or not all(p in state for p in parts):
                return {} if all(p in state for p in parts) else {names.encoder + name: value}
            return {target: torch.cat([state[p] for p in parts])}
    return {names.encoder + name: value}


def _merging(name: str, value: Tensor, project: str, to_ours: bool) -> Tensor:
    """The columns of a patch merging: mmpretrain unfolds (channel, dy, dx), the others put the
    neighbours (0, 0), (1, 0), (0, 1), (1, 1) behind each other."""
    if project != "mmpretrain" or ".downsample." not in name:
        return value
    if to_ours:
        return value.unflatten(-1, (-1, 2, 2)).movedim(-3, -1).transpose(-3, -2).flatten(-3)
    return value.unflatten(-1, (2, 2, -1)).transpose(-3, -2).movedim(-1, -3).flatten(-3)


def _names(project: str, family: str, stages: int) -> _Names:
    if project == "microsoft" and family in ("beit", "swin", "swinv2"):
        return _MICROSOFT
    if project == "mmpretrain" and family == "swin":
        last = ("norm.{p}", f"norm{stages - 1}.{{p}}")
        return _Names("backbone.", "backbone.mask_token", "neck.decoder.0.", (*_MMPRETRAIN, last))
    if project == "transformers" and family in _TRANSFORMERS:
        return _TRANSFORMERS[family]
    raise ValueError(f"{project} has no masked image model of the family {family}")


def _family_of_theirs(state: State) -> str:
    if any(name.endswith(".logit_scale") for name in state):
        return "swinv2"
    if any(re.search(r"(layers|stages)\.\d+\.blocks\.", name) for name in state):
        return "swin"
    return "beit" if any(name.endswith(".q_bias") for name in state) else "vit"


def _stages(state: State) -> int:
    found = (re.search(r"(?:layers|stages)\.(\d+)\.", name) for name in state)
    return 1 + max((int(m[1]) for m in found if m), default=0)


@cache
def _pattern(template: str) -> re.Pattern:
    text = re.escape(template)
    for group, pattern in (("i", r"\d+"), ("j", r"\d+"), ("p", r".+")):
        text = text.replace(re.escape(f"{{{group}}}"), f"(?P<{group}>{pattern})")
    return re.compile(text.replace(re.escape("{i+1}"), r"(?P<next>\d+)"))


def _match(name: str, templates: tuple[str, ...], full: str) -> tuple[str, dict[str, str]]:
    for template in templates:
        found = _pattern(template).fullmatch(name)
        if found:
            return template, found.groupdict()
    raise ValueError(f"there is no place for {full}")


def _fill(template: str, groups: Mapping[str, str], part: str = "") -> str:
    number = groups.get("i")
    number = str(int(groups["next"]) - 1) if "next" in groups else number
    following = str(int(number) + 1) if number is not None else ""
    values = {"{i}": number, "{i+1}": following, "{qkv}": part}
    values |= {"{j}": groups.get("j"), "{p}": groups.get("p")}
    for key, value in values.items():
        template = template.replace(key, value or "")
    return template
