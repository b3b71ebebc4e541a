"""AdamW's parameter groups, and the learning rate of every update."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

#: Exempt whether or not a model lists them: timm's ViT forgot its register tokens up to 1.0.27.
ALWAYS_EXEMPT = ("relative_position_bias_table", "reg_token")


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, also_decay: Sequence[str] = ()
) -> list[dict]:
    """Groups for AdamW: decayed and exempt, each with the learning rate of its depth.

    Exempt are vectors and scalars (biases, norms, layer scale), and whatever a submodule lists in
    its ``no_weight_decay()``: position embeddings, relative-position tables, class, register and
    mask tokens.

    Args:
        model: has an ``encoder`` with ``depths()``; what else it has counts as one layer deeper.
        also_decay: ends of names of parameters that decay although they are listed so.
        layer_decay: ``lr_scale`` of a group is this to the power of its distance from the deepest
            layer (layer-wise decay, BEiT, Bao et al., 2022).
    """
    exempt = set()
    for prefix, module in model.named_modules():
        if hasattr(module, "no_weight_decay"):
            exempt |= {f"{prefix}.{name}" if prefix else name for name in module.no_weight_decay()}
    depths = {}
    if layer_decay != 1.0:
        depths = {f"encoder.{name}": depth for name, depth in model.encoder.depths().items()}
    deepest = max(depths.values(), default=-1) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = name in exempt or name.endswith(ALWAYS_EXEMPT)
        spared = parameter.ndim <= 1 or (spared and not name.endswith(tuple(also_decay)))
        groups.setdefault((depths.get(name, deepest), spared), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if spared else weight_decay,
            "lr_scale": layer_decay ** (deepest - depth),
        }
        for (depth, spared), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def adamw(groups: list[dict], betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW; the learning rate is set before each update."""
    # one pass over the parameters instead of a dozen: 28 bytes a parameter where foreach moves 84
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, fused=True)


def learning_rate(
    update: float,
    *,
    updates: int,
    warmup: int,
    peak: float,
    start: float,
    end: float,
    schedule: str,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """Learning rate of one update, a pure function of its number.

    Args:
        update: number of the update, from 0; a fraction lies between two.
        updates: updates of the whole run.
        warmup: updates of the linear warm-up from ``start`` to ``peak``.
        peak, start, end: learning rates, already scaled by the batch.
        schedule: ``"cosine"``: half a cosine from ``peak`` after the warm-up to ``end`` after the
            last update; ``"cosine-from-start"``: the same from the first update on, of which the
            warm-up takes the place of the first part (SimMIM's code); ``"multistep"``: ``peak``,
            multiplied by ``gamma`` at each of the ``milestones``; ``"step"``: the same at 7/8 of the
            run, to a tenth (epoch 700 of 800 in the SimMIM recipe).
        milestones: updates, in any order.
    """
    if update < warmup:
        return start + (peak - start) * update / warmup
    if schedule == "step":
        milestones, gamma = (updates * 7 / 8,), 0.1
    if schedule in ("step", "multistep"):
        return peak * gamma ** sum(update >= milestone for milestone in milestones)
    first = 0 if schedule == "cosine-from-start" else warmup
    done = (update - first) / max(1, updates - first)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * done))
