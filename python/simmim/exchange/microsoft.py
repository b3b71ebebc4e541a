"""The configuration in checkpoints of microsoft/SimMIM and microsoft/Swin-Transformer."""

from __future__ import annotations

from typing import Any

from simmim.errors import UserError
from simmim.exchange.settings import Wanted

#: their fields with the arguments of timm's that mean the same
_COMMON = ("PATCH_SIZE", "EMBED_DIM", "NUM_HEADS", "MLP_RATIO", "QKV_BIAS")
_SWIN = {name: name.lower() for name in (*_COMMON, "DEPTHS", "WINDOW_SIZE")}
_VIT = {name: name.lower() for name in (*_COMMON, "DEPTH")} | {
    "USE_APE": "use_abs_pos_emb",
    "USE_RPB": "use_rel_pos_bias",
    "USE_SHARED_RPB": "use_shared_rel_pos_bias",
}
_TYPES = {"vit": "beit", "swin": "swin", "swinv2": "swinv2"}
#: values of other fields that timm's encoders have; others change outputs
_FIXED = {"QK_SCALE": (None,), "APE": (False,), "PATCH_NORM": (True,)}


def read_microsoft(
    config: Any, family: str, where: str, *, pretraining: bool
) -> tuple[dict[str, Wanted], int | None, int | None]:
    """What their configuration says of the encoder, by its arguments, and the image size and window.

    A file whose configuration has another layout says nothing.

    Args:
        family: of our encoder.
        where: the file's name in messages.
        pretraining: whether the file holds a SimMIM with its decoder.

    Raises:
        UserError: a model of another family than `family`, or a setting that timm does not have.
    """
    model = config.get("MODEL") if isinstance(config, dict) else None
    kind = model.get("TYPE") if isinstance(model, dict) else None
    fields = model.get(str(kind).upper()) if isinstance(model, dict) else None
    if kind not in _TYPES or not isinstance(fields, dict):
        return {}, None, None
    if _TYPES[kind] != family:
        raise UserError(
            f"{where} has MODEL.TYPE {kind!r}, which is timm's family {_TYPES[kind]}, but --encoder "
            f"names one of {family}"
        )
    prefix = f"MODEL.{kind.upper()}."
    for name, allowed in _FIXED.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise UserError(
                f"{where} has {prefix}{name} {fields[name]}, which timm's {kind} has not"
            )
    names = _VIT if kind == "vit" else _SWIN
    wanted = {names[n]: Wanted(prefix + n, v) for n, v in fields.items() if n in names}
    if kind == "swinv2" and "PRETRAINED_WINDOW_SIZES" in fields and not pretraining:
        # their SimMIM builds its encoder without them
        name = "PRETRAINED_WINDOW_SIZES"
        wanted["pretrained_window_sizes"] = Wanted(prefix + name, fields[name])
    size = (config.get("DATA") or {}).get("IMG_SIZE")
    window = fields.get("WINDOW_SIZE")
    return (
        wanted,
        size if isinstance(size, int) else None,
        window if isinstance(window, int) else None,
    )
