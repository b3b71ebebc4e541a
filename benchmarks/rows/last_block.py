"""The last block on masked tokens alone: forward and gradients of its input and parameters."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import simmim_kernels as sk
from benchmarks.rows.common import BOTH, Contest, Row, compiled, draw_mask, type_name
from benchmarks.rows.shapes import Setting

BEIT = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": 0.1}
ENCODERS = {
    "vit-ti": ("vit_tiny_patch16_224", {"img_size": 192}, (6, 6)),
    "vit-b": ("beit_base_patch16_224", BEIT | {"depth": 1}, (7, 7)),
    "swin-b": ("swin_base_patch4_window7_224", {"img_size": 192, "window_size": 6}, (6, 6)),
}
TINY = {"vit-ti": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}, (2, 2))}


def rows(setting: Setting) -> Iterator[Row]:
    batch = setting.batches[0]
    for name in TINY if setting.tiny else ENCODERS:
        for dtype in setting.types:
            row = f"{name} x{batch} {type_name(dtype)}"
            builder = partial(build, name, batch, dtype, setting)
            yield Row("last_block", row, BOTH, builder, needs=("timm",))


def make_block(
    timm_name: str, options: dict
) -> tuple[nn.Module, tuple[int, ...], int, Tensor | None]:
    """The block, its input's shape without the batch, its prefix tokens, a shared bias or None."""
    import timm

    encoder = timm.create_model(timm_name, num_classes=0, **options)
    if "swin" in timm_name:
        block = encoder.layers[-1].blocks[-1]
        return block, (*block.input_resolution, block.dim), 0, None
    shape = (1 + encoder.patch_embed.num_patches, encoder.embed_dim)
    bias = encoder.rel_pos_bias().detach() if getattr(encoder, "rel_pos_bias", None) else None
    return encoder.blocks[-1], shape, 1, bias


def build(name: str, batch: int, dtype: torch.dtype, setting: Setting) -> Contest:
    timm_name, options, grid = (TINY if setting.tiny else ENCODERS)[name]
    block, shape, prefix, bias = make_block(timm_name, options)
    block = block.to(dtype).eval()  # no stochastic depth
    if hasattr(block.attn, "fused_attn"):  # the faster path for either contender
        plain_float = dtype == torch.float32 and bias is None and "swin" not in name
        block.attn.fused_attn = setting.on_gpu or plain_float
    arguments = {} if bias is None else {"shared_rel_pos_bias": bias.to(dtype)}
    last = sk.MaskedLastBlock(block, prefix_tokens=prefix)
    parameters = list(block.parameters())
    tokens = shape[:2] if len(shape) == 3 else (round((shape[0] - prefix) ** 0.5),) * 2

    def inputs():
        mask = draw_mask(batch, grid)
        index = mask.on_grid(tokens).masked.long() + prefix
        upstream = torch.randn(batch, index.shape[1], shape[-1]).to(dtype)
        return torch.randn(batch, *shape).to(dtype).requires_grad_(), mask, index, upstream

    def ours(x, mask, *_):
        return last(x, mask, **arguments)

    def plain(x, _, index, *__):
        out = block(x, **arguments).flatten(1, -2)
        return out.gather(1, index[..., None].expand(-1, -1, out.shape[2]))

    def step(function: Callable) -> Callable:
        def run(x, mask, index, upstream):
            out = function(x, mask, index)
            grads = torch.autograd.grad(out, [x, *parameters], upstream)
            # Not compared: PyTorch's eager LayerNorm sums its bias's gradient in bfloat16, where
            # half of it is lost.
            return [out.detach(), *(g for g in grads if g.dim() > 1)]

        return run

    contenders = {
        "ours": step(ours),
        "eager": step(plain),
        "ours, compiled": step(compiled(ours)),
        "compiled": step(compiled(plain)),
    }
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    return Contest(contenders, inputs, tolerance=tolerance)
