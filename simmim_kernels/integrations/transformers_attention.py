"""The faster of PyTorch's two attention paths for transformers' models, chosen call by call."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from simmim_kernels.attention import attention, is_fused_faster
from simmim_kernels.integrations.report import Report

NAME = "simmim_kernels"


def choose_attention(report: Report, model: nn.Module) -> None:
    """Let the model's `scaled_dot_product_attention` be products where those are faster.

    transformers finds an attention function by its name in the configuration; ours is registered
    there as any other, and named by this model's configurations alone.
    """
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    used = [config for config in configs if config._attn_implementation == "sdpa"]
    if not _has_registry(model):
        report.left["attention"] = "its layers have a path of their own"
    elif not used:
        report.left["attention"] = "its configuration asks for another path than sdpa"
    else:
        register()
        for config in used:
            report._set_attribute(config, "_attn_implementation", NAME)
        report.replaced["attention"] = (
            "plain products in training on CPUs, in 16-bit types or with a learned bias; else sdpa"
        )


def _has_registry(model: nn.Module) -> bool:
    theirs = getattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS", None)
    return hasattr(type(theirs), "register")


def register() -> None:
    """Make `NAME` known to transformers; an unpickled model needs it, too."""
    from transformers import modeling_utils

    functions = getattr(modeling_utils, "ALL_ATTENTION_FUNCTIONS", None)
    if not hasattr(type(functions), "register") or NAME in functions:
        return
    type(functions).register(NAME, attention_forward)
    if find_spec("transformers.masking_utils"):  # since version 4.53
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks

        type(masks).register(NAME, masks["sdpa"])


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the layer.
        query, key, value: `(B, heads, N, d)`.
        attention_mask: bool, or a bias that is added to the scores, `(B or 1, heads or 1, N, N)`.
        dropout: of the attention's weights.
        scaling: factor of the scores; default `1 / sqrt(d)`.

    Returns:
        `(B, N, heads, d)`, and None for the weights, which no caller gets from this path.
    """
    plain = attention_mask is None or attention_mask.is_floating_point()
    covered = plain and not dropout and not options.get("is_causal")
    covered = covered and module.training and query.requires_grad
    biased = attention_mask is not None
    if not covered or is_fused_faster(query.device.type, query.dtype, biased):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

        given = {"dropout": dropout, "scaling": scaling, **options}
        return functions["sdpa"](module, query, key, value, attention_mask, **given)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attention(query, key, value, bias=attention_mask, scale=scale, fused=False)
    return out.transpose(1, 2).contiguous(), None
