"""What an encoder computes beyond its weights: read from it, compared, and completed by what the
file of another project says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError, require
from simmim.models.build import encoder_of
from simmim.models.encoders import TimmEncoder

timm = require("timm")

Arguments = dict[str, Any]
#: transformers' names of what follows an MLP's first product, with timm's names and class names
ACTIVATIONS = {
    "gelu": ("gelu", "GELU"),
    "gelu_pytorch_tanh": ("gelu_tanh", "GELUTanh"),
    "quick_gelu": ("quick_gelu", "QuickGELU"),
    "relu": ("relu", "ReLU"),
    "silu": ("silu", "SiLU"),
}
#: the plainest encoder of each family
PLAIN = {
    "vit": "vit_base_patch16_224",
    "beit": "beit_base_patch16_224",
    "swin": "swin_base_patch4_window7_224",
    "swinv2": "swinv2_base_window8_256",
}
#: arguments that weights show: an encoder that has others is another encoder
_SHOWN = ("embed_dim", "depth", "depths", "mlp_ratio", "patch_size")
#: attributes of modules that change no result of a trained model
_WITHOUT_EFFECT = frozenset(
    {
        *("training", "fused_attn", "grad_checkpointing", "drop_prob", "scale_by_keep", "p"),
        *("inplace", "fix_init", "weight_init_mode", "num_classes", "global_pool", "_fast_norm"),
        *("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "dynamic_mask", "flatten"),
        *("pool_include_prefix", "output_fmt", "mlp_ratio", "legacy", "head_init_scale"),
        # what the windows and shifts that are compared were computed from
        *("target_shift_size", "_ref_window_sizes"),
    }
)


class Wanted(NamedTuple):
    """What a file says about an argument of its encoder, and under which name."""

    field: str
    value: Any


def family_of(encoder: nn.Module) -> str | None:
    """`"vit"`, `"beit"`, `"swin"` or `"swinv2"`; None for another encoder."""
    backbone = getattr(encoder, "backbone", None)
    for family, cls in (
        ("vit", timm.models.vision_transformer.VisionTransformer),
        ("beit", timm.models.beit.Beit),
        ("swin", timm.models.swin_transformer.SwinTransformer),
        ("swinv2", timm.models.swin_transformer_v2.SwinTransformerV2),
    ):
        if isinstance(backbone, cls):
            return family
    return None


def arguments_of(encoder: TimmEncoder) -> Arguments:
    """The arguments that make the plain encoder of its family most like `encoder`."""
    backbone, first = encoder.backbone, encoder.blocks()[0]
    attention, mlp = first.attn, first.mlp
    qkv, fc1 = attention.qkv, getattr(mlp, "fc1", None)
    biased = qkv.bias is not None or getattr(attention, "q_bias", None) is not None
    norms = [m.eps for m in backbone.modules() if isinstance(m, nn.LayerNorm)]
    found: Arguments = {
        "patch_size": encoder.patch,
        "embed_dim": backbone.patch_embed.proj.out_channels,
        "mlp_ratio": fc1.out_features / fc1.in_features if isinstance(fc1, nn.Linear) else None,
        "qkv_bias": biased,
        "norm_eps": norms[0] if norms else None,
    }
    family = family_of(encoder)
    if family in ("vit", "swinv2"):
        found["act_layer"] = _activation(getattr(mlp, "act", None))
    if family in ("vit", "beit"):
        found |= {"depth": len(backbone.blocks), "num_heads": attention.num_heads}
        if family == "beit":
            found |= {
                "use_abs_pos_emb": backbone.pos_embed is not None,
                "use_rel_pos_bias": attention.relative_position_bias_table is not None,
                "use_shared_rel_pos_bias": backbone.rel_pos_bias is not None,
            }
        return found
    stages = [stage.blocks[0] for stage in backbone.layers]
    found |= {
        "depths": tuple(len(stage.blocks) for stage in backbone.layers),
        "num_heads": tuple(block.attn.num_heads for block in stages),
        "window_size": max(max(block.window_size) for block in stages),
    }
    if family == "swinv2":
        sizes = (block.attn.pretrained_window_size for block in stages)
        found["pretrained_window_sizes"] = tuple(max(size) for size in sizes)
    return found


def unlike_plain(encoder: TimmEncoder, config: PretrainConfig) -> str:
    """What `encoder` has otherwise than the plain encoder with its `arguments_of`, in a few words:
    empty where both compute the same."""
    family = family_of(encoder)
    arguments = {k: as_setting(v) for k, v in arguments_of(encoder).items()}
    if None in arguments.values():
        missing = next(k for k, v in arguments.items() if v is None)
        return f"another {missing} than any that has a name"
    plain = dataclasses.replace(config, encoder=PLAIN[family], encoder_args=arguments)
    with torch.device("meta"):
        expected = encoder_of(plain)
    return unlike(encoder, expected)


def unlike(encoder: TimmEncoder, other: TimmEncoder) -> str:
    """What `encoder` has otherwise than `other`, in a few words: empty where both compute the same."""
    found, expected = (dict(e.backbone.named_modules()) for e in (encoder, other))
    return "; ".join(_compare(found, expected)[:2])


def complete(
    config: PretrainConfig, wanted: Mapping[str, Wanted], where: str
) -> tuple[PretrainConfig, list[str]]:
    """`config` with the encoder arguments that a file says and no tensor shows, and a line that says
    which were added.

    Args:
        wanted: by argument of the encoder.
        where: the file's name in messages.

    Raises:
        UserError: a setting that the encoder named by `config` cannot have or that contradicts its
            arguments; the message has the file's name of the setting.
    """
    with torch.device("meta"):
        have = encoder_of(config)
    given, added = config.encoder_args, {}
    for argument, (field, value) in wanted.items():
        if _same(argument, value, have):
            continue
        actual = arguments_of(have).get(argument)
        if argument in given:
            if argument == "window_size" and _may_change_window(family_of(have), given):
                continue
            if argument == "pretrained_window_sizes" and "window_size" in given:
                continue
            raise UserError(
                f"{where} has {field} {_words(value)}, but --encoder-args {argument} "
                f"{given[argument]}: leave that argument out"
            )
        if argument in _SHOWN:
            raise UserError(
                f"{where} has {field} {_words(value)}, {config.encoder} has {_words(actual)}: give "
                f"the --encoder that it holds, or --encoder-args {argument} {as_setting(value)}"
            )
        added[argument] = field, as_setting(value)
    if not added:
        return config, []
    settings = {argument: value for argument, (_, value) in added.items()}
    changed = dataclasses.replace(config, encoder_args={**given, **settings})
    try:
        with torch.device("meta"):
            have = encoder_of(changed)
    except UserError:
        have = None
    for argument, (field, _) in added.items():
        if have is None or not _same(argument, wanted[argument].value, have):
            raise UserError(
                f"{where} has {field} {_words(wanted[argument].value)}, which {config.encoder} "
                "cannot be given"
            )
    pairs = " ".join(f"{argument} {value}" for argument, value in settings.items())
    return changed, [f"from its configuration: --encoder-args {pairs}"]


def as_setting(value: Any) -> Any:
    """An argument as `--encoder-args` holds it: several numbers are joined by commas."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value


def heads_of(transformers: Any, microsoft: Any) -> Any:
    """The number of heads in a configuration of transformers or microsoft, of each stage where there are
    several; None where neither says it."""
    said = transformers if isinstance(transformers, dict) else {}
    heads = said.get("num_attention_heads", said.get("num_heads"))
    model = microsoft.get("MODEL") if isinstance(microsoft, dict) else None
    if isinstance(model, dict):
        fields = model.get(str(model.get("TYPE")).upper())
        heads = fields.get("NUM_HEADS") if isinstance(fields, dict) else None
    parts = heads if isinstance(heads, list | tuple) else [heads]
    return heads if parts and all(isinstance(n, int) for n in parts) else None


def _words(value: Any) -> str:
    return str(as_setting(value))


def _may_change_window(family: str | None, given: Mapping[str, Any]) -> bool:
    """Whether another window than the file's can be asked for: tables are interpolated, the bias
    network of SwinV2 must know which window it was trained with."""
    return family == "swin" or "pretrained_window_sizes" in given


def _same(argument: str, value: Any, encoder: TimmEncoder) -> bool:
    actual = arguments_of(encoder).get(argument)
    if argument == "window_size" and isinstance(value, int):
        # timm makes windows no larger than the grid that they cut
        grid = encoder.backbone.patch_embed.grid_size
        value = min(value, max(grid))
    if isinstance(actual, tuple) and isinstance(value, tuple | list):
        # transformers lists four windows whatever the number of stages
        extra = value[len(actual) :] if argument == "pretrained_window_sizes" else ()
        return actual == tuple(value[: len(value) - len(extra)])
    if isinstance(actual, float) and isinstance(value, int | float):
        return abs(actual - value) <= 1e-12 * abs(actual) or (
            argument == "mlp_ratio" and _hidden(encoder, value) == _hidden(encoder, actual)
        )
    return actual == value


def _hidden(encoder: TimmEncoder, ratio: float) -> int:
    return int(encoder.blocks()[0].mlp.fc1.in_features * ratio)


def _activation(module: nn.Module | None) -> str | None:
    """timm's name of an activation, None for one that transformers does not have."""
    name = type(module).__name__
    if getattr(module, "approximate", "none") == "tanh":
        name = "GELUTanh"
    return next((ours for ours, cls in ACTIVATIONS.values() if cls == name), None)


def _compare(found: dict[str, nn.Module], expected: dict[str, nn.Module]) -> list[str]:
    """Where two models differ: modules, parameters, and plain attributes, of which names are given."""
    wrong = []
    for name, module in found.items():
        like = expected.get(name)
        if like is None:
            wrong.append(f"{name} {type(module).__name__}")
            continue
        # by name: PyTorch and timm both have a LayerNorm and a GELU
        classes = type(module).__name__, type(like).__name__
        if classes[0] != classes[1] and not _without_effect(module, like):
            wrong.append(f"{name} {classes[0]}, not {classes[1]}")
        elif classes[0] == classes[1]:
            wrong += [f"{name} {difference}".strip() for difference in _attributes(module, like)]
    return wrong + [f"no {name}" for name in expected if name not in found]


def _without_effect(module: nn.Module, like: nn.Module) -> bool:
    """Whether both are dropouts or nothing: a trained model runs without."""
    idle = (nn.Identity, nn.Dropout, timm.layers.DropPath)
    return isinstance(module, idle) and isinstance(like, idle)


def _attributes(module: nn.Module, like: nn.Module) -> list[str]:
    mine = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
    theirs = {n: tuple(p.shape) for n, p in like.named_parameters(recurse=False)}
    wrong = [n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n)]
    for name, value in vars(module).items():
        if name in _WITHOUT_EFFECT or not isinstance(value, bool | int | float | str | tuple):
            continue
        if value != vars(like).get(name, "none" if name == "approximate" else None):
            wrong.append(f"{name} {value}")
    return sorted(wrong)
