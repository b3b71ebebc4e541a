"""``simmim import``: a checkpoint of another project as one of ours."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simmim.config.exchange import ImportConfig
from simmim.config.images import ENCODER, values_of
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.exchange.classifiers import HEADS, class_names, finish_classifier
from simmim.exchange.files import Source, read_source, summary
from simmim.exchange.geometry import Size, fit_tables
from simmim.exchange.mae import complete_decoder
from simmim.exchange.microsoft import read_microsoft
from simmim.exchange.pixels import read_pixels
from simmim.exchange.settings import as_setting, complete, family_of, heads_of, unlike_plain
from simmim.exchange.timm import read_timm
from simmim.exchange.transformers import check_windows, read_settings
from simmim.models.build import build_model, encoder_of
from simmim.models.simmim import SimMIM
from simmim.storage import checkpoint
from simmim.storage.outputs import check_replaceable
from simmim_kernels.integrations import checkpoints

State = dict[str, Tensor]
_BACKBONE = "encoder.backbone."


class _Described(NamedTuple):
    """The encoder to make, the images and windows of the file's model, and what there is to tell."""

    trained: PretrainConfig
    img_size: Size
    window: Size
    notes: list[str]


class Imported(NamedTuple):
    """A model of another project as one of ours.

    Attributes:
        tensors: by our names.
        settings, kind: of the checkpoint that holds it.
        trained: the encoder's description.
        classes: names of a classifier's classes, where the file has some.
        notes: what there is to tell.
    """

    tensors: State
    settings: str
    kind: str
    trained: PretrainConfig
    classes: list[str]
    notes: list[str]


def import_model(config: ImportConfig) -> list[str]:
    """Write the checkpoint that ``config`` asks for; returns what there is to tell.

    Raises:
        UserError: as ``read_model``, or the checkpoint may not be written; nothing is written then.
    """
    check_suffix(config.out)
    check_replaceable(config.out, config.overwrite, config.source)
    found = read_model(config)
    checkpoint.save_model(config.out, found.settings, found.tensors, found.kind, found.classes)
    return found.notes


def read_model(config: ImportConfig) -> Imported:
    """The model in ``config.source``.

    Raises:
        UserError: a file that can't be read, of an unknown project, with other settings than the
            encoder can have, or whose tensors are not those of the encoder.
    """
    if config.encoder_only and config.classifier:
        raise UserError("--encoder-only leaves out what --classifier keeps: give one of them")
    source = read_source(config.source, config.weights)
    project = source.project if config.project == "auto" else config.project
    if project == "mae" and "decoder_pred.weight" not in source.tensors:
        project = "timm"  # whose names encoders alone have, as MAE's authors publish them
    source = dataclasses.replace(source, project=project)
    try:
        ours = checkpoints.to_simmim(source.tensors, project)
    except ValueError as error:
        raise UserError(f"{config.source}: {error}") from None
    described = _describe(config, source)
    if "decoder_pos_embed" in ours and not (config.encoder_only or config.classifier):
        trained, more = complete_decoder(described.trained, ours, source, config.decoder_heads)
        described = described._replace(trained=trained, notes=described.notes + more)
    pixels, said = read_pixels(source, config)
    described = described._replace(trained=dataclasses.replace(described.trained, **pixels))
    notes = [f"{len(source.tensors)} tensors of {project}", *source.notes, *described.notes, *said]
    torch.manual_seed(0)
    finish = finish_classifier if config.classifier else _finish_model
    model, ours, settings, kind, more = finish(config, described.trained, ours, source)
    _check_values(source, ours)
    ours, tables = fit_tables(
        ours,
        model.encoder.backbone,
        described.trained,
        img_size=described.img_size,
        window=described.window,
        where=str(config.source),
        cubic=config.tables == "cubic",
    )
    _check(config, source, ours, model.state_dict())
    classes = class_names(config, source, ours)
    return Imported(ours, settings, kind, described.trained, classes, notes + more + tables)


def check_suffix(out: Any) -> None:
    """Refuse a checkpoint's name that does not end in .safetensors."""
    if out.suffix != checkpoint.SAFETENSORS:
        raise UserError(f"--out {out} must end in {checkpoint.SAFETENSORS}")


def _describe(config: ImportConfig, source: Source) -> _Described:
    """The encoder with the settings that the file's configuration adds, and its geometry."""
    trained = PretrainConfig(**values_of(config, ENCODER))
    where, notes = str(config.source), []
    img_size: Size = None
    window: Size = None
    if source.timm is not None:
        trained, img_size, window, notes = read_timm(trained, source.timm, where)
    trained, encoder, heads = _with_heads(trained, source)
    if family_of(encoder) is None:
        raise UserError(f"--encoder {config.encoder} is none of timm's: there is nothing to import")
    if source.project == "transformers" and source.transformers is None:
        notes.append(
            "no config.json beside it: heads, activation and epsilon are the encoder's own"
        )
    elif source.transformers is not None:
        said = source.transformers
        trained, notes = complete(trained, read_settings(said, where), where)
        _check_fields(config, said, encoder, where)
        completed = encoder_of(trained)
        unlike = unlike_plain(completed, trained)
        if unlike:
            raise UserError(f"{config.encoder} has what transformers' models have not: {unlike}")
        check_windows(completed, family_of(completed))
        img_size, window = said.get("image_size"), _size(said.get("window_size"))
        trained = dataclasses.replace(trained, drop_path=float(said.get("drop_path_rate") or 0.0))
    elif source.microsoft is not None:
        decoder = any(name.startswith("decoder.") for name in source.tensors)
        wanted, img_size, window = read_microsoft(
            source.microsoft, family_of(encoder), where, pretraining=decoder
        )
        trained, notes = complete(trained, wanted, where)
    elif source.project == "mmpretrain":
        check_windows(encoder, family_of(encoder), source.project)
    elif source.ours is not None:
        img_size, window = _own_geometry(source.ours, where)
    notes = [*heads, *notes]
    return _Described(
        trained, config.source_img_size or _size(img_size), config.source_window or window, notes
    )


def _with_heads(trained: PretrainConfig, source: Source):
    """`trained` and its encoder, with the file's number of heads where the encoder's own does not divide
    its width, so that none can be built to compare; and a line that says so."""
    try:
        return trained, encoder_of(trained), []
    except UserError:
        heads = heads_of(source.transformers, source.microsoft)
        if heads is None or "num_heads" in trained.encoder_args:
            raise
    arguments = trained.encoder_args | {"num_heads": as_setting(heads)}
    trained = dataclasses.replace(trained, encoder_args=arguments)
    note = f"from its configuration: --encoder-args num_heads {as_setting(heads)}"
    return trained, encoder_of(trained), [note]


def _size(value: Any) -> Size:
    if isinstance(value, int):
        return value
    sides = tuple(value) if isinstance(value, list | tuple) else ()
    return sides if len(sides) == 2 and all(isinstance(s, int) for s in sides) else None


def _check_fields(
    config: ImportConfig, said: dict[str, Any], encoder: nn.Module, where: str
) -> None:
    """Refuse channels and strides of a transformers configuration that are not the encoder's."""
    channels, stride = said.get("num_channels", 3), said.get("encoder_stride", encoder.stride)
    if channels != config.channels:
        raise UserError(f"{where} has num_channels {channels}: add --channels {channels}")
    if stride != encoder.stride and not (config.encoder_only or config.classifier):
        raise UserError(
            f"{where} has encoder_stride {stride}, but {config.encoder} one of {encoder.stride}, so "
            "its head does not fit: add --encoder-only"
        )


def _own_geometry(settings: str, where: str) -> tuple[Size, Size]:
    """Image size and window of a checkpoint of this project."""
    try:
        values = json.loads(settings)
        window = {**(values.get("encoder_args") or {})}.get("window_size")
        return _size(values.get("img_size")), _size(window)
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"the settings in {where} cannot be used") from None


def _finish_model(config: ImportConfig, trained: PretrainConfig, ours: State, source: Source):
    """The model to fill, the tensors for it, its settings and kind, and what there is to tell."""
    model = build_model(trained)
    expected, notes = model.state_dict(), []
    if config.encoder_only or source.project == "timm":
        others = {k: v for k, v in expected.items() if not k.startswith(_BACKBONE)}
        kept = {k for k in ours if k.startswith(_BACKBONE)}
        surplus = kept - expected.keys()
        if not config.encoder_only:
            surplus = {k for k in surplus if k.startswith(tuple(HEADS))}
        dropped = [k.removeprefix(_BACKBONE) for k in ours if k not in kept or k in surplus]
        if dropped:
            notes.append(f"left out: {summary(dropped, 20)}")
        notes.append(f"newly initialised: {', '.join(others)}")
        ours = {k: v for k, v in ours.items() if k in kept - surplus} | others
    if trained.method == "mae":
        # fixed, and of no use to others: positions of another size, and an encoder's mask token
        ours |= {
            k: expected[k] for k in ("decoder_pos_embed",) if ours[k].shape != expected[k].shape
        }
        ours = {"encoder.mask_token": expected["encoder.mask_token"], **ours}
    _check_head(ours, model)
    ours = checkpoints.reorder_head(ours, config.channels, config.head_order, "cyx")
    return model, ours, trained.to_json(), "pretrain", notes


def _check_values(source: Source, ours: State) -> None:
    """Refuse weights that are no tensors, not in floating point, or not finite."""
    if source.unread:
        named = [f"{name} ({what})" for name, what in source.unread.items()]
        raise UserError(
            f"{source.path} holds weights that are no plain tensors: {checkpoint.some(named)}; save "
            "them as tensors, for example {k: torch.as_tensor(v) for k, v in weights.items()}"
        )
    for name, value in ours.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{source.path} holds {name} as {kind}, not in floating point: give the file of the "
                "model before it was quantised"
            )
        if not value.double().isfinite().all():
            raise UserError(
                f"{source.path} holds NaN or infinity in {name}: its training or a conversion to "
                "fewer bits went wrong, give an earlier file"
            )


def _check_head(ours: State, model: SimMIM) -> None:
    """The head's rows are moved before all else is compared, so they must be there."""
    wrong = {"head.weight", "head.bias"} - ours.keys()
    if wrong:
        raise UserError(
            f"missing {checkpoint.some(sorted(wrong))}: for the file of an encoder without SimMIM's "
            "head (a classifier, a bare backbone) add --encoder-only"
        )
    if len(ours["head.weight"]) != model.head.out_features:
        raise UserError(
            f"head.weight has {len(ours['head.weight'])} rows, but the encoder's stride and the "
            f"channels ask for {model.head.out_features}: check --encoder and --channels, or add "
            "--encoder-only"
        )


def _check(config: ImportConfig, source: Source, ours: State, expected: State) -> None:
    wrong = checkpoint.differences(ours, expected)
    if wrong and "norm.weight" not in source.tensors and "fc_norm.weight" in source.tensors:
        headless = "; it has no head, without which such a norm can't be imported"
        advice = ": --classifier keeps it and the head"
        raise UserError(
            f"{source.path} is no {config.encoder}: {wrong}. Its final norm is one of the mean over "
            f"the tokens (fc_norm){advice if 'head.weight' in source.tensors else headless}"
        )
    if wrong:
        raise UserError(
            f"{source.path} is no {config.encoder}: {wrong}. Check --encoder, --encoder-args and "
            "--img-size; --encoder-only leaves out what is no encoder's"
        )
