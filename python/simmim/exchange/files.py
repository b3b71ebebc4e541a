"""Finding the model in a checkpoint file or folder of another project."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from simmim.errors import UserError, first_line, require
from simmim.exchange import inert_pickle
from simmim.exchange.inert_pickle import Inert, as_mapping
from simmim.storage import checkpoint
from simmim_kernels.integrations.checkpoints import split_prefix

State = dict[str, Tensor]
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
#: what wrappers of modules put into the names of parameters, anywhere
_WRAPPERS = (
    "_orig_mod.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)
_CONFIG = "config.json"
#: where training code keeps the model that it loads again, whatever copies lie beside it
_MAIN = ("state_dict", "model")


@dataclass
class Source:
    """A model found in a file.

    Attributes:
        path: the file or folder.
        project: whose names it has.
        tensors: by name, without the prefixes of wrappers.
        transformers: the contents of a transformers `config.json`, where there is one.
        timm: the contents of a `config.json` of timm's that names an architecture, where there is one.
        microsoft: the configuration in a file of microsoft's code, where there is one.
        mae: the command line in a file of facebookresearch/mae's code, where there is one.
        ours: the settings in a checkpoint of this project, as JSON, where it is one.
        notes: lines that say what was chosen and what was left.
        unread: objects among the tensors that are none, by name, with what they are.
    """

    path: Path
    project: str
    tensors: State
    transformers: dict[str, Any] | None = None
    timm: dict[str, Any] | None = None
    microsoft: dict[str, Any] | None = None
    mae: dict[str, Any] | None = None
    ours: str | None = None
    notes: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)


class _Model(NamedTuple):
    """Where in a file the tensors of a model lie: keys that lead to them, prefix of their names."""

    keys: tuple[str, ...]
    prefix: str
    project: str
    values: dict[str, Any]

    def label(self) -> str:
        return ".".join((*self.keys, *filter(None, [self.prefix.rstrip(".")])))

    def is_ema(self) -> bool:
        return "ema" in self.label().lower().replace("schema", "")


def read_source(path: Path, weights: str | None = None) -> Source:
    """The model in `path`: safetensors, a pickle, or a folder of transformers with or without shards.

    Args:
        weights: which of several models to take: the key under which it lies or its prefix.

    Raises:
        UserError: no such file, damaged, without a model that is known, or with several.
    """
    loaded, metadata = _load(path)
    models = list(_models(loaded, ()))
    if not models:
        raise UserError(f"{path}: {_why_no_model(loaded)}")
    model = _choose(path, models, weights)
    source = Source(path, model.project, {})
    others = [m.label() for m in models if m is not model]
    if others or model.is_ema():
        beside = f"; left: {', '.join(others)} (--weights takes another)" if others else ""
        source.notes.append(f"took the weights under {model.label() or 'no key'}{beside}")
    outside = []
    for name, value in model.values.items():
        if not name.startswith(model.prefix):
            outside += [name] if isinstance(value, Tensor) else []
        elif isinstance(value, Tensor):
            source.tensors[name.removeprefix(model.prefix)] = value
        elif isinstance(value, Inert):
            source.unread[name.removeprefix(model.prefix)] = value.name
    if outside:
        source.notes.append(f"left out, not under {model.prefix}: {summary(outside)}")
    beside = read_beside(path, _CONFIG) if model.project in ("transformers", "timm") else None
    source.transformers = beside if model.project == "transformers" else None
    if model.project == "timm" and isinstance((beside or {}).get("architecture"), str):
        source.timm = beside
    source.microsoft = _plain(as_mapping(_get(loaded, "config")))
    source.mae = _plain(as_mapping(_get(loaded, "args"))) if model.project == "mae" else None
    own = metadata.get("config", _get(loaded, "config"))
    source.ours = own if model.project == "simmim" and isinstance(own, str) else None
    return source


def summary(names: list[str], count: int = 6) -> str:
    """`names` by their first part, with the number of tensors of each."""
    groups: dict[str, int] = {}
    for name in names:
        first = name.partition(".")[0]
        groups[first] = groups.get(first, 0) + 1
    parts = [f"{name} ({n} tensors)" if n > 1 else name for name, n in groups.items()]
    return checkpoint.some(parts, count)


def _load(path: Path) -> tuple[Any, dict[str, str]]:
    """What the file or folder holds, and the metadata of a safetensors file."""
    files = _shards(path) if path.is_dir() else [path]
    loaded: Any = None
    metadata: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"no such file: {file}")
        try:
            if file.suffix == checkpoint.SAFETENSORS or _is_safetensors(file):
                with require("safetensors").safe_open(file, "pt") as opened:
                    metadata = opened.metadata() or {}
                    part = {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # PyTorch deprecates its own typed storages
                    part = inert_pickle.read(file)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{file} can't be read: {checkpoint.unreadable(error)}") from None
        loaded = part if loaded is None else {**loaded, **part}
    return loaded, metadata


def _is_safetensors(file: Path) -> bool:
    """Whether a file, whatever its name, has a header of JSON behind the eight bytes of its length."""
    with file.open("rb") as opened:
        return opened.read(9)[8:] == b"{"


def _shards(folder: Path) -> list[Path]:
    """The weight files of a folder that transformers' `save_pretrained` wrote."""
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / (name + _INDEX)
        if index.is_file():
            try:
                names = {*json.loads(index.read_text())["weight_map"].values()}
                if not all(isinstance(n, str) and n == Path(n).name for n in names):
                    raise ValueError("it names files outside of its folder")
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{index} is no index of shards: {first_line(error)}") from None
            return [folder / n for n in sorted(names)]
    if (folder / ".metadata").is_file():
        raise UserError(
            f"{folder} is of torch.distributed.checkpoint: make one file of it by python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE"
        )
    known = [n + end for n in _IN_FOLDERS for end in ("", _INDEX)]
    raise UserError(f"{folder} holds none of {', '.join(known)}: give the file itself")


def _models(value: Any, keys: tuple[str, ...]) -> Iterator[_Model]:
    """All models in what a file holds, up to four keys deep, those of pickled modules included."""
    contents = as_mapping(value)
    if contents is None or len(keys) > 4:
        return
    if isinstance(contents.get("_modules"), dict):
        contents = _module_tensors(contents)
    named = {_without_wrappers(n): v for n, v in contents.items() if isinstance(n, str)}
    found = False
    for name, tensor in named.items():
        split = split_prefix(name, named) if isinstance(tensor, Tensor) else None
        if split is not None:
            found = True
            yield _Model(keys, split[0], split[1], named)
    if not found:
        for name, inner in contents.items():
            if isinstance(name, str):
                yield from _models(inner, (*keys, name))


def _module_tensors(contents: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The parameters and buffers of a pickled `nn.Module` by their names in its `state_dict`."""
    left = contents.get("_non_persistent_buffers_set") or ()
    found = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in (as_mapping(contents.get(kind)) or {}).items():
            if value is not None and name not in left:
                found[f"{prefix}{name}"] = value
    for name, module in (as_mapping(contents.get("_modules")) or {}).items():
        found |= _module_tensors(as_mapping(module) or {}, f"{prefix}{name}.")
    return found


def _without_wrappers(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _choose(path: Path, models: list[_Model], weights: str | None) -> _Model:
    labels = ", ".join(sorted({m.label() or "(no key)" for m in models}))
    if weights is not None:
        wanted = weights.rstrip(".")
        models = [
            m for m in models if wanted in (m.label(), m.prefix.rstrip("."), ".".join(m.keys))
        ]
        if not models:
            raise UserError(f"{path} has no model under {weights}: it has {labels}")
    if len(models) > 1:
        models = [m for m in models if not m.is_ema()] or models
    main = [m for m in models if m.keys[:1] and m.keys[0] in _MAIN]
    models = main if len(main) == 1 else models
    if len(models) > 1:
        raise UserError(f"{path} holds several models, {labels}: say which by --weights")
    return models[0]


def _why_no_model(loaded: Any) -> str:
    contents = as_mapping(loaded)
    if (isinstance(loaded, Inert) and not contents) or contents is None:
        kind = loaded.name if isinstance(loaded, Inert) else type(loaded).__name__
        return f"it holds a {kind}, no dictionary of tensors: save the model's state_dict()"
    names = [n for n in contents if isinstance(n, str)]
    some = checkpoint.some(names) or "nothing"
    inert = next((v.name for v in contents.values() if isinstance(v, Inert)), None)
    beside = f"; {inert} was not run" if inert else ""
    return (
        f"no patch embedding of a ViT, BEiT, Swin or SwinV2 in it, but {some}{beside}: give a file "
        "that holds the state_dict() of such a model as plain tensors"
    )


def read_beside(path: Path, name: str) -> dict[str, Any] | None:
    """What a file of JSON beside a model says; ``None`` where there is none."""
    described = (path if path.is_dir() else path.parent) / name
    if not described.is_file():
        return None
    try:
        config = json.loads(described.read_text())
    except ValueError as error:
        raise UserError(f"{described} is no configuration: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise UserError(f"{described} is no configuration: it holds a {type(config).__name__}")
    return config


def _get(loaded: Any, key: str) -> Any:
    return (as_mapping(loaded) or {}).get(key)


def _plain(value: Any) -> Any:
    """Nested dictionaries in place of inert objects that hold some."""
    contents = as_mapping(value)
    if contents is None:
        return value
    return {k: _plain(v) for k, v in contents.items() if not str(k).startswith("__")}
