"""The attention path that apply_kernels chooses for transformers' models."""

import copy
import pickle

import pytest
import torch

import simmim_kernels as sk
from tests.integrations import test_transformers_mae as mae
from tests.integrations.transformers_models import build, flat, problem

transformers = pytest.importorskip("transformers")
# Versions before 4.48 have no place where an attention function could be named.
named = pytest.mark.skipif(
    not hasattr(transformers.modeling_utils, "ALL_ATTENTION_FUNCTIONS"),
    reason="this version of transformers has no registry of attention functions",
)


def calls_of_sdpa(model, dtype, training=True):
    """How often a step of the model runs `scaled_dot_product_attention`."""
    images, mask, side = problem("ViT")
    seen = []
    genuine = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **options):
        seen.append(1)
        return genuine(*args, **options)

    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(training):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        model(images.to(dtype), flat(mask, side))
    return len(seen)


@named
@pytest.mark.parametrize(
    ("dtype", "fast", "training", "expected"),
    [
        (torch.float32, True, True, 2),
        (torch.bfloat16, True, True, 0),
        (torch.bfloat16, True, False, 2),
        (torch.bfloat16, False, True, 2),
    ],
)
def test_products_where_they_are_faster(dtype, fast, training, expected, monkeypatch):
    """With instructions for bfloat16, which this processor may lack, and without."""
    monkeypatch.setattr("simmim_kernels.attention._FAST_16_BIT_CPU", fast)
    model = build("ViT").to(dtype).train(training)
    assert calls_of_sdpa(model, dtype, training) == 2
    report = sk.apply_kernels(model)
    assert "plain products" in report.replaced["attention"]
    assert calls_of_sdpa(model, dtype, training) == expected
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert calls_of_sdpa(other, dtype, training) == expected
    report.undo()
    assert model.config._attn_implementation == "sdpa"
    assert calls_of_sdpa(model, dtype, training) == 2


@named
def test_a_path_chosen_afterwards_outlives_undo():
    model = build("ViT")
    report = sk.apply_kernels(model)
    model.set_attn_implementation("eager")
    report.undo()
    assert model.config._attn_implementation == "eager"
    assert calls_of_sdpa(model, torch.float32) == 0


def test_none_leaves_it_alone():
    model = build("ViT").bfloat16()
    report = sk.apply_kernels(model, attention=None)
    assert "attention" not in report.replaced
    assert calls_of_sdpa(model, torch.bfloat16) == 2


def step_of(case, attention, dtype):
    """The loss and all gradients of one step under autocast to bfloat16, or of one in float64."""
    torch.manual_seed(3)
    if case == "MAE":
        model, given = mae.build(dtype), (mae.IMAGES.to(dtype), mae.NOISE)
    else:
        model, (images, mask, side) = build(case).to(dtype), problem(case)
        given = images.to(dtype), flat(mask, side)
    sk.apply_kernels(model, attention=attention)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float64):
        loss = model(*given).loss
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach().flatten(), *grads]).double()


@pytest.mark.parametrize("case", ["ViT", "Swin", "MAE"])
def test_no_further_from_the_exact_step_than_sdpa(case):
    exact = step_of(case, None, torch.float64)
    error, usual = (
        (step_of(case, attention, torch.float32) - exact).norm() for attention in ("auto", None)
    )
    assert error <= 1.5 * usual


@named
def test_another_path_is_left_alone():
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, encoder_stride=16,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.ViTForMaskedImageModeling(config)
    report = sk.apply_kernels(model)
    assert "another path" in report.left["attention"]
    assert model.config._attn_implementation == "eager"
    report = sk.apply_kernels(build("FocalNet"))
    assert "path of their own" in report.left["attention"]


def test_other_options_are_refused():
    with pytest.raises(TypeError, match="reconstruction must be a bool, got str"):
        sk.apply_kernels(build("ViT"), reconstruction="no")
    with pytest.raises(ValueError, match="attention is 'fast'; allowed: 'auto', None"):
        sk.apply_kernels(build("ViT"), attention="fast")


def test_saved_models_name_no_path_of_ours(tmp_path):
    model = build("ViT")
    sk.apply_kernels(model)
    model.save_pretrained(tmp_path)
    assert "simmim_kernels" not in (tmp_path / "config.json").read_text()
    assert transformers.ViTForMaskedImageModeling.from_pretrained(tmp_path) is not None
