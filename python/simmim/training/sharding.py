"""A model spread over processes (FSDP), and its state as plain tensors for checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Spread ``model``'s parameters over the processes of ``mesh``, block by block.

    A block is gathered before it runs and let go after it. The last one stays with the rest of the
    model, gathered throughout: with a mask it runs by its parts, and its own ``forward`` never does.
    """
    mesh = mesh["data_parallel"]
    for block in model.encoder.blocks()[:-1]:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gathered(state: Any) -> Any:
    """``state`` with every spread tensor as a whole one; all processes must call this."""
    return tree_map(lambda v: v.full_tensor() if isinstance(v, DTensor) else v, state)


def load_model(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """``model.load_state_dict`` of whole tensors, spread as the model is."""
    own = model.state_dict()
    model.load_state_dict({name: _as(own.get(name), value) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict`` of whole tensors, spread as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: _as(parameters[index], value) if value.shape == parameters[index].shape else value
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _as(model: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
    if not isinstance(model, DTensor):
        return value
    value = value.to(model.device)
    return distribute_tensor(value, model.device_mesh, model.placements)
