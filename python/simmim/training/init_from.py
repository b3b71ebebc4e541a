"""``--init-from``: weights of any file that ``simmim import`` reads, to begin a run with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from simmim.config.exchange import ImportConfig
from simmim.config.images import ENCODER, values_of
from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.config.run import Config
from simmim.errors import UserError
from simmim.exchange.importing import Imported, read_model
from simmim.models.build import build_model
from simmim.models.classifier import encoder_settings
from simmim.models.encoders import CNN
from simmim.storage import checkpoint

_ENCODER = "encoder.backbone."
_CONVOLUTIONS = "encoder.convolutions."


def read_initial(config: Config) -> tuple[Config, dict[str, Tensor], tuple[str, ...]]:
    """The weights in ``config.init_from``.

    Returns:
        ``config`` with the arguments of the encoder that the file says and no tensor shows; the tensors
        by our names, for fine-tuning and where the file has no head that fits those of the encoder
        alone; and a line of what was loaded and what not. Without ``init_from``: ``config``, none, none.

    Raises:
        UserError: a file that cannot be read, or whose encoder is another one.
    """
    if config.init_from is None:
        return config, {}, ()
    try:
        if config.encoder == CNN:
            tensors, notes = _read_cnn(config.init_from, config)
            arguments = config.encoder_args
        else:
            found = _read_imported(config.init_from, config)
            tensors, notes, arguments = found.tensors, found.notes, found.trained.encoder_args
    except UserError as error:
        text = f"--init-from: {error}"
        if "--" in str(error):
            text += (
                " (options of simmim import: what it writes, pretrain --init-from and finetune "
                "--checkpoint take)"
            )
        if config.resume:
            text += "; a run that is resumed has its weights: leave out --init-from"
        raise UserError(text) from error
    loaded = f"loaded {len(tensors)} tensors from {config.init_from}"
    return (
        dataclasses.replace(config, encoder_args=arguments),
        tensors,
        ("; ".join([loaded, *notes]),),
    )


def _read_cnn(path: Path, config: Config) -> tuple[dict[str, Tensor], list[str]]:
    """The convolutions of the encoder that no other project has, and for pre-training a head that fits."""
    try:
        state = checkpoint.load(path, None)
    except UserError as error:
        raise UserError(f"{error}; {CNN} is none of timm's encoders") from error
    pretrains = isinstance(config, PretrainConfig)
    with torch.device("meta"):
        wanted = build_model(config if pretrains else encoder_settings(config)).state_dict()

    def part(of: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {name: value for name, value in of.items() if name.startswith(prefix)}

    kept = part(state["model"], _CONVOLUTIONS)
    wrong = checkpoint.differences(kept, part(wanted, _CONVOLUTIONS))
    if wrong:
        raise UserError(f"{path} holds no {CNN} like this one: {wrong}")
    if not pretrains:
        return kept, []
    # a classifier's head may have the same shape
    head = part(state["model"], "head.") if state["kind"] == "pretrain" else {}
    fits = not checkpoint.differences(head, part(wanted, "head."))
    return (kept | head, []) if fits else (kept, ["newly initialised: head"])


def _read_imported(path: Path, config: PretrainConfig | FinetuneConfig) -> Imported:
    """What ``simmim import`` makes of the file."""
    source = ImportConfig(
        source=path,
        tables="cubic" if isinstance(config, FinetuneConfig) else "linear",
        **values_of(config, ENCODER),
    )
    if isinstance(config, PretrainConfig):
        source = dataclasses.replace(source, decoder_heads=config.decoder_heads)
    return _read(source, config)


def _read(source: ImportConfig, config: PretrainConfig | FinetuneConfig) -> Imported:
    """The whole model where it fits, else the encoder, else that of a classifier without its norm."""
    ways = [{}, {"encoder_only": True}, {"classifier": True}]
    ways = ways[isinstance(config, FinetuneConfig) :]
    errors = []
    for way in ways:
        try:
            found = read_model(dataclasses.replace(source, **way))
        except UserError as error:
            errors.append(error)
            continue
        if not way and not _fits(found, config):
            continue
        if way or any(note.startswith("newly initialised") for note in found.notes):
            # what is new comes from the run's own seed
            kept = {k: v for k, v in found.tensors.items() if k.startswith(_ENCODER)}
            notes = [
                "left out: its head and fc_norm",
                "newly initialised: final norm, mask token, head",
            ]
            found = found._replace(
                tensors=kept, notes=found.notes + (notes if "classifier" in way else [])
            )
        return found
    # of the encoder alone: what keeps it from being read, without what a head would need
    raise errors[-2]


def _fits(found: Imported, config: PretrainConfig) -> bool:
    """Whether a model's head, or decoder, is one of the run."""
    run = dataclasses.replace(config, encoder_args=found.trained.encoder_args)
    with torch.device("meta"):
        return not checkpoint.differences(found.tensors, build_model(run).state_dict())
