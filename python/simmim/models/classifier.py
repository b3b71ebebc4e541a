"""A classifier on an encoder, and the encoder that a command asks for, trained or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from simmim.config.images import BROUGHT, ENCODER, measured, values_of
from simmim.config.labels import FinetuneConfig, LabelledConfig
from simmim.config.numbers import flag
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.models.build import encoder_of, encoder_size
from simmim.models.encoders import ConvEncoder, TimmEncoder, eps_of_norms
from simmim.models.masking import nothing_hidden
from simmim.storage import checkpoint
from simmim_kernels.integrations.position_tables import resample, tables_of

Config = TypeVar("Config", bound=LabelledConfig)
Weights = dict[str, Tensor]

_DEFAULTS = PretrainConfig()


def completed(config: Config) -> tuple[Config, Weights | None]:
    """``config`` with its encoder described in full, and the weights to start from.

    Raises:
        UserError: no such checkpoint, one of another encoder than the one asked for, or neither a
            checkpoint nor an encoder.
    """
    config = measured(config)
    if config.checkpoint is None:
        if config.encoder is None:
            raise UserError(
                "say what to start from: --checkpoint FILE, or --encoder NAME for random weights"
            )
        missing = {n: getattr(_DEFAULTS, n) for n in ENCODER if getattr(config, n) is None}
        return dataclasses.replace(config, **missing), None
    try:
        trained, weights = trained_encoder(config.checkpoint)
    except UserError as error:
        has = getattr(config, "resume", False) and checkpoint.numbered(config.out / "checkpoints")
        resumed = "; a run that is resumed has its weights: leave out --checkpoint"
        raise UserError(f"{error}{resumed if has else ''}") from error
    if getattr(trained, "fc_norm", False) and not getattr(config, "fc_norm", True):
        raise UserError(
            f"{config.checkpoint} was fine-tuned with --fc-norm, its encoder has no final norm: give "
            "--fc-norm here too"
        )
    brought = values_of(trained, ENCODER)
    # the images may be larger or smaller than in pre-training, and arguments go on top
    brought["img_size"] = config.img_size or trained.img_size
    brought["encoder_args"] = {**trained.encoder_args, **config.encoder_args}
    for name in ("encoder", "channels"):
        wanted, value = getattr(config, name), brought[name]
        if wanted not in (None, value):
            raise UserError(
                f"{config.checkpoint} holds an encoder with {flag(name)} {value}, not {wanted}: "
                f"leave out {flag(name)}, or leave out --checkpoint to start from random weights"
            )
    for name in BROUGHT:
        # images of another kind are read as the command line says
        given = getattr(config, name)
        brought[name] = getattr(trained, name) if given == getattr(_DEFAULTS, name) else given
    for name in ("interpolation", "test_crop"):
        if getattr(config, name) is None:
            brought[name] = getattr(trained, name, None)
    config = dataclasses.replace(config, **brought)
    config.check_images(measured=True)
    try:
        return config, _fit_tables(weights, trained, encoder_settings(config))
    except UserError as error:
        preset = getattr(config, "preset", "none")
        own = f"; --preset {preset} is for checkpoints of pretrain --preset {preset}"
        raise UserError(f"{error}{'' if preset == 'none' else own}") from error


def encoder_settings(config: LabelledConfig | PretrainConfig) -> PretrainConfig:
    """The encoder of a completed ``config``."""
    return PretrainConfig(**values_of(config, (*ENCODER, *BROUGHT)))


def _fit_tables(
    weights: Weights, trained: PretrainConfig | FinetuneConfig, wanted: PretrainConfig
) -> Weights:
    """``weights`` for images or windows of another size: position tables are interpolated, relative ones
    as in SimMIM's code, and a relative table that all blocks share becomes one of each, if these are
    wanted."""
    if isinstance(trained, FinetuneConfig):
        trained = encoder_settings(trained)
    if encoder_size(trained) == wanted.size and trained.encoder_args == wanted.encoder_args:
        return weights
    with torch.device("meta"):
        encoders = encoder_of(trained), encoder_of(wanted)
    old, new = (tables_of(getattr(e, "backbone", e)) for e in encoders)
    shared = next((name for name in old if name.startswith("rel_pos_bias.")), None)
    fitted = {k: v for k, v in weights.items() if k.removeprefix("backbone.") not in old}
    for name, table in new.items():
        source = name if name in old else shared
        if source is not None:
            value = weights[f"backbone.{source}"]
            fitted[f"backbone.{name}"] = resample(value, old[source], table, cubic=True).clone()
    expected = encoders[1].state_dict()
    if "backbone.norm.weight" not in weights:
        # fine-tuned with fc_norm
        expected = {k: v for k, v in expected.items() if not k.startswith("backbone.norm.")}
    wrong = checkpoint.differences(fitted, expected)
    if wrong:
        raise UserError(
            f"the checkpoint's weights are not those of an encoder with {wanted.encoder_args}: {wrong}; "
            "of --encoder-args leave out what weights show"
        )
    return fitted


def trained_encoder(path: Path) -> tuple[PretrainConfig | FinetuneConfig, Weights]:
    """The settings of the run that wrote a checkpoint, of pre-training or fine-tuning, and its encoder's
    weights.

    Raises:
        UserError: no such checkpoint, or one that is damaged.
    """
    state = checkpoint.load(path, None)
    kind = FinetuneConfig if state["kind"] == "finetune" else PretrainConfig
    weights = {
        name.removeprefix("encoder."): value
        for name, value in state["model"].items()
        if name.startswith("encoder.")
    }
    return checkpoint.settings(path, state, kind), weights


def load_encoder(path: Path) -> tuple[TimmEncoder | ConvEncoder, PretrainConfig | FinetuneConfig]:
    """The encoder in a checkpoint, in evaluation mode, and the settings of the run that wrote it; raises
    ``UserError`` as ``trained_encoder``."""
    trained, weights = trained_encoder(path)
    weights = _fit_tables(weights, trained, encoder_settings(trained))
    return start(trained, weights, where=path).eval(), trained


def start(
    config: LabelledConfig | PretrainConfig,
    weights: Weights | None,
    drop_path: float = 0.0,
    where: Path | None = None,
) -> TimmEncoder | ConvEncoder:
    """The encoder of a completed ``config``, with ``weights`` or newly initialised.

    Args:
        where: the file that the weights come from; default ``config.checkpoint``.
    """
    encoder = encoder_of(dataclasses.replace(encoder_settings(config), drop_path=drop_path))
    if weights is not None:
        if hasattr(encoder, "backbone") and "backbone.norm.weight" not in weights:
            # fine-tuned with fc_norm
            encoder.backbone.norm = nn.Identity()
        checkpoint.check_weights(where or config.checkpoint, weights, encoder.state_dict())
        encoder.load_state_dict(weights)
    return encoder


class Classifier(nn.Module):
    """A linear map of the mean over an encoder's tokens to one number a class.

    Args:
        encoder: from ``simmim.models.encoders``; its mask token, which nothing uses here, is frozen.
        classes: how many there are.
        fc_norm: normalise the mean of the tokens by a new LayerNorm, in place of the encoder's final
            norm, which is taken away (BEiT's and SimMIM's fine-tuned ViTs).
        head_scale: multiplies the head's random weights, which have a deviation of 0.02.

    Raises:
        UserError: ``fc_norm`` for an encoder without a final norm.
    """

    def __init__(
        self,
        encoder: TimmEncoder | ConvEncoder,
        classes: int,
        *,
        fc_norm: bool = False,
        head_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc_norm: nn.Module = nn.Identity()
        if fc_norm:
            if not hasattr(encoder, "backbone"):
                raise UserError("--fc-norm needs an encoder with a final norm: leave it out")
            self.fc_norm = nn.LayerNorm(encoder.width, eps=eps_of_norms(encoder))
            encoder.backbone.norm = nn.Identity()
        self.head = nn.Linear(encoder.width, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)
        if hasattr(encoder, "mask_token"):
            encoder.mask_token.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(B, classes)`` of images ``(B, C, H, W)``."""
        tokens = self.encoder(images, nothing_hidden(images))
        return self.head(self.fc_norm(tokens.mean(1)))


def load_classifier(path: Path) -> tuple[Classifier, FinetuneConfig]:
    """The classifier in a checkpoint of ``simmim finetune`` or ``simmim import --classifier``, in
    evaluation mode, and its settings. ``names`` of the classifier are those of its classes, where they
    are not known their numbers.

    Raises:
        UserError: no such checkpoint, or one of another command.
    """
    state = checkpoint.load(path, "finetune")
    config = checkpoint.settings(path, state, FinetuneConfig)
    classes = len(state["model"].get("head.weight", ()))
    model = Classifier(start(config, None), classes, fc_norm=config.fc_norm)
    checkpoint.check_weights(path, state["model"], model.state_dict())
    model.load_state_dict(state["model"])
    model.names = state.get("classes") or [str(number) for number in range(classes)]
    return model.eval(), config


@torch.no_grad()
def block_features(
    encoder: TimmEncoder | ConvEncoder, images: Tensor, blocks: Sequence[int]
) -> list[Tensor]:
    """What each of ``blocks`` (from 0) gives for images ``(B, C, H, W)``.

    Returns:
        tensors ``(B, width)``: means over patch tokens, those of the last block after the encoder's
        final norm.
    """
    modules = encoder.blocks()
    found: dict[int, Tensor] = {}

    def keep(number: int):
        return lambda _module, _inputs, output: found.update({number: encoder.pooled(output)})

    hooks = [modules[n].register_forward_hook(keep(n)) for n in blocks]
    try:
        found[len(modules) - 1] = encoder(images, nothing_hidden(images)).mean(1)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[n] for n in blocks]
