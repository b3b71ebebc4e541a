"""``simmim import`` and ``simmim export``: checkpoints from and for other projects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simmim import checkpoint
from simmim.build import build_model
from simmim.config import PretrainConfig
from simmim.errors import UserError, first_line, require
from simmim.exchange_config import ExportConfig, ImportConfig
from simmim.files import write_text
from simmim.model import SimMIM
from simmim.outputs import check_replaceable
from simmim_kernels.integrations import checkpoints

State = dict[str, Tensor]
_PICKLES = (".pt", ".pth", ".bin")
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
#: what a folder of transformers' consists of
_IN_FOLDER = ("model.safetensors", "config.json")
#: under which key a project's pickles hold the tensors
_HELD = {"microsoft": "model", "mmpretrain": "state_dict"}
#: what classifiers have beyond the encoder
_CLASSIFIER = ("head.", "fc.", "fc_norm.", "classifier.", "encoder.backbone.head.")


def command(config: ImportConfig | ExportConfig) -> int:
    """Run the command; returns the exit status."""
    run = import_model if isinstance(config, ImportConfig) else export_model
    for line in run(config):
        print(line)
    print(f"wrote {config.out}")
    return 0


def import_model(config: ImportConfig) -> list[str]:
    """Write the checkpoint that ``config`` asks for; returns what there is to tell.

    Raises:
        UserError: a file that can't be read, of an unknown project, or whose tensors are not those
            of the encoder; nothing is written then.
    """
    _check_suffix(config.out)
    check_replaceable(config.out, config.overwrite, config.source)
    theirs = read_tensors(config.source)
    trained = PretrainConfig(
        encoder=config.encoder,
        encoder_args=config.encoder_args,
        img_size=config.img_size,
        channels=config.channels,
    )
    torch.manual_seed(0)
    model = build_model(trained)
    expected = model.state_dict()
    try:
        project = config.project
        project = checkpoints.project_of(theirs) if project == "auto" else project
        ours = checkpoints.to_simmim(theirs, project)
    except ValueError as error:
        raise UserError(f"{config.source}: {error}") from None
    told = [f"{len(theirs)} tensors of {project}"]
    if config.encoder_only or project == "timm":
        others = {k: v for k, v in expected.items() if not k.startswith("encoder.backbone.")}
        told.append(f"newly initialised: {', '.join(others)}")
        ours = {k: v for k, v in ours.items() if not k.startswith(_CLASSIFIER)} | others
    _check_head(ours, model)
    ours = checkpoints.reorder_head(ours, config.channels, config.head_order, "cyx")
    resized = checkpoints.resize_like(ours, {k: v.shape for k, v in expected.items()})
    count = sum(resized[k].shape != v.shape for k, v in ours.items())
    told += [f"interpolated {count} position tables"] if count else []
    _check(config, resized, expected)
    told += _other_eps(config.source, model)
    checkpoint.save_model(config.out, trained.to_json(), resized)
    return told


def export_model(config: ExportConfig) -> list[str]:
    """Write the file, or for transformers the folder, that ``config`` asks for.

    Raises:
        UserError: no checkpoint there, one with other tensors than its encoder has, or an encoder
            that the project does not have; nothing is written then.
    """
    names = _IN_FOLDER if config.project == "transformers" else ("",)
    for name in names:
        check_replaceable(config.out / name, config.overwrite, config.checkpoint)
    state = checkpoint.load(config.checkpoint)
    trained = checkpoint.settings(config.checkpoint, state, PretrainConfig)
    with torch.device("meta"):
        model = build_model(trained)
    checkpoint.check_weights(config.checkpoint, state["model"], model.state_dict())
    ours = checkpoints.reorder_head(state["model"], trained.channels, "cyx", config.head_order)
    try:
        theirs = checkpoints.from_simmim(ours, config.project)
    except ValueError as error:
        raise UserError(f"{config.checkpoint}: {error}") from None
    if config.project == "simmim":
        _check_suffix(config.out)
        checkpoint.save_model(config.out, state["config"], theirs)
    elif config.project == "transformers":
        described = _describe(model, trained)
        config.out.mkdir(parents=True, exist_ok=True)
        weights, configuration = (config.out / name for name in _IN_FOLDER)
        _write(weights, theirs)
        write_text(configuration, json.dumps(described, indent=2) + "\n")
    else:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        _write(config.out, theirs, _HELD.get(config.project))
    return [f"{len(theirs)} tensors for {config.project}"]


def read_tensors(path: Path) -> State:
    """The tensors of a safetensors file or of a pickle, on the CPU, without running its code.

    Raises:
        UserError: no such file, one that holds no tensors, or that needs its code to be run.
    """
    if path.is_dir():
        found = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds neither of {', '.join(_IN_FOLDERS)}")
        path = found[0]
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        if path.suffix == checkpoint.SAFETENSORS:
            return require("safetensors.torch").load_file(path)
        # microsoft's files hold the configuration of their run, a dictionary of this class
        inert = (dict, "yacs.config.CfgNode")
        with torch.serialization.safe_globals([inert]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} can't be read: {checkpoint.unreadable(error)}") from None
    for key in ("model", "state_dict", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"{path} holds no dictionary of tensors")
    return dict(loaded)


def _other_eps(source: Path, model: SimMIM) -> list[str]:
    """A word where a folder's configuration has another epsilon of its norms, which no weight shows:
    transformers' ViT has 1e-12 by default, timm's 1e-6."""
    described = source / "config.json"
    if not described.is_file():
        return []
    try:
        theirs = {**json.loads(described.read_text())}.get("layer_norm_eps")
    except (ValueError, TypeError) as error:
        raise UserError(f"{described} is no configuration: {first_line(error)}") from None
    ours = model.encoder.backbone.norm.eps
    if theirs in (None, ours):
        return []
    return [f"its norms have an epsilon of {theirs:g}, ours of {ours:g}: outputs differ by as much"]


def _check_suffix(out: Path) -> None:
    if out.suffix != checkpoint.SAFETENSORS:
        raise UserError(f"--out {out} must end in {checkpoint.SAFETENSORS}")


def _check_head(ours: State, model: SimMIM) -> None:
    """The head's rows are moved before all else is compared, so they must be there."""
    wrong = {"head.weight", "head.bias"} - ours.keys()
    if wrong:
        raise UserError(
            f"missing {checkpoint.some(sorted(wrong))}: for the file of an encoder without SimMIM's head add "
            "--encoder-only"
        )
    if len(ours["head.weight"]) != model.head.out_features:
        raise UserError(
            f"head.weight has {len(ours['head.weight'])} rows, but the encoder's stride and the "
            f"channels ask for {model.head.out_features}: check --encoder and --channels"
        )


def _check(config: ImportConfig, ours: State, expected: State) -> None:
    wrong = checkpoint.differences(ours, expected)
    if wrong:
        raise UserError(
            f"{config.source} is no {config.encoder}: {wrong}. Check --encoder, "
            "--encoder-args and --img-size"
        )


def _write(path: Path, state: State, held: str | None = None) -> None:
    state = {name: value.contiguous() for name, value in state.items()}
    with checkpoint.replacing(path) as temporary:
        if path.suffix in _PICKLES:
            with temporary.open("wb") as file:
                torch.save({held: state} if held else state, file)
        else:
            require("safetensors.torch").save_file(state, temporary, {"format": "pt"})


def _describe(model: SimMIM, trained: PretrainConfig) -> dict[str, Any]:
    """transformers' configuration of the same model."""
    encoder, backbone = model.encoder, model.encoder.backbone
    height, width = trained.size
    if height != width:
        raise UserError(f"transformers takes square images alone, not {height}x{width}")
    family = checkpoints.family_of_names(model.state_dict())
    described = {
        "model_type": family,
        "architectures": [
            {"vit": "ViT", "swin": "Swin", "swinv2": "Swinv2"}[family] + "ForMaskedImageModeling"
        ],
        "image_size": height,
        "patch_size": encoder.patch,
        "num_channels": trained.channels,
        "encoder_stride": encoder.stride,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": backbone.norm.eps,
    }
    if family == "vit":
        block = backbone.blocks[0]
        return described | {
            "hidden_size": encoder.width,
            "num_hidden_layers": len(backbone.blocks),
            "num_attention_heads": block.attn.num_heads,
            "intermediate_size": block.mlp.fc1.out_features,
            "qkv_bias": block.attn.qkv.bias is not None,
        }
    first = [stage.blocks[0] for stage in backbone.layers]
    return described | {
        "embed_dim": backbone.patch_embed.proj.out_channels,
        "depths": [len(stage.blocks) for stage in backbone.layers],
        "num_heads": [block.attn.num_heads for block in first],
        "window_size": max(max(block.window_size) for block in first),
        "mlp_ratio": first[0].mlp.fc1.out_features / first[0].mlp.fc1.in_features,
        "drop_path_rate": trained.drop_path,
    }
