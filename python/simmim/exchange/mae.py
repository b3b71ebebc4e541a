"""MAE's decoder in the files of others: its settings, read from them and written for transformers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from torch import Tensor

from simmim.config.images import ENCODER, values_of
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.exchange.files import Source
from simmim.exchange.settings import arguments_of, family_of, unlike_plain
from simmim.models.encoders import is_swin
from simmim.models.mae import MAE
from simmim.presets import METHODS

PUBLISHED_HEADS = 16


def complete_decoder(
    trained: PretrainConfig, ours: dict[str, Tensor], source: Source, heads: int | None
) -> tuple[PretrainConfig, list[str]]:
    """``trained`` with the settings of the decoder among tensors ``ours``, and what was assumed;
    raises ``UserError`` for heads or an activation that our decoder cannot have."""
    said, own = source.transformers or {}, json.loads(source.ours or "{}")
    act = said.get("hidden_act", "gelu")
    if act != "gelu":
        raise UserError(f"{source.path} has hidden_act {act!r}, MAE's decoder here has gelu alone")
    theirs = own.get("decoder_heads", said.get("decoder_num_attention_heads", PUBLISHED_HEADS))
    if said and heads not in (None, theirs):
        raise UserError(f"{source.path} has decoder_num_attention_heads {theirs}, not {heads}")
    heads = theirs if heads is None else heads
    width = ours["mask_token"].shape[-1]
    if width % heads:
        raise UserError(
            f"{source.path}: a decoder of width {width} has not {heads} heads: say how many by "
            "--decoder-heads, or take the encoder alone with --encoder-only"
        )
    blocks = {name.split(".")[1] for name in ours if name.startswith("decoder_blocks.")}
    arguments = source.mae or {}
    norm_pix = said.get("norm_pix_loss", arguments.get("norm_pix_loss", True))
    settings = {
        **values_of(trained, (*ENCODER, "drop_path")),
        "decoder_width": width,
        "decoder_depth": max(1, len(blocks)),
        "decoder_heads": heads,
        "mask": "uniform" if is_swin(trained.encoder) else "random",
        "mask_unit": round((len(ours["head.weight"]) / trained.channels) ** 0.5),
        "mask_ratio": said.get("mask_ratio", arguments.get("mask_ratio", 0.75)),
        "target_norm": "patch" if norm_pix else "none",
    }
    settings |= {name: own[name] for name in ("mask_ratio", "target_norm", "loss") if name in own}
    trained = dataclasses.replace(METHODS["mae"], **settings)
    if said or own:
        return trained, []
    norm = "as its command line says" if "norm_pix_loss" in arguments else "as published"
    return trained, [
        f"taken for its decoder: {heads} heads (--decoder-heads), --target-norm "
        f"{trained.target_norm} {norm}"
    ]


def check_plain(model: MAE, trained: PretrainConfig, project: str) -> None:
    """Raise ``UserError`` for what MAE of other projects cannot be: another encoder than a plain
    ViT, another loss or target than theirs."""
    if not isinstance(model, MAE) or family_of(model.encoder) != "vit":
        raise UserError(f"{project} has a ViT with MAE's decoder (--method mae) alone")
    difference = unlike_plain(model.encoder, trained)
    if difference:
        raise UserError(
            f"MAE of {project} cannot be what {trained.encoder} is: it has {difference}"
        )
    if trained.loss != "mse" or trained.target_norm == "window" or not trained.normalize:
        raise UserError(
            f"MAE of {project} has the loss mse on normalised pixels, as such or by patch: --loss "
            f"{trained.loss}, --target-norm {trained.target_norm} cannot be exported"
        )


def describe_decoder(model: MAE, trained: PretrainConfig) -> dict[str, Any]:
    """What transformers' configuration says of the decoder and the loss."""
    if arguments_of(model.encoder)["act_layer"] != "gelu":
        raise UserError(
            "transformers' ViTMAE has one activation for encoder and decoder: gelu here"
        )
    first = model.decoder_blocks[0]
    return {
        "model_type": "vit_mae",
        "architectures": ["ViTMAEForPreTraining"],
        "decoder_hidden_size": trained.decoder_width,
        "decoder_num_hidden_layers": len(model.decoder_blocks),
        "decoder_num_attention_heads": first.attn.num_heads,
        "decoder_intermediate_size": first.mlp.fc1.out_features,
        "mask_ratio": trained.mask_ratio,
        "norm_pix_loss": trained.target_norm == "patch",
    }
