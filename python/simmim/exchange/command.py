"""``simmim import`` and ``simmim export``: checkpoints from and for other projects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simmim.config.exchange import ExportConfig, ImportConfig
from simmim.config.labels import FinetuneConfig
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError, printable
from simmim.exchange.importing import check_suffix, import_model
from simmim.exchange.mae import check_plain
from simmim.exchange.pixels import describe_pixels, describe_processor
from simmim.exchange.settings import family_of
from simmim.exchange.transformers import CLASSES, check_windows, describe
from simmim.models.build import build_model
from simmim.models.classifier import Classifier, encoder_settings, start
from simmim.storage import checkpoint
from simmim.storage.files import replacing, write_text
from simmim.storage.outputs import check_replaceable
from simmim_kernels.integrations import checkpoints

State = dict[str, Tensor]
#: what a folder of transformers' consists of
_IN_FOLDER = ("model.safetensors", "config.json", "preprocessor_config.json")
_PICKLES = (".pt", ".pth", ".bin")
#: under which key a project's pickles hold the tensors
_HELD = {"microsoft": "model", "mae": "model", "mmpretrain": "state_dict"}


def command(config: ImportConfig | ExportConfig) -> int:
    """Run the command; returns the exit status."""
    run = import_model if isinstance(config, ImportConfig) else export_model
    for line in run(config):
        print(line)
    print(f"wrote {config.out}")
    return 0


def export_model(config: ExportConfig) -> list[str]:
    """Write the file, or for transformers the folder, that ``config`` asks for.

    Raises:
        UserError: no checkpoint there, one with other tensors than its encoder has, or an encoder
            that the project does not have; nothing is written then.
    """
    names = _IN_FOLDER if config.project == "transformers" else ("",)
    known = (checkpoint.SAFETENSORS, *_PICKLES)
    if config.project not in ("simmim", "transformers") and config.out.suffix not in known:
        raise UserError(
            f"--out {config.out} must end in {', '.join(known)}: --project {config.project} writes a file, "
            "whose ending says its format"
        )
    for name in names:
        check_replaceable(config.out / name, config.overwrite, config.checkpoint)
    state = checkpoint.load(config.checkpoint, kind=None)
    if state["kind"] == "finetune":
        return _export_classifier(config, state)
    if state["kind"] != "pretrain":
        raise UserError(f"{config.checkpoint} was written by simmim {state['kind']}")
    trained = checkpoint.settings(config.checkpoint, state, PretrainConfig)
    if trained.target == "hog" and config.project not in ("simmim", "timm"):
        raise UserError(
            f"{config.checkpoint} predicts histograms (--target hog), and a head of "
            f"{config.project} pixels: --project timm writes the encoder alone"
        )
    with torch.device("meta"):
        model = build_model(trained)
    checkpoint.check_weights(config.checkpoint, state["model"], model.state_dict())
    if config.project in ("mae", "transformers") and trained.method == "mae":
        check_plain(model, trained, config.project)
    if config.project == "mmpretrain" and family_of(model.encoder) == "swin":
        check_windows(model.encoder, "swin", config.project)
    ours = checkpoints.reorder_head(state["model"], trained.channels, "cyx", config.head_order)
    # refused by the name of a setting, before a tensor that comes of it has no name
    described = describe(model, trained) if config.project == "transformers" else None
    try:
        theirs = checkpoints.from_simmim(ours, config.project)
    except ValueError as error:
        raise UserError(f"{config.checkpoint}: {error}") from None
    if config.project == "simmim":
        check_suffix(config.out)
        checkpoint.save_model(config.out, state["config"], theirs)
    elif config.project == "transformers":
        _write_folder(config.out, theirs, described, trained)
    else:
        _write(config.out, theirs, _HELD.get(config.project))
    # with one of ours its settings go along
    pixels = [] if config.project == "simmim" else [describe_pixels(trained)]
    return [f"{len(theirs)} tensors for {config.project}", *pixels]


def _export_classifier(config: ExportConfig, state: dict[str, Any]) -> list[str]:
    """Write a fine-tuned classifier, whose features are a mean, for timm, transformers or as one of
    ours."""
    if config.project not in ("simmim", "timm", "transformers"):
        raise UserError(
            f"{config.checkpoint} holds a fine-tuned classifier, which can be exported for the "
            f"projects simmim, timm and transformers, not for {config.project}"
        )
    trained = checkpoint.settings(config.checkpoint, state, FinetuneConfig)
    classes = len(state["model"].get("head.weight", ()))
    with torch.device("meta"):
        model = Classifier(start(trained, None), classes, fc_norm=trained.fc_norm)
    checkpoint.check_weights(config.checkpoint, state["model"], model.state_dict())
    names = state.get("classes") or []
    if config.project == "simmim":
        check_suffix(config.out)
        checkpoint.save_model(config.out, state["config"], state["model"], "finetune", names)
        return [f"{len(state['model'])} tensors of a classifier for simmim"]
    family = family_of(model.encoder)
    if family is None:
        raise UserError(f"{config.checkpoint}: the encoder is none of timm's")
    if trained.fc_norm and family not in ("vit", "beit"):
        raise UserError(
            f"{config.checkpoint} was fine-tuned with --fc-norm, which no {family} of others has: "
            "--project simmim keeps it"
        )
    if config.project == "transformers":
        if family not in ("swin", "swinv2"):
            raise UserError(
                f"{config.checkpoint} classifies by the mean over its tokens, transformers' {family} does "
                "not: export it for timm, whose models do"
            )
        settings = dataclasses.replace(encoder_settings(trained), drop_path=trained.drop_path)
        described = describe(model, settings)
        described["architectures"] = [CLASSES[family] + "ForImageClassification"]
        labels = names or [f"LABEL_{number}" for number in range(classes)]
        described["id2label"] = dict(enumerate(labels))
        described["label2id"] = {label: number for number, label in enumerate(labels)}
        encoder = {k: v for k, v in state["model"].items() if k.startswith("encoder.backbone.")}
        theirs = checkpoints.from_simmim(encoder, "transformers")
        theirs |= {f"classifier.{n}": state["model"][f"head.{n}"] for n in ("weight", "bias")}
        _write_folder(config.out, theirs, described, trained)
        return [f"{len(theirs)} tensors of a classifier for transformers", describe_pixels(trained)]
    head = "head.fc." if family.startswith("swin") else "head."
    theirs = checkpoints.from_simmim(state["model"], "timm")
    theirs |= {k: v for k, v in state["model"].items() if k.startswith("fc_norm.")}
    for name in ("weight", "bias"):
        theirs[head + name] = state["model"][f"head.{name}"]
    _write(config.out, theirs)
    norm = {"vit": "fc_norm", "beit": "use_fc_norm"}.get(family)
    how = f", {norm}={trained.fc_norm}" if norm else ""
    return [
        f"{len(theirs)} tensors of a classifier for timm: "
        f"create_model(..., num_classes={classes}, global_pool='avg'{how})",
        describe_pixels(trained),
        *([f"its outputs are, in this order: {', '.join(map(printable, names))}"] if names else []),
    ]


def _write_folder(
    out: Path, theirs: State, described: dict[str, Any], trained: PretrainConfig | FinetuneConfig
) -> None:
    weights, configuration, processor = (out / name for name in _IN_FOLDER)
    _write(weights, theirs)
    write_text(configuration, json.dumps(described, indent=2) + "\n")
    if trained.channels == 3 and trained.pixel_type == "uint8":
        write_text(processor, json.dumps(describe_processor(trained), indent=2) + "\n")


def _write(path: Path, state: State, held: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in state.items()}
    with replacing(path) as temporary:
        if path.suffix in _PICKLES:
            with temporary.open("wb") as file:
                torch.save({held: state} if held else state, file)
        else:
            checkpoint.write_tensors(temporary, state, {"format": "pt"})
