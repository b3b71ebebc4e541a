"""The attention path is chosen by device, type and bias, reaches every layer, and changes nothing."""

import pytest
import torch

from simmim.models.attention_path import choose_attention, is_biased, set_attention
from simmim.models.encoders import build_encoder
from simmim_kernels import random_mask
from simmim_kernels.attention import is_fused_faster

SIZES = {
    "vit_tiny_patch16_224": {"depth": 2},
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"window_size": 2, "depths": (1, 1, 1, 1), "embed_dim": 24},
}


def encoder(name):
    torch.manual_seed(0)
    arguments = {"img_size": (64, 64), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return build_encoder(name, **arguments, **SIZES[name])


@pytest.fixture(params=[True, False], ids=["fast bfloat16", "slow bfloat16"])
def fast(request, monkeypatch):
    monkeypatch.setattr("simmim_kernels.attention._FAST_16_BIT_CPU", request.param)
    return request.param


def test_the_table(fast):
    assert is_fused_faster("cuda", torch.bfloat16, True)
    assert is_fused_faster("cpu", torch.float32, False)
    assert not is_fused_faster("cpu", torch.float32, True)
    assert is_fused_faster("cpu", torch.bfloat16, False) == (not fast)
    assert is_fused_faster("cpu", torch.float16, True) == (not fast)


@pytest.mark.parametrize("name", SIZES)
def test_both_paths_give_the_same_tokens(name):
    model = encoder(name).eval()
    assert is_biased(model) == (not name.startswith("vit"))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mask = random_mask(2, (2, 2), 0.5, seed=0)
    tokens = []
    for path in ("sdpa", "products"):
        count = set_attention(model, path)
        layers = [m for m in model.modules() if hasattr(m, "fused_attn")]
        assert count == len(layers) > 0
        assert all(layer.fused_attn == (path == "sdpa") for layer in layers)
        tokens.append(model(images, mask))
    torch.testing.assert_close(*tokens)


def test_the_log_says_what_was_chosen(fast):
    model = encoder("vit_tiny_patch16_224")
    line = choose_attention(model, "auto", "cpu", "bf16-mixed")
    path = "products" if fast else "sdpa"
    assert line == f"attention: {path} in 2 layers, faster for bf16-mixed on cpu"
    assert choose_attention(model, "sdpa", "cpu", "32-true").startswith("attention: sdpa in 2")
    assert all(block.attn.fused_attn for block in model.backbone.blocks)
    assert "no layer" in choose_attention(torch.nn.Linear(1, 1), "auto", "cpu", "32-true")
