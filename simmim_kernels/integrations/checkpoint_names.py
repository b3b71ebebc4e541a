"""Under which names each project keeps the tensors of its masked image models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

#: parts of one tensor of ours that transformers keeps apart
QKV = ("query", "key", "value")


class Names(NamedTuple):
    """Where a project keeps a family of models: prefix of the encoder, names of the mask token and
    of the head, and pairs of templates (ours, theirs) for the encoder's other names.

    `ours` is our prefix of these names. `{i}` and `{j}` stand for numbers, `{i+1}` for the number after, `{p}` for any rest; `{qkv}` for
    three tensors that are one of ours.
    """

    encoder: str
    mask_token: str
    head: str
    pairs: tuple[tuple[str, str], ...]
    ours: str = "encoder.backbone."


_SHIFTED = (("layers.{i+1}.downsample.{p}", "layers.{i}.downsample.{p}"), ("{p}", "{p}"))
_MICROSOFT = Names("encoder.", "encoder.mask_token", "decoder.0.", _SHIFTED)
_MMPRETRAIN = (
    ("patch_embed.proj.{p}", "patch_embed.projection.{p}"),
    ("patch_embed.norm.{p}", "patch_embed.norm.{p}"),
    ("layers.{i}.blocks.{j}.attn.{p}", "stages.{i}.blocks.{j}.attn.w_msa.{p}"),
    ("layers.{i}.blocks.{j}.mlp.fc1.{p}", "stages.{i}.blocks.{j}.ffn.layers.0.0.{p}"),
    ("layers.{i}.blocks.{j}.mlp.fc2.{p}", "stages.{i}.blocks.{j}.ffn.layers.1.{p}"),
    ("layers.{i}.blocks.{j}.{p}", "stages.{i}.blocks.{j}.{p}"),
    ("layers.{i+1}.downsample.{p}", "stages.{i}.downsample.{p}"),
)
#: SwinV2 merges patches at the start of a stage, as timm does
_MMPRETRAIN_V2 = (*_MMPRETRAIN[:-1], ("layers.{i}.downsample.{p}", "stages.{i}.downsample.{p}"))
#: ViT and BEiT; the norm behind the mean over the tokens is `ln2`
_MMPRETRAIN_VIT = (
    ("patch_embed.proj.{p}", "patch_embed.projection.{p}"),
    *(
        (f"blocks.{{i}}.{ours}.{{p}}", f"layers.{{i}}.{theirs}.{{p}}")
        for ours, theirs in (
            ("norm1", "ln1"),
            ("norm2", "ln2"),
            ("mlp.fc1", "ffn.layers.0.0"),
            ("mlp.fc2", "ffn.layers.1"),
        )
    ),
    ("blocks.{i}.{p}", "layers.{i}.{p}"),
    ("norm.{p}", "ln1.{p}"),
    ("fc_norm.{p}", "ln2.{p}"),
    ("{p}", "{p}"),
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
    return Names(f"{name}.", f"{name}.embeddings.mask_token", "decoder.0.", embeddings + pairs)


_BLOCK = "layers.{i}.blocks.{j}"
TRANSFORMERS = {
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

#: MAE's decoder in transformers' ViTMAE
VIT_MAE_DECODER = Names(
    "decoder.",
    "",
    "decoder.decoder_pred.",
    (
        *_transformers(
            "vit", "decoder_blocks.{i}", "decoder_layers.{i}", "attention", ("qkv.{p}", "{qkv}.{p}")
        ).pairs,
        ("{p}", "{p}"),
    ),
    ours="",
)


def names_of(project: str, family: str, stages: int) -> Names:
    """The names of a family (`"vit"`, `"beit"`, `"swin"`, `"swinv2"`) with that many stages.

    Raises:
        ValueError: the project does not have the family.
    """
    if project == "microsoft" and family in ("beit", "swin", "swinv2"):
        return _MICROSOFT
    if project == "mmpretrain":
        pairs = _MMPRETRAIN_VIT
        if family in ("swin", "swinv2"):
            last = ("norm.{p}", f"norm{stages - 1}.{{p}}")
            pairs = (*(_MMPRETRAIN if family == "swin" else _MMPRETRAIN_V2), last)
        return Names("backbone.", "backbone.mask_token", "neck.decoder.0.", pairs)
    if project == "transformers" and family in TRANSFORMERS:
        return TRANSFORMERS[family]
    raise ValueError(f"{project} has no masked image model of the family {family}")


@cache
def pattern(template: str) -> re.Pattern:
    """The expression that the names of a template match, a group for each of its parts."""
    text = re.escape(template)
    for group, expression in (("i", r"\d+"), ("j", r"\d+"), ("p", r".+")):
        text = text.replace(re.escape(f"{{{group}}}"), f"(?P<{group}>{expression})")
    return re.compile(text.replace(re.escape("{i+1}"), r"(?P<next>\d+)"))


def match(name: str, templates: tuple[str, ...], full: str) -> tuple[str, dict[str, str]]:
    """The first of `templates` that `name` matches, and its parts.

    Raises:
        ValueError: none; `full` is the name in the message.
    """
    for template in templates:
        found = pattern(template).fullmatch(name)
        if found:
            return template, found.groupdict()
    raise ValueError(f"it has no name for {full}")


def fill(template: str, groups: Mapping[str, str], part: str = "") -> str:
    """The name that a template makes of the parts of another."""
    number = groups.get("i")
    number = str(int(groups["next"]) - 1) if "next" in groups else number
    following = str(int(number) + 1) if number is not None else ""
    values = {"{i}": number, "{i+1}": following, "{qkv}": part}
    values |= {"{j}": groups.get("j"), "{p}": groups.get("p")}
    for key, value in values.items():
        template = template.replace(key, value or "")
    return template
