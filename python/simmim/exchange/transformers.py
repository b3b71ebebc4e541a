"""transformers' configurations of ViT, Swin and Swinv2: what they say of an encoder, and what says
the same of ours."""

from __future__ import annotations

from typing import Any

from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.exchange.mae import describe_decoder
from simmim.exchange.settings import ACTIVATIONS, Wanted, arguments_of, family_of, unlike_plain
from simmim.models.classifier import Classifier
from simmim.models.encoders import TimmEncoder
from simmim.models.mae import MAE
from simmim.models.simmim import SimMIM

CLASSES = {"vit": "ViT", "swin": "Swin", "swinv2": "Swinv2"}
_FAMILIES = {"vit": "vit", "vit_mae": "vit", "swin": "swin", "swinv2": "swinv2"}
#: fields with the arguments of timm's that mean the same
_VIT = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "layer_norm_eps": "norm_eps",
}
_SWIN = {n: n for n in ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")}
_COMMON = {n: n for n in ("patch_size", "qkv_bias")}
#: what is meant where a file leaves a field out
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"layer_norm_eps": 1e-12, "num_attention_heads": 12, "qkv_bias": True},
    "swin": {"layer_norm_eps": 1e-5, "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True},
    "swinv2": {
        **{"layer_norm_eps": 1e-5, "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True},
        "pretrained_window_sizes": (0, 0, 0, 0),
    },
}
#: the epsilon that transformers' Swin has in its patch embedding and merging whatever is configured
_SWIN_EPS = 1e-5
#: fields that change no output of the encoder or of its head, or that are looked at elsewhere
_OTHER_FIELDS = frozenset(
    {
        # of training alone
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
        *("initializer_range", "classifier_dropout_prob", "gradient_checkpointing"),
        # geometry, channels, head
        *("image_size", "num_channels", "encoder_stride", "hidden_act", "intermediate_size"),
        *("use_absolute_embeddings", "layer_norm_eps"),
        # derived from others
        *("num_layers", "path_norm", "stage_names", "out_features", "out_indices", "hidden_size"),
        # of the pooler, which is not taken, and of MAE's decoder and masks, which are read elsewhere
        *("pooler_output_size", "pooler_act", "decoder_num_attention_heads", "mask_ratio"),
        *("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_intermediate_size"),
        "norm_pix_loss",
        # how the model is run or described
        *("transformers_version", "architectures", "model_type", "_name_or_path", "dtype"),
        *("torch_dtype", "output_hidden_states", "output_attentions", "return_dict", "use_cache"),
        *("chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "num_labels"),
        *("problem_type", "attn_implementation", "_attn_implementation", "auto_map", "torchscript"),
        *("_commit_hash", "finetuning_task", "use_bfloat16", "tie_word_embeddings", "name_or_path"),
    }
)


def read_settings(config: dict[str, Any], where: str) -> dict[str, Wanted]:
    """What a transformers configuration says of the encoder, by the encoder's arguments; raises
    ``UserError`` for a setting, which it names, that no encoder here has."""
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type)
    if family is None:
        raise UserError(
            f"{where} has model_type {model_type!r}, which cannot be imported: known are "
            f"{', '.join(_FAMILIES)}"
        )
    fields = {**_DEFAULTS[family], **config}
    names = _COMMON | (_VIT if family == "vit" else _SWIN)
    if family == "swinv2":
        names = names | {"pretrained_window_sizes": "pretrained_window_sizes"}
    unknown = fields.keys() - names.keys() - _OTHER_FIELDS
    if unknown:
        raise UserError(
            f"{where} has {', '.join(sorted(unknown))}, of which no effect is known: if it has none "
            "on this model's outputs, take it out of the configuration"
        )
    wanted = {names[f]: Wanted(f, v) for f, v in fields.items() if f in names}
    activation = fields.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{where} has hidden_act {activation!r}, which cannot be imported: known are "
            f"{', '.join(ACTIVATIONS)}"
        )
    if family != "swin":
        wanted["act_layer"] = Wanted("hidden_act", ACTIVATIONS[activation][0])
    elif activation != "gelu":
        raise UserError(f"{where} has hidden_act {activation!r}, timm's Swin has gelu alone")
    if family == "vit":
        if "intermediate_size" in fields and "hidden_size" in fields:
            ratio = fields["intermediate_size"] / fields["hidden_size"]
            wanted["mlp_ratio"] = Wanted("intermediate_size", ratio)
        return wanted
    if fields["layer_norm_eps"] != _SWIN_EPS:
        raise UserError(
            f"{where} has layer_norm_eps {fields['layer_norm_eps']:g} in some norms and "
            f"{_SWIN_EPS:g} in others, timm's Swin one for all: it cannot be imported"
        )
    if fields.get("use_absolute_embeddings"):
        raise UserError(f"{where} has use_absolute_embeddings, timm's Swin has no such embeddings")
    return wanted


def describe(model: SimMIM | Classifier, trained: PretrainConfig) -> dict[str, Any]:
    """transformers' configuration of the same model; raises ``UserError`` for something of the
    encoder, which it names, that transformers' models do not have."""
    encoder: TimmEncoder = model.encoder
    family = family_of(encoder)
    height, width = trained.size
    if height != width:
        raise UserError(f"transformers takes square images alone, not {height}x{width}")
    if family is None:
        raise UserError("transformers has no model like this encoder, which is none of timm's")
    if family not in CLASSES:
        raise UserError(f"transformers has no masked image model of the family {family}")
    _check_plain(encoder, trained, family)
    check_windows(encoder, family)
    arguments = arguments_of(encoder)
    fields = _COMMON | (_VIT if family == "vit" else _SWIN)
    names = {argument: name for name, argument in fields.items()}
    activations = {ours: theirs for theirs, (ours, _) in ACTIVATIONS.items()}
    described = {
        "model_type": family,
        "architectures": [CLASSES[family] + "ForMaskedImageModeling"],
        "image_size": height,
        "num_channels": trained.channels,
        "encoder_stride": encoder.stride,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": activations[arguments.get("act_layer", "gelu")],
        "layer_norm_eps": arguments["norm_eps"],
    }
    described |= {names[a]: v for a, v in arguments.items() if a in names}
    if family == "vit":
        described["intermediate_size"] = encoder.blocks()[0].mlp.fc1.out_features
        if isinstance(model, MAE):
            del described["encoder_stride"]
            return described | describe_decoder(model, trained)
        return described
    if isinstance(model, MAE):
        raise UserError(f"transformers has no MAE of the family {family}")
    if arguments["norm_eps"] != _SWIN_EPS:
        raise UserError(
            f"transformers' Swin has norms with an epsilon of {_SWIN_EPS:g}: norm_eps {arguments['norm_eps']:g} cannot be exported"
        )
    if family == "swinv2":
        described["pretrained_window_sizes"] = arguments["pretrained_window_sizes"]
    return described | {"drop_path_rate": trained.drop_path}


def check_windows(encoder: TimmEncoder, family: str, project: str = "transformers") -> None:
    """Raise ``UserError`` for windows that timm's Swin and that of transformers or mmpretrain treat
    differently: shifted ones that do not divide their grid (timm shifts before it pads, the others
    after), or tables of windows that timm made smaller to fit their grid."""
    if not family.startswith("swin"):
        return
    blocks = encoder.blocks()
    for block in blocks:
        sides = zip(block.input_resolution, block.window_size, strict=True)
        if any(block.shift_size) and any(grid % window for grid, window in sides):
            raise UserError(
                f"window_size {max(block.window_size)} does not divide a grid of "
                f"{'x'.join(map(str, block.input_resolution))}, which {project} and timm pad "
                "differently: choose an image size that it divides"
            )
    windows = {max(block.window_size) for block in blocks}
    if family == "swin" and len(windows) > 1:
        raise UserError(
            f"window_size {max(windows)} is larger than the grid of a stage, where timm makes it "
            f"{min(windows)} and {project} fails: choose a larger image size or a smaller window"
        )


def _check_plain(encoder: TimmEncoder, trained: PretrainConfig, family: str) -> None:
    difference = unlike_plain(encoder, trained)
    if not difference:
        return
    known = {*_COMMON.values(), *_VIT.values(), *_SWIN.values(), "act_layer", "window_size"}
    others = [name for name in trained.encoder_args if name not in known]
    made = f" (--encoder-args {', '.join(others)})" if others else ""
    raise UserError(
        f"transformers' {CLASSES[family]} cannot be what {trained.encoder}{made} is: it has "
        f"{difference}. Export it for timm, whose encoder it is"
    )
