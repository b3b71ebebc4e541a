"""The last block on masked tokens alone: forward and gradients of its input and parameters."""

import copy

import pytest
import torch

import simmim_kernels as sk
from benchmarks.harness import Row, compiled
from benchmarks.shapes import RATIO

timm = pytest.importorskip("timm")
BEIT = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": 0.1}
ENCODERS = {
    "vit-ti": ("vit_tiny_patch16_224", {"img_size": 192}, (6, 6)),
    "vit-b": ("beit_base_patch16_224", BEIT | {"depth": 1}, (7, 7)),
    "swin-b": ("swin_base_patch4_window7_224", {"img_size": 192, "window_size": 6}, (6, 6)),
}
BATCH = 16


def last_block(name):
    """The block, its input's shape without the batch, its prefix tokens, a shared bias or None."""
    timm_name, arguments, grid = ENCODERS[name]
    encoder = timm.create_model(timm_name, num_classes=0, **arguments)
    if "swin" in name:
        block = encoder.layers[-1].blocks[-1]
        return block, (*block.input_resolution, block.dim), 0, None, grid
    shape = (1 + encoder.patch_embed.num_patches, encoder.embed_dim)
    bias = encoder.rel_pos_bias().detach() if getattr(encoder, "rel_pos_bias", None) else None
    return encoder.blocks[-1], shape, 1, bias, grid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_last_block(compare, name, dtype):
    block, shape, prefix, bias, grid = last_block(name)
    block = copy.deepcopy(block).to(dtype).eval()  # no stochastic depth
    if hasattr(block.attn, "fused_attn"):  # the faster path for either contender
        block.attn.fused_attn = dtype == torch.float32 and bias is None and "swin" not in name
    arguments = {} if bias is None else {"shared_rel_pos_bias": bias.to(dtype)}
    last = sk.MaskedLastBlock(block, prefix_tokens=prefix)
    parameters = list(block.parameters())

    def inputs():
        mask = sk.random_mask(BATCH, grid, RATIO)
        tokens = shape[:2] if len(shape) == 3 else (round((shape[0] - prefix) ** 0.5),) * 2
        index = mask.on_grid(tokens).masked.long() + prefix
        upstream = torch.randn(BATCH, index.shape[1], shape[-1]).to(dtype)
        return torch.randn(BATCH, *shape).to(dtype).requires_grad_(), mask, index, upstream

    def ours(x, mask, *_):
        return last(x, mask, **arguments)

    def plain(x, _, index, *__):
        out = block(x, **arguments).flatten(1, -2)
        return out.gather(1, index[..., None].expand(-1, -1, out.shape[2]))

    def step(function):
        def run(x, mask, index, upstream):
            out = function(x, mask, index)
            grads = torch.autograd.grad(out, [x, *parameters], upstream)
            # Not compared: PyTorch's eager LayerNorm sums its bias's gradient in bfloat16, where
            # half of it is lost.
            return [out.detach(), *(g for g in grads if g.dim() > 1)]

        return run

    row = Row("last_block", f"{name} x{BATCH} {str(dtype)[6:]}", "forward + backward", 0)
    contenders = {
        "ours": step(ours),
        "eager": step(plain),
        "ours, compiled": step(compiled(ours)),
        "compiled": step(compiled(plain)),
    }
    compare(row, contenders, inputs, tolerance=1e-4 if dtype == torch.float32 else 5e-2)
