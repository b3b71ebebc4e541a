"""Checks of a checkpoint's training state, all of them before anything of a run is changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simmim.config.field_types import wrong_fields
from simmim.errors import UserError
from simmim.storage.checkpoint import DamagedError, check_weights, is_plain_tensor, some, step_of

#: what AdamW keeps of each parameter, beside the number of its steps
_MOMENTS = {"exp_avg", "exp_avg_sq"}
#: what a parameter group must bring; the rest of its keys depends on PyTorch's version
_SETTINGS = {"lr", "betas", "eps", "weight_decay", "lr_scale"}


def check_training_state(
    path: Path,
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters_type: type,
) -> None:
    """Check all that the checkpoint ``path`` brings against what a run has that resumes from it.

    Raises:
        DamagedError: a tensor of another shape or type, a missing part, a value of another kind.
    """
    try:
        check_weights(path, state["model"], model.state_dict())
    except UserError as error:
        raise DamagedError(str(error)) from error
    problems = [
        *_wrong_types(state["model"], model.state_dict()),
        *_wrong_numbers(path, state),
        *_wrong_optimizer(state["optimizer"], optimizer),
        *_wrong_counters(state["counters"], counters_type),
        *_wrong_scaler(state.get("scaler", {})),
    ]
    if problems:
        raise DamagedError(f"{path} is damaged: {some(problems)}")


def _wrong_types(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {value.dtype}, not {own[name].dtype}"
        for name, value in found.items()
        if value.dtype != own[name].dtype
    ]


def _wrong_numbers(path: Path, state: Mapping[str, Any]) -> list[str]:
    wrong = []
    if state["update"] < 0 or step_of(path) not in (None, state["update"]):
        wrong.append(f"it holds update {state['update']}, not that of its name")
    if state["global_batch"] < 1:
        wrong.append(f"{state['global_batch']} images an update")
    wrong += [
        f"{name} is {state[name]}"
        for name in ("loss_sum", "norm_sum")
        if not math.isfinite(state[name])
    ]
    return wrong


def _wrong_optimizer(found: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> list[str]:
    groups, moments = found.get("param_groups"), found.get("state")
    if not isinstance(groups, list) or not isinstance(moments, dict):
        return ["the optimizer's state has no param_groups or no state"]
    own = optimizer.state_dict()["param_groups"]
    if len(groups) != len(own):
        return [f"the optimizer's state has {len(groups)} groups, not {len(own)}"]
    wrong = []
    for number, (group, mine) in enumerate(zip(groups, own, strict=True)):
        wrong += _wrong_group(number, group, mine)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entry in moments.items():
        if not isinstance(index, int) or not 0 <= index < len(parameters):
            wrong.append(f"the optimizer's state has a parameter {index!r}")
        else:
            wrong += _wrong_moments(index, entry, parameters[index])
    return wrong


def _wrong_group(number: int, group: Any, own: Mapping[str, Any]) -> list[str]:
    where = f"the optimizer's group {number}"
    if not isinstance(group, dict) or group.get("params") != own["params"]:
        return [f"{where} has other parameters"]
    lacking = (_SETTINGS & own.keys()) - group.keys()
    if lacking:
        return [f"{where} lacks {some(sorted(lacking))}"]
    return [
        f"{name} of {where} is {group[name]!r}"
        for name, value in own.items()
        if name in group and not _is_like(group[name], value)
    ]


def _is_like(value: Any, own: Any) -> bool:
    """Whether a setting of the optimiser can stand where ``own`` stands."""
    if isinstance(own, bool) or own is None:
        return value is None or isinstance(value, bool)
    if isinstance(own, int | float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if isinstance(own, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(own)
        return same and all(map(_is_like, value, own))
    return isinstance(value, type(own))


def _wrong_moments(index: int, entry: Any, parameter: Tensor) -> list[str]:
    where = f"of the optimizer's parameter {index}"
    if not isinstance(entry, dict) or entry.keys() != _MOMENTS | {"step"}:
        return [f"the state {where} is not that of AdamW"]
    wrong = []
    for name in sorted(_MOMENTS):
        value = entry[name]
        if not is_plain_tensor(value):
            wrong.append(f"{name} {where} is no dense tensor")
        elif value.shape != parameter.shape or value.dtype != parameter.dtype:
            wrong.append(
                f"{name} {where} is {value.dtype} {tuple(value.shape)} for "
                f"{parameter.dtype} {tuple(parameter.shape)}"
            )
    step = entry["step"]
    if not is_plain_tensor(step) or step.numel() != 1 or not 0 <= step.item() < math.inf:
        wrong.append(f"step {where} is no number of updates")
    return wrong


def _wrong_scaler(found: Any) -> list[str]:
    """A ``GradScaler``'s state, empty where the loss is not scaled."""
    names = torch.amp.GradScaler("cpu").state_dict().keys()
    if not isinstance(found, dict) or (found and found.keys() != names):
        return ["the state of the loss scale is not that of a GradScaler"]
    return [
        f"{name} of the loss scale is {value!r}"
        for name, value in found.items()
        if not _is_like(value, 1.0) or value < 0 or (value == 0 and name != "_growth_tracker")
    ]


def _wrong_counters(found: Mapping[str, Any], counters_type: type) -> list[str]:
    names = {field.name for field in dataclasses.fields(counters_type)}
    surplus = found.keys() - names
    if surplus:
        return [f"there is no counter {some(sorted(map(str, surplus)))}"]
    return [f"counter {problem}" for problem in wrong_fields(counters_type(**found))]
