"""The last block of timm's encoders on the masked tokens alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from simmim_kernels._numbers import to_int
from simmim_kernels.attention import attention
from simmim_kernels.grid import token_grid
from simmim_kernels.integrations.instance import has_hooks, is_changed
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops._check import FLOATS, is_tensor
from simmim_kernels.ops.place_tokens import take_masked_tokens

_NORMS = ("LayerNorm", "LayerNormFp32", "RMSNorm", "RmsNorm", "RmsNormFp32", "Identity")
_MLPS = ("Mlp", "GluMlp", "SwiGLU")
_BRANCH = ("DropPath", "LayerScale", "Identity")


class MaskedLastBlock:
    """A transformer encoder's last block that computes the masked tokens only.

    The loss of masked image modelling reads masked tokens alone, so in the last block only these
    need a query, the attention's projection, the MLP and the norms behind them; keys and values
    come from all tokens. Loss and every gradient are those of the plain block, to rounding; with
    stochastic depth too, for which the same random numbers are drawn.

        last = MaskedLastBlock(encoder.blocks[-1], prefix_tokens=1)
        x = encoder.blocks[:-1](x)
        masked = encoder.norm(last(x, mask))  # (B, K, D): a norm of tokens needs no others either

    It is no module: it owns no parameter, and the block stays where it is in its encoder, unchanged.
    Attention takes the path that the block's `attn.fused_attn` says.

    Args:
        block: the last `Block` of a timm ViT (DeiT) or BEiT, or the last `SwinTransformerBlock` or
            `SwinTransformerV2Block` where one window covers the map.
        prefix_tokens: class and register tokens in front of the patch tokens.

    Raises:
        TypeError: a block that can't run so, with its name and the reason (see `why_not`).
    """

    def __init__(self, block: nn.Module, *, prefix_tokens: int = 0) -> None:
        reason = self.why_not(block)
        if reason is not None:
            raise TypeError(
                f"{type(block).__qualname__} can't run on masked tokens alone: {reason}"
            )
        self.prefix_tokens = to_int("prefix_tokens", prefix_tokens)
        if self.prefix_tokens < 0:
            raise ValueError(f"prefix_tokens is {prefix_tokens}; allowed: 0 or more")
        self.block = block
        self._run = _family(block)[1]

    def __call__(
        self,
        x: Tensor,
        mask: PatchMask,
        *,
        shared_rel_pos_bias: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """The block's output at the masked tokens.

        Args:
            x: the block's input, `(B, prefix_tokens + h*w, D)`, for Swin `(B, h, w, D)`.
            mask: `PatchMask` on a grid that divides the token grid.
            shared_rel_pos_bias: BEiT's `(heads, N, N)` bias that all blocks share.
            grid: the token grid `(h, w)` of `(B, N, D)`; needed only where it is not the mask's grid
                made finer by the same number in both directions. Swin's `x` has its own.

        Returns:
            `(B, K, D)`, the masked tokens in ascending order of their positions.

        Raises:
            TypeError: a plain bool mask, whose samples may differ in the number of masked tokens.
            ValueError: shapes that don't fit, for Swin a map that one window does not cover.
        """
        is_tensor("x", x, FLOATS)
        if shared_rel_pos_bias is not None:
            self._check_bias(shared_rel_pos_bias, x.shape[1])
        grid = tuple(x.shape[1:3]) if x.dim() == 4 else grid
        masked = _Masked(mask, self.prefix_tokens, x.shape[1:-1].numel(), grid)
        return self._run(self.block, x, masked, shared_rel_pos_bias)

    def _check_bias(self, bias: Tensor, tokens: int) -> None:
        if self._run is not _beit:
            raise ValueError(
                f"shared_rel_pos_bias is given to a {type(self.block).__qualname__}, which adds none; "
                "allowed: None"
            )
        is_tensor("shared_rel_pos_bias", bias, FLOATS)
        shape = (self.block.attn.num_heads, tokens, tokens)
        if bias.shape not in (shape, (1, *shape)):
            raise ValueError(
                f"shared_rel_pos_bias has shape {tuple(bias.shape)}; allowed: {shape}, {(1, *shape)}"
            )

    @staticmethod
    def why_not(block: nn.Module) -> str | None:
        """Why `block` can't run on masked tokens alone; None where it can."""
        family = _family(block)
        if family is None:
            return (
                "it is none of timm's ViT Block, BEiT Block, SwinTransformerBlock and "
                "SwinTransformerV2Block, or overrides their forward"
            )
        attn = block.attn
        theirs = getattr(sys.modules[family[0].__module__], family[2])
        if type(attn).forward is not theirs.forward:
            return f"its attention {type(attn).__qualname__} is not timm's {theirs.__qualname__}"
        for name, module in (("attn.qkv", attn.qkv), ("attn.proj", attn.proj)):
            if type(module) is not nn.Linear:
                return f"its {name} is a {type(module).__qualname__}, not a Linear"
        if is_traceable_wrapper_subclass(attn.qkv.weight):  # torchao's quantised weights
            kind = type(attn.qkv.weight).__name__
            return f"its attn.qkv has a {kind} for weight, which may not come apart"
        for name, module in (("it", block), ("its attn", attn), ("its attn.qkv", attn.qkv)):
            if has_hooks(module) or is_changed(module):
                return f"{name} has a hook or a forward of its own, which would not run"
        if type(block.mlp).__name__ not in _MLPS or any(
            isinstance(m, nn.Conv2d) for m in block.mlp.modules()
        ):
            return f"its MLP {type(block.mlp).__qualname__} may mix tokens"
        for name, module in block.named_modules():
            if "norm" in name.rpartition(".")[2] and type(module).__name__ not in _NORMS:
                return f"its {name} {type(module).__qualname__} may mix tokens"
            if name in ("drop_path1", "drop_path2", "ls1", "ls2") and (
                type(module).__name__ not in _BRANCH
            ):
                return f"its {name} is a {type(module).__qualname__}"
            if isinstance(module, nn.Dropout) and module.p > 0:
                return f"its {name} draws a random number for every token; set its rate to 0"
        return _why_not_window(block) if "Swin" in family[0].__name__ else None


class _Masked:
    """Takes out masked tokens, and the rows of a bias that belong to them."""

    def __init__(
        self, mask: PatchMask, prefix_tokens: int, tokens: int, grid: tuple[int, int] | None
    ) -> None:
        self.mask, self.prefix_tokens, self.tokens, self.grid = mask, prefix_tokens, tokens, grid

    def __call__(self, x: Tensor) -> Tensor:
        return take_masked_tokens(x, self.mask, prefix_tokens=self.prefix_tokens, grid=self.grid)

    def bias(self, bias: Tensor) -> Tensor:
        """`(B, heads, K, N)` of a bias `(heads, N, N)` or `(1, heads, N, N)`."""
        heads, tokens = bias.shape[-3:-1]
        grid = self.grid
        if grid is None:
            grid = token_grid(self.tokens - self.prefix_tokens, *self.mask.mask.shape[1:])
        positions = self.mask.on_grid(grid).masked + self.prefix_tokens
        # One row a query: an embedding, whose gradient is summed in a fixed order and in parallel.
        rows = bias.reshape(heads, tokens, tokens).transpose(0, 1).reshape(tokens, -1)
        return F.embedding(positions, rows).unflatten(2, (heads, tokens)).transpose(1, 2)


def _project(
    attn: nn.Module, bias: Tensor | None, queries: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `(B, heads, K, d)` of some tokens, keys and values `(B, heads, N, d)` of all."""
    sizes = attn.qkv.out_features // 3, attn.qkv.out_features // 3 * 2
    weights = attn.qkv.weight.split(sizes)
    biases = (None, None) if bias is None else bias.split(sizes)
    q = F.linear(queries, weights[0], biases[0]).unflatten(2, (attn.num_heads, -1))
    kv = F.linear(tokens, weights[1], biases[1]).unflatten(2, (2, attn.num_heads, -1))
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
    return q.transpose(1, 2), k, v


def _joined_bias(attn: nn.Module) -> Tensor | None:
    """The bias of q, k, v where k's is a buffer of zeros beside two parameters."""
    return None if attn.q_bias is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))


def _merge(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def _vit(block: nn.Module, x: Tensor, masked: _Masked, shared: Tensor | None) -> Tensor:
    attn = block.attn
    tokens = block.norm1(x)
    queries = masked(tokens)
    q, k, v = _project(attn, attn.qkv.bias, queries, tokens)
    q, k = attn.q_norm(q), attn.k_norm(k)
    y = attention(q, k, v, bias=None, scale=attn.scale, fused=attn.fused_attn)
    y = attn.norm(_merge(y))
    if getattr(attn, "gate", None) is not None:
        y = y * attn.gate(queries).sigmoid()
    x = masked(x) + block.drop_path1(block.ls1(attn.proj(y)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _beit(block: nn.Module, x: Tensor, masked: _Masked, shared: Tensor | None) -> Tensor:
    attn = block.attn
    tokens = block.norm1(x)
    q, k, v = _project(attn, _joined_bias(attn), masked(tokens), tokens)
    bias = shared
    if attn.relative_position_bias_table is not None:
        own = attn._get_rel_pos_bias()
        bias = own if shared is None else own + shared
    bias = None if bias is None else masked.bias(bias)
    y = attn.proj(_merge(attention(q, k, v, bias=bias, scale=attn.scale, fused=attn.fused_attn)))
    x = masked(x) + block.drop_path1(y if block.gamma_1 is None else block.gamma_1 * y)
    y = block.mlp(block.norm2(x))
    return x + block.drop_path2(y if block.gamma_2 is None else block.gamma_2 * y)


def _swin(block: nn.Module, x: Tensor, masked: _Masked, shared: Tensor | None) -> Tensor:
    attn, x = block.attn, _one_window(block, x)
    tokens = block.norm1(x)
    q, k, v = _project(attn, attn.qkv.bias, masked(tokens), tokens)
    bias = masked.bias(attn._get_rel_pos_bias())
    y = attention(q, k, v, bias=bias, scale=attn.scale, fused=attn.fused_attn)
    x = masked(x) + block.drop_path1(attn.proj(_merge(y)))
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def _swin_v2(block: nn.Module, x: Tensor, masked: _Masked, shared: Tensor | None) -> Tensor:
    attn, x = block.attn, _one_window(block, x)
    rest = masked(x)
    q, k, v = _project(attn, _joined_bias(attn), rest, x)
    # Cosine attention, and the bias of a small network, as in SwinV2 (Liu et al., CVPR 2022).
    q = F.normalize(q, dim=-1) * attn.logit_scale.clamp(max=math.log(100)).exp()
    table = 16 * attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads).sigmoid()
    area = attn.relative_position_index.shape[0]
    bias = table[attn.relative_position_index.view(-1)].view(area, area, -1).permute(2, 0, 1)
    y = attention(q, F.normalize(k, dim=-1), v, bias=masked.bias(bias), scale=1.0, fused=False)
    x = rest + block.drop_path1(block.norm1(attn.proj(_merge(y))))
    return x + block.drop_path2(block.norm2(block.mlp(x)))


def _why_not_window(block: nn.Module) -> str | None:
    if any(block.shift_size):
        return f"its windows are shifted by {tuple(block.shift_size)}"
    if not block.dynamic_mask and tuple(block.window_size) != tuple(block.input_resolution):
        return (
            f"its windows of {tuple(block.window_size)} do not cover the map of "
            f"{tuple(block.input_resolution)}"
        )
    return None


def _one_window(block: nn.Module, x: Tensor) -> Tensor:
    """The tokens `(B, h*w, D)` of the map `x`, which the block's window must cover."""
    window = tuple(block.window_size)
    if x.dim() != 4 or tuple(x.shape[1:3]) != window:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; allowed: (B, {window[0]}, {window[1]}, D), the block's "
            "window"
        )
    return x.flatten(1, 2)


_Run = Callable[[nn.Module, Tensor, _Masked, Tensor | None], Tensor]
# Module and class of a block in timm -> how it runs, and the class of its attention.
_FAMILIES: dict[tuple[str, str], tuple[_Run, str]] = {
    ("timm.models.vision_transformer", "Block"): (_vit, "Attention"),
    ("timm.models.beit", "Block"): (_beit, "Attention"),
    ("timm.models.swin_transformer", "SwinTransformerBlock"): (_swin, "WindowAttention"),
    ("timm.models.swin_transformer_v2", "SwinTransformerV2Block"): (_swin_v2, "WindowAttention"),
}


def _family(block: nn.Module) -> tuple[type, _Run, str] | None:
    """timm's class of `block`, how it runs, and its attention's class, found by name: whoever has a
    block of timm's has imported timm, so this module need not."""
    for base in type(block).__mro__:
        found = _FAMILIES.get((base.__module__, base.__qualname__))
        if found is not None and type(block).forward is base.forward:
            return base, *found
    return None
