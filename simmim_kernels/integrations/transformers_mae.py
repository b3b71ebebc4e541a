"""transformers' ViTMAEForPreTraining on the kernels: visible patches, decoder input, hidden tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from simmim_kernels.integrations.deferred_output import Prediction, deferred_output, may_defer
from simmim_kernels.integrations.instance import has_forward_of, must_be_called
from simmim_kernels.integrations.transformers_attention import register
from simmim_kernels.integrations.transformers_embeddings import (
    convolution,
    is_transformed,
    patch_grid,
    why_not_embed,
)
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops.masked_loss import masked_mse
from simmim_kernels.ops.masked_patch_embed import visible_patch_embed
from simmim_kernels.ops.place_tokens import restore_tokens, take_masked_tokens
from simmim_kernels.target_norm import PatchNorm

_NORM_EPS = 1e-6  # of transformers' norm_pix_loss


def embeddings_forward(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of `ViTMAEEmbeddings`: the visible patches alone, in ascending order."""

    def forward(self, pixel_values, noise=None, interpolate_pos_encoding=False):
        if not _fits(self, pixel_values, noise, interpolate_pos_encoding):
            if isinstance(noise, PatchMask):
                raise ValueError(
                    "a PatchMask was given, and these images are left to transformers, which takes "
                    "noise: float images (B, C, H, W) of the model's size without gradient, "
                    "and no transform of torch.func"
                )
            return theirs(self, pixel_values, noise, interpolate_pos_encoding)
        grid = patch_grid(self, pixel_values)
        mask = noise.on_grid(grid) if isinstance(noise, PatchMask) else None
        if mask is None:
            mask = mask_of_noise(self, pixel_values, noise, grid)
        pos = self.position_embeddings
        if interpolate_pos_encoding:
            # It reads the shape of its first argument alone.
            like = self.cls_token.expand(1, 1 + grid[0] * grid[1], -1)
            pos = self.interpolate_pos_encoding(like, *pixel_values.shape[2:])
        conv = self.patch_embeddings.projection
        x = visible_patch_embed(
            pixel_values.to(conv.weight.dtype), conv.weight, conv.bias, mask, pos_embed=pos[:, 1:]
        )
        first = (self.cls_token + pos[:, :1]).expand(x.shape[0], -1, -1)
        hidden = mask.mask.flatten(1).to(torch.get_default_dtype())
        restore = torch.cat((mask.visible, mask.masked), 1).argsort(1)
        return torch.cat((first, x), 1), hidden, restore

    return forward


def _fits(self: nn.Module, image: Any, noise: Any, interpolate: bool | None) -> bool:
    conv = convolution(self)
    if not isinstance(image, Tensor) or image.dim() != 4 or not image.is_floating_point():
        return False
    if image.requires_grad or image.shape[1] != conv.in_channels or is_transformed():
        return False
    if why_not_embed(self) is not None or must_be_called(self.patch_embeddings, conv):
        return False
    if image.shape[2] % conv.stride[0] or image.shape[3] % conv.stride[1]:
        return False
    if not interpolate and tuple(image.shape[2:]) != tuple(self.patch_embeddings.image_size):
        return False
    units = image.shape[2] // conv.stride[0] * (image.shape[3] // conv.stride[1])
    return not isinstance(noise, Tensor) or noise.shape == (image.shape[0], units)


def mask_of_noise(
    self: nn.Module, image: Tensor, noise: Tensor | None, grid: tuple[int, int]
) -> PatchMask:
    """The mask that transformers makes of the same noise: the patches with the least are kept."""
    batch, units = image.shape[0], grid[0] * grid[1]
    kept = int(units * (1 - self.config.mask_ratio))
    if noise is None:
        noise = torch.rand(batch, units, device=image.device)
    chosen = noise.argsort(1).to(image.device)[:, :kept]
    hidden = torch.ones((batch, units), dtype=torch.bool, device=image.device)
    hidden = hidden.scatter(1, chosen, False)
    return PatchMask.from_mask(hidden.view(batch, *grid), units - kept)


def model_forward(
    output_class: type, reconstruction: bool, theirs: Callable[..., Any]
) -> Callable[..., Any]:
    """The forward of the whole model."""
    register()
    names = [name for name in signature(theirs).parameters if name not in ("self", "kwargs")]

    def forward(self, pixel_values=None, *args, **kwargs):
        kwargs |= dict(zip(names[1:], args, strict=False))
        noise, interpolate = kwargs.get("noise"), kwargs.get("interpolate_pos_encoding")
        embeddings = self.vit.embeddings
        if not _fits(embeddings, pixel_values, noise, interpolate) or _why_not_decode(self.decoder):
            return theirs(self, pixel_values, **kwargs)
        return_dict = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        outputs = self.vit(pixel_values, return_dict=True, **kwargs)
        mask = _patch_mask(outputs, patch_grid(embeddings, pixel_values))
        x = _decoder_input(self.decoder, outputs.last_hidden_state, mask, interpolate)
        for layer in self.decoder.decoder_layers[:-1]:
            x = _first(layer(x))
        training = self.training and torch.is_grad_enabled()
        drop = training and not reconstruction
        defer = may_defer(self, return_dict)
        # whose numbers no second call repeats
        defer = defer and not _drops_out(self.decoder.decoder_layers[-1])
        others = {
            "mask": outputs.mask,
            "ids_restore": outputs.ids_restore,
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
        }
        norm = PatchNorm(_NORM_EPS) if self.config.norm_pix_loss else None
        options = {"order": "yxc", "target_norm": norm, "eps": 0.0}
        if (drop or defer) and mask.masked.shape[1]:
            rows = _hidden_rows(self.decoder, x, mask)
            loss = masked_mse(self.decoder.decoder_pred(rows), pixel_values, mask, **options)
            if not drop:
                logits = Prediction(
                    lambda: _logits(self.decoder, x),
                    self.decoder,
                    x,
                    "logits: the decoder",
                )
                return deferred_output(output_class, "logits", logits, loss, **others)
            output = output_class(loss=loss, logits=None, **others)
        else:
            logits = _logits(self.decoder, x)
            loss = masked_mse(logits, pixel_values, mask, **options)
            output = output_class(loss=loss, logits=None if drop else logits, **others)
        return output if return_dict else output.to_tuple()

    return forward


def _why_not_decode(decoder: nn.Module) -> str | None:
    """Why the decoder's parts can't be run one by one, or None where they can."""
    if not has_forward_of(decoder, "transformers"):
        return "it has a forward of its own"
    if getattr(decoder, "gradient_checkpointing", False) and decoder.training:
        return "it checkpoints its activations"
    if not len(decoder.decoder_layers):
        return "it has no layers"
    last = decoder.decoder_layers[-1]
    if not all(has_forward_of(m, "transformers") for m in (last, getattr(last, "attention", last))):
        return "its last layer has a forward of its own"
    # the last layer is taken apart
    parts = (decoder.decoder_embed, decoder.decoder_norm, decoder.decoder_pred, *last.modules())
    if must_be_called(decoder, *decoder.decoder_layers, *parts):
        return "it has hooks or a forward of its own, which want it to be called"
    return None


def _patch_mask(outputs: Any, grid: tuple[int, int]) -> PatchMask:
    order = outputs.ids_restore.argsort(1).int()
    kept = outputs.last_hidden_state.shape[1] - 1
    hidden = (outputs.mask != 0).view(-1, *grid)
    return PatchMask(hidden, order[:, kept:], order[:, :kept])


def _decoder_input(
    decoder: nn.Module, latent: Tensor, mask: PatchMask, interpolate: bool | None
) -> Tensor:
    x, pos = decoder.decoder_embed(latent), decoder.decoder_pos_embed
    if interpolate:
        # It reads the shape of its argument alone.
        tokens = 1 + mask.mask.shape[1] * mask.mask.shape[2]
        pos = decoder.interpolate_pos_encoding(decoder.mask_token.expand(1, tokens, -1))
    return restore_tokens(x, mask, decoder.mask_token, pos_embed=pos, prefix_tokens=1)


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result  # of versions before 5


def _logits(decoder: nn.Module, x: Tensor) -> Tensor:
    """The prediction for all patches from the input of the decoder's last layer."""
    x = _first(decoder.decoder_layers[-1](x))
    return decoder.decoder_pred(decoder.decoder_norm(x))[:, 1:]


def _hidden_rows(decoder: nn.Module, x: Tensor, mask: PatchMask) -> Tensor:
    """The hidden tokens `(B, K, D)` behind the decoder's last layer and norm: keys and values are
    made of all tokens, everything else of the hidden ones alone."""
    layer = decoder.decoder_layers[-1]
    attention = getattr(layer, "attention", None)
    if not hasattr(attention, "q_proj") or _drops_out(layer):
        return decoder.decoder_norm(take_masked_tokens(_first(layer(x)), mask, prefix_tokens=1))
    normed = layer.layernorm_before(x)
    heads = (x.shape[0], -1, attention.num_attention_heads, attention.head_dim)
    query = attention.q_proj(take_masked_tokens(normed, mask, prefix_tokens=1))
    query, key, value = (
        t.view(heads).transpose(1, 2)
        for t in (query, attention.k_proj(normed), attention.v_proj(normed))
    )
    attended, _ = _attention_of(attention)(
        attention, query, key, value, None, scaling=attention.scaling, dropout=0.0
    )
    rows = take_masked_tokens(x, mask, prefix_tokens=1)
    rows = rows + attention.o_proj(attended.reshape(*rows.shape[:2], -1))
    rows = rows + layer.mlp(layer.layernorm_after(rows))
    return decoder.decoder_norm(rows)


def _drops_out(layer: nn.Module) -> bool:
    dropout = max((m.p for m in layer.modules() if isinstance(m, nn.Dropout)), default=0.0)
    return layer.training and max(dropout, getattr(layer.attention, "attention_dropout", 0.0)) > 0


def _attention_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The attention function that the model's settings choose."""
    theirs = sys.modules[type(attention).__module__]
    return theirs.ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, theirs.eager_attention_forward
    )
