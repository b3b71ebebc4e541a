"""Weights of masked image models between this project's names and those of others.

Ours are timm's names of the encoder behind `encoder.backbone.`, `encoder.mask_token`, and the linear
head `head.weight` `(C*p*p, D)`, rows in `"cyx"` order, with `head.bias`. All of the other projects
have a 1x1 convolution for head, with the same rows. MAE's decoder is `decoder_*` and `mask_token` here
and in its published code, whose head is `decoder_pred.*` with rows in `"yxc"` order.

| project | models |
| --- | --- |
| `microsoft` | microsoft/SimMIM and microsoft/Swin-Transformer: their ViT (timm's BEiT), Swin, SwinV2 |
| `mmpretrain` | open-mmlab/mmpretrain: Swin; to read also its ViT, BEiT and SwinV2 alone |
| `transformers` | ViT, Swin, Swinv2, alone and `ForMaskedImageModeling`, ViTMAE, the names of their files |
| `mae` | facebookresearch/mae: ViT with MAE's decoder |
| `timm` | any encoder alone |

Functions here map dictionaries of tensors and read no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from simmim_kernels.integrations.checkpoint_names import TRANSFORMERS, VIT_MAE_DECODER, names_of
from simmim_kernels.integrations.checkpoint_tensors import (
    family_of_theirs,
    rename_to_ours,
    rename_to_theirs,
    reorder_head,
)

__all__ = ["family_of_names", "from_simmim", "project_of", "reorder_head", "to_simmim"]

State = Mapping[str, Tensor]
PROJECTS = ("simmim", "microsoft", "mmpretrain", "transformers", "timm", "mae")
_ENCODER = "encoder.backbone."
_DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask", "attn.k_bias")
#: the patch embedding, which each project's encoders have under one name
_EMBEDDING = {
    "timm": "patch_embed.proj.weight",
    "mmpretrain": "patch_embed.projection.weight",
    "transformers": "embeddings.patch_embeddings.projection.weight",
}
#: names that transformers 5 gives modules in memory, and those that it writes to files
_IN_MEMORY = (
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.o_proj\.", ".output.dense."),
    (r"^((?:vit\.)?)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"(layers?\.\d+\.attention)\.(query|key|value)\.", r"\1.attention.\2."),
    (r"(blocks\.\d+\.attention)\.(query|key|value)\.", r"\1.self.\2."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def split_prefix(name: str, state: Mapping[str, object]) -> tuple[str, str] | None:
    """What a wrapper put before the names of the model whose patch embedding `name` is, and the
    project whose names follow; None where `name` is none's."""
    for project, embedding in _EMBEDDING.items():
        if name != embedding and not name.endswith("." + embedding):
            continue
        before = name.removesuffix(embedding)
        if project == "mmpretrain":
            return (before.removesuffix("backbone."), project) if "backbone." in before else None
        if project == "transformers":
            family = next((f for f in TRANSFORMERS if _ends(before, f"{f}.")), "")
            return before.removesuffix(f"{family}." if family else ""), project
        if _ends(before, _ENCODER):
            return before.removesuffix(_ENCODER), "simmim"
        outer = before.removesuffix("encoder.")
        whole = {f"{before}mask_token", f"{outer}decoder.0.weight"} & state.keys()
        if _ends(before, "encoder.") and (whole or _merges_after(state, before)):
            return outer, "microsoft"
        if f"{before}decoder_pred.weight" in state:
            return before, "mae"
        return before, "microsoft" if _merges_after(state, before) else "timm"
    return None


def _ends(before: str, part: str) -> bool:
    return before == part or before.endswith("." + part)


def _merges_after(state: Mapping[str, object], before: str) -> bool:
    """Whether a Swin merges patches at the end of a stage, as microsoft's does."""
    return any(name.startswith(f"{before}layers.0.downsample.") for name in state)


def project_of(state: State) -> str:
    """The project whose names `state` has.

    Raises:
        ValueError: names of none.
    """
    for name in state:
        found = split_prefix(name, state)
        if found is not None:
            return found[1]
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
    # SwinV2's files were published before the bias network had its name
    state = {k.replace(".rpe_mlp.", ".cpb_mlp."): v for k, v in state.items()}
    if project == "timm":
        return {_ENCODER + name: value for name, value in state.items()}
    if project == "mae":
        return _mae_to_ours(state)
    if project == "microsoft" and not any(name.startswith("encoder.") for name in state):
        state = {f"encoder.{name}": value for name, value in state.items()}  # a classifier
    if project == "transformers":
        state = _names_in_files(state)
        decoder = {k: v for k, v in state.items() if k.startswith("decoder.decoder_")}
        if decoder:
            decoder |= {k: v for k, v in state.items() if k == "decoder.mask_token"}
            others = {k: v for k, v in state.items() if k not in decoder}
            return _vit_mae_to_ours(others, decoder)
    family = family_of_theirs(state)
    if project == "microsoft" and family == "vit":
        family = "beit"  # as which their ViT without biases of q and v counts, too
    names = names_of(project, family, _stages(state))
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == names.mask_token:
            ours["encoder.mask_token"] = value
        elif name.startswith(names.head):
            ours["head." + name.removeprefix(names.head)] = (
                value.flatten(1) if value.dim() > 1 else value
            )
        elif name.startswith(names.encoder):
            ours |= rename_to_ours(name.removeprefix(names.encoder), value, names, state, project)
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
        raise ValueError(f"{project} has no model like this encoder, which is none of timm's")
    if project == "timm":
        return {k.removeprefix(_ENCODER): v for k, v in state.items() if k.startswith(_ENCODER)}
    family = family_of_names(state)
    if (project == "mae") > ("decoder_pos_embed" in state and family == "vit"):
        raise ValueError("facebookresearch/mae has a ViT with a decoder (--method mae) alone")
    if "decoder_pos_embed" in state and project in ("mae", "transformers"):
        return _from_mae(state, project)
    if project == "mmpretrain" and family != "swin":
        raise ValueError(f"mmpretrain has no masked image model of the family {family}")
    names = names_of(project, family, _stages(state))
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "encoder.mask_token":
            theirs[names.mask_token] = value
        elif name.startswith("head."):
            kept = value[:, :, None, None] if value.dim() > 1 else value
            theirs[names.head + name.removeprefix("head.")] = kept
        else:
            theirs |= rename_to_theirs(name, value, names, project)
    return theirs


def _mae_to_ours(state: State) -> dict[str, Tensor]:
    """facebookresearch/mae's tensors under our names."""
    ours = {}
    for name, value in state.items():
        if name.startswith("decoder_pred."):
            ours[name.replace("decoder_pred", "head")] = value
        else:
            own = name.startswith("decoder_") or name == "mask_token"
            ours[name if own else _ENCODER + name] = value
    return reorder_head(ours, state["patch_embed.proj.weight"].shape[1], "yxc", "cyx")


def _vit_mae_to_ours(encoder: State, decoder: State) -> dict[str, Tensor]:
    ours = to_simmim(encoder, "transformers")
    names, head = VIT_MAE_DECODER, VIT_MAE_DECODER.head
    for name, value in decoder.items():
        if name.startswith(head):
            ours["head." + name.removeprefix(head)] = value
        else:
            inner = name.removeprefix(names.encoder)
            ours |= rename_to_ours(inner, value, names, decoder, "transformers")
    channels = ours[_ENCODER + "patch_embed.proj.weight"].shape[1]
    return reorder_head(ours, channels, "yxc", "cyx")


def _from_mae(state: State, project: str) -> dict[str, Tensor]:
    """A ViT with MAE's decoder as `mae` or `transformers` has it, who have no mask token in the
    encoder."""
    state = {name: value for name, value in state.items() if name != "encoder.mask_token"}
    channels = state[_ENCODER + "patch_embed.proj.weight"].shape[1]
    state = reorder_head(state, channels, "cyx", "yxc")
    if project == "mae":
        return {
            name.removeprefix(_ENCODER).replace("head.", "decoder_pred."): value
            for name, value in state.items()
        }
    encoder = {name: value for name, value in state.items() if name.startswith(_ENCODER)}
    theirs = from_simmim(encoder, "transformers")
    for name, value in state.items():
        if name.startswith("head."):
            theirs[VIT_MAE_DECODER.head + name.removeprefix("head.")] = value
        elif name not in encoder:
            theirs |= rename_to_theirs(name, value, VIT_MAE_DECODER, project)
    return theirs


def family_of_names(state: State) -> str:
    """`"vit"`, `"beit"`, `"swin"` or `"swinv2"`, told by our names."""
    if any(".logit_scale" in name for name in state):
        return "swinv2"
    if any(name.startswith(f"{_ENCODER}layers.") for name in state):
        return "swin"
    own = (".attn.q_bias", ".gamma_1", "relative_position_bias_table")
    return "beit" if any(name.endswith(own) for name in state) else "vit"


def _names_in_files(state: State) -> dict[str, Tensor]:
    """transformers' tensors by the names of its files, those of a bare backbone with its family's
    prefix."""
    # what transformers 5 makes of a ViTMAE's decoder_layers when it writes
    state = {k.replace(".decoder_encoder.layer.", ".decoder_layers."): v for k, v in state.items()}
    if any(".q_proj." in name for name in state):
        state = {_name_in_file(name): value for name, value in state.items()}
    if any(name.startswith("embeddings.") for name in state):
        family = family_of_theirs(state)
        state = {f"{family}.{name}": value for name, value in state.items()}
    return dict(state)


def _name_in_file(name: str) -> str:
    for memory, file in _IN_MEMORY:
        name = re.sub(memory, file, name)
    return name


def _stages(state: State) -> int:
    found = (re.search(r"(?:layers|stages)\.(\d+)\.", name) for name in state)
    return 1 + max((int(m[1]) for m in found if m), default=0)
