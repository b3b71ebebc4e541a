"""One line for transformers: the masked image models of ViT, DeiT, Swin, Swinv2, FocalNet and MAE."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simmim_kernels._numbers import to_bool
from simmim_kernels.integrations import transformers_mae
from simmim_kernels.integrations.deferred_output import Prediction, deferred_output, may_defer
from simmim_kernels.integrations.instance import has_forward_of, is_changed, must_be_called
from simmim_kernels.integrations.report import Report
from simmim_kernels.integrations.transformers_attention import choose_attention, register
from simmim_kernels.integrations.transformers_embeddings import (
    convolution,
    embeddings_forward,
    mask_of,
    their_mask,
    why_not_embed,
)
from simmim_kernels.masks import PatchMask
from simmim_kernels.ops.masked_linear import masked_linear_l1
from simmim_kernels.ops.masked_loss import masked_l1

# Class -> the name of its encoder and of the module that holds its output's class.
_MODELS = {
    "ViTForMaskedImageModeling": ("vit", "MaskedImageModelingOutput"),
    "DeiTForMaskedImageModeling": ("deit", "MaskedImageModelingOutput"),
    "SwinForMaskedImageModeling": ("swin", "SwinMaskedImageModelingOutput"),
    "Swinv2ForMaskedImageModeling": ("swinv2", "Swinv2MaskedImageModelingOutput"),
    "FocalNetForMaskedImageModeling": ("focalnet", "FocalNetMaskedImageModelingOutput"),
    "ViTMAEForPreTraining": ("vit", "ViTMAEForPreTrainingOutput"),
}


def apply_kernels(
    model: nn.Module, *, reconstruction: bool = True, attention: str | None = "auto"
) -> Report:
    """Run the masked image model of transformers, this instance alone, on the kernels.

    Mask tokens, prediction head and loss are replaced; arguments, outputs, `state_dict` and
    gradients are those of transformers, to rounding:

        report = apply_kernels(model)  # what was replaced, what was left and why
        loss = model(pixel_values, bool_masked_pos=mask).loss
        report.undo()

    Masked patches are not embedded, and a NaN in one reaches nothing. In a training step the head
    predicts the masked tokens alone where it can, and `outputs.reconstruction` is computed when it
    is first read, with the autocast settings of the call; once the head has other weights it can't
    be computed any more, which is a `RuntimeError`. Otherwise, in evaluation, without gradients, with
    `return_dict=False`, with a forward hook on the model, under FSDP and under `torch.compile`, it is
    computed at once.

    `bool_masked_pos` may be a `PatchMask` too, on its own grid of mask units. It is worth having:
    with it the GPU and compiled code skip the masked patches without counting them, and Swin's
    head runs on masked tokens alone, whose 32 pixels a plain mask of 4-pixel patches might cut.
    ViTMAE takes a `PatchMask` as `noise`. Its visible tokens come in ascending order of their
    positions, not in that of the noise, in `hidden_states` too, and `ids_restore` fits that order;
    mask, loss and gradients are those of transformers, with dropout those of other draws, and where
    nothing is hidden the loss is 0 and not NaN. What is said of `reconstruction` holds for its
    `logits`.
    Integers other than 0 count as masked. Calls that the kernels do not cover (no mask, a mask of
    fractions, images that want a gradient, sizes that are no whole number of patches, transforms of
    `torch.func`) run transformers' own code, with transformers' own errors. There is no second derivative. Copies and
    pickles of the model run on the kernels too; what `save_pretrained` writes is transformers' own.

    Args:
        model: `ViTForMaskedImageModeling`, `DeiTFor...`, `SwinFor...`, `Swinv2For...`,
            `FocalNetFor...` or `ViTMAEForPreTraining`, before it is wrapped (by `torch.compile`, DDP,
            a `Trainer`).
        reconstruction: False leaves it out, as None, in training steps. For `torch.compile`, which
            would compute it, and for accelerate's mixed precision, which reads every output.
        attention: `"auto"` lets a model that runs `scaled_dot_product_attention` take plain products
            where those were measured to be faster: in training steps on CPUs, in 16-bit types or with
            a learned bias. None leaves its path alone.

    Raises:
        TypeError: another class, a subclass with a forward of its own, or embeddings with one; a
            `reconstruction` that is no bool.
        ValueError: this instance's forward was replaced already, by this function or another; another
            `attention`.
    """
    reconstruction = to_bool("reconstruction", reconstruction)
    if attention not in ("auto", None):
        raise ValueError(f"attention is {attention!r}; allowed: 'auto', None")
    name, output_class = _model_of(model)
    encoder = getattr(model, name)
    if is_changed(model) or is_changed(encoder.embeddings):
        raise ValueError(
            f"apply_kernels: the forward of this {type(model).__name__} was replaced already: undo "
            "that first (report.undo() where it was apply_kernels), and apply before wrapping"
        )
    if not has_forward_of(encoder.embeddings, "transformers"):
        raise TypeError(
            f"apply_kernels: the {type(encoder.embeddings).__name__} of this {type(model).__name__} "
            "have a forward of their own, which the kernels would bypass"
        )
    report = Report(type(model).__name__)
    if attention == "auto":
        choose_attention(report, model)
    if output_class.__name__ == "ViTMAEForPreTrainingOutput":
        return _apply_to_mae(report, model, output_class, reconstruction)
    embeddings, reason = encoder.embeddings, why_not_embed(encoder.embeddings)
    report._replace_forward(embeddings, embeddings_forward)
    report.replaced[f"{name}.embeddings"] = "mask_tokens" if reason else "masked_patch_embed"
    if reason:
        report.left[f"{name}.embeddings.patch_embeddings"] = reason
    make = partial(_model_forward, name, output_class, reconstruction)
    report._replace_forward(model, make)
    reason = _why_not_head(model.decoder)
    if reason:
        report.left["decoder"] = reason
    else:
        report.replaced["decoder"] = "masked_linear_l1, on the masked tokens where it can"
    report.replaced["loss"] = "masked_l1"
    report.left[f"{name} (all else)"] = "the loss needs every token until the last block"
    return report


def _apply_to_mae(
    report: Report, model: nn.Module, output_class: type, reconstruction: bool
) -> Report:
    embeddings, reason = model.vit.embeddings, why_not_embed(model.vit.embeddings)
    if reason:
        report.left["vit.embeddings"] = reason
        return report
    report._replace_forward(embeddings, transformers_mae.embeddings_forward)
    make = partial(transformers_mae.model_forward, output_class, reconstruction)
    report._replace_forward(model, make)
    report.replaced["vit.embeddings"] = "visible_patch_embed"
    report.replaced["decoder (input)"] = "restore_tokens"
    report.replaced["decoder (last layer, head)"] = "on the masked tokens alone, in training steps"
    report.replaced["loss"] = "masked_mse"
    report.left["vit, decoder (all else)"] = "every token of theirs is needed"
    return report


def _base_of(model: nn.Module) -> type | None:
    """transformers' class of a supported model; None for any other."""
    for base in type(model).__mro__:
        if base.__name__ in _MODELS and base.__module__.startswith("transformers."):
            return base
    return None


def _model_of(model: nn.Module) -> tuple[str, type]:
    """The name of the model's encoder, and the class of its output."""
    base = _base_of(model)
    if base is not None:
        if type(model).forward is not base.forward:
            raise TypeError(
                f"apply_kernels: {type(model).__name__} has a forward of its own, which the "
                f"kernels would bypass; allowed: {base.__name__} itself"
            )
        encoder, output = _MODELS[base.__name__]
        return encoder, getattr(sys.modules[base.__module__], output)
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    inner = next(((name, part) for name, part in parts if _base_of(part)), None)
    if inner is not None:
        advice = f"apply it to its {inner[0]}, the {type(inner[1]).__name__}, before wrapping"
    elif type(model).__module__.startswith("timm."):
        advice = "for timm's models there is simmim_kernels.integrations.timm.MaskedEncoder"
    else:
        advice = "for other models use the functions, such as mask_tokens and masked_l1, yourself"
    raise TypeError(
        f"apply_kernels: {type(model).__name__} is not supported; allowed: transformers' "
        f"{', '.join(_MODELS)}; {advice}"
    )


def _why_not_head(decoder: nn.Module) -> str | None:
    plain = (
        isinstance(decoder, nn.Sequential)
        and [type(m) for m in decoder] == [nn.Conv2d, nn.PixelShuffle]
        and decoder[0].kernel_size == (1, 1)
        and decoder[0].groups == 1
    )
    return None if plain else "it is no plain 1x1 Conv2d with PixelShuffle: it predicts every token"


def _model_forward(
    name: str, output_class: type, reconstruction: bool, theirs: Callable[..., Any]
) -> Callable[..., Any]:
    """The forward of a whole model whose encoder is called `name`."""
    register()
    names = [field.name for field in fields(output_class)][2:]
    positional = list(signature(theirs).parameters)[3:]
    first = _first_token(name)
    # Where a model makes its tuple of its encoder's, those of Swin and FocalNet lack the last field.
    shorter = name in ("swin", "focalnet") and "return_dict" in positional

    def forward(self, pixel_values=None, bool_masked_pos=None, *args, **kwargs):
        kwargs |= dict(zip(positional, args, strict=False))
        encoder = getattr(self, name)
        embeddings = encoder.embeddings
        mask = mask_of(embeddings, pixel_values, bool_masked_pos)
        grid = None if mask is None else _output_grid(self, embeddings, pixel_values)
        if grid is None:
            bool_masked_pos = their_mask(embeddings, pixel_values, bool_masked_pos)
            return theirs(self, pixel_values, bool_masked_pos, **kwargs)

        return_dict = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        outputs = encoder(pixel_values, bool_masked_pos=bool_masked_pos, return_dict=True, **kwargs)
        tokens = outputs[0][:, first:][:, : grid[0] * grid[1]]
        others = {field: getattr(outputs, field, None) for field in names}
        if shorter and not return_dict:
            others["reshaped_hidden_states"] = None
        training = self.training and torch.is_grad_enabled()
        drop = training and not reconstruction
        defer = may_defer(self, return_dict)
        loss, image = _loss(self.decoder, tokens, grid, pixel_values, mask, drop or defer)
        if defer and not drop:
            return deferred_output(output_class, "reconstruction", image, loss, **others)
        output = output_class(loss=loss, reconstruction=None if drop else image(), **others)
        return output if return_dict else output.to_tuple()

    return forward


def _first_token(name: str) -> int:
    """The place of the first token that the head reads."""
    if name == "deit":
        # Before 5.9, transformers left out the class token and the last patch, and read the
        # distillation token as if it were the first patch.
        version = sys.modules["transformers"].__version__.split(".")
        return 2 if (int(version[0]), int(version[1])) >= (5, 9) else 1
    return 1 if name == "vit" else 0


def _output_grid(self: nn.Module, embeddings: nn.Module, image: Tensor) -> tuple[int, int] | None:
    """The grid of output tokens, None where the head does not give back the image's size."""
    stride = convolution(embeddings).stride[0]
    stride *= 2 ** (len(getattr(self.config, "depths", (1,))) - 1)
    if stride != self.config.encoder_stride or image.shape[1] != self.config.num_channels:
        return None
    if image.shape[2] % stride or image.shape[3] % stride:
        return None
    return image.shape[2] // stride, image.shape[3] // stride


def _loss(
    decoder: nn.Module,
    tokens: Tensor,
    grid: tuple[int, int],
    target: Tensor,
    mask: PatchMask | Tensor,
    later: bool,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The loss, and a function that gives the reconstruction, which is wanted `later` or at once."""
    if _why_not_head(decoder) or must_be_called(decoder, *decoder):
        image = decoder(tokens.transpose(1, 2).unflatten(2, grid))
        return masked_l1(image, target, mask), lambda: image
    head, shuffle = decoder
    weight, bias = head.weight.flatten(1), head.bias
    units = (mask.mask if isinstance(mask, PatchMask) else mask).shape[1:]
    if later and grid[0] % units[0] == grid[1] % units[1] == 0:
        loss = masked_linear_l1(tokens, weight, bias, target, mask)

        def predict() -> Tensor:
            pred = F.linear(tokens, head.weight.flatten(1), head.bias)
            return _image(pred, grid, shuffle.upscale_factor)

        return loss, Prediction(predict, head, tokens, "reconstruction: the head")
    pred = F.linear(tokens, weight, bias)
    loss = masked_l1(pred, target, mask)
    return loss, lambda: _image(pred, grid, shuffle.upscale_factor)


def _image(pred: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    # Whoever reads it may be within no_grad, but it is part of the call's graph.
    with torch.enable_grad():
        return F.pixel_shuffle(pred.transpose(1, 2).unflatten(2, grid), stride)
