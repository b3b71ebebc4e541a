"""Channel statistics stay what they were given, whatever a module is cast to."""

import copy

import pytest
import timm
import torch

import simmim_kernels as sk
from simmim_kernels import nn
from simmim_kernels.integrations.timm import MaskedEncoder

fabric = pytest.importorskip("lightning_fabric")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
MASK = sk.random_mask(2, (2, 2), 0.5, seed=0)


def encoder_of_vit():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=32, num_heads=2
    )
    return MaskedEncoder(model, mean=MEAN, std=STD).eval()


def assert_kept(module, dtype=torch.float32):
    for values, given in ((module.mean, MEAN), (module.std, STD)):
        assert torch.equal(values, torch.tensor(given, dtype=dtype))


CASTS = {
    "bfloat16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "to": lambda m: m.to(torch.bfloat16),
    "to and back": lambda m: m.to(torch.bfloat16).to(torch.float32),
    "double and back": lambda m: m.double().bfloat16(),
    "copied": lambda m: copy.deepcopy(m).half(),
    "on meta and back": lambda m: m.to("meta").to_empty(device="cpu").bfloat16(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_keep_them(cast):
    encoder = CASTS[cast](encoder_of_vit())
    assert_kept(encoder)
    assert "mean" not in encoder.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_encoder_runs_in_any_type(dtype):
    encoder = encoder_of_vit().to(dtype)
    out = encoder(IMAGES, MASK)
    assert out.dtype == dtype
    assert_kept(encoder, torch.float64 if dtype == torch.float64 else torch.float32)
    embed = encoder.backbone.patch_embed.proj
    expected = sk.masked_patch_embed(
        IMAGES, embed.weight, embed.bias, MASK, encoder.mask_token, mean=MEAN, std=STD
    )
    found = encoder.family.patches(IMAGES, MASK, encoder.mask_token, encoder.mean, encoder.std)
    found = found - encoder.family.pos_embed((2, 2))
    torch.testing.assert_close(
        found, expected, atol=0.02 if dtype != torch.float64 else 1e-12, rtol=0
    )


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_fabrics_true_precisions_keep_them(precision):
    engine = fabric.Fabric(accelerator="cpu", devices=1, precision=precision)
    with engine.init_module():
        made_within = encoder_of_vit()
    for encoder in (encoder_of_vit(), made_within):
        module = engine.setup(encoder)
        assert_kept(module.module)
        assert next(module.parameters()).dtype.itemsize == 2
        if precision == "bf16-true":
            assert module(IMAGES, MASK).isfinite().all()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_the_trainers_model_keeps_them(precision):
    encoders = pytest.importorskip("simmim.models.encoders")
    from simmim.models.simmim import SimMIM

    engine = fabric.Fabric(accelerator="cpu", devices=1, precision=precision)
    for plain in (False, True):
        with engine.init_module():
            encoder = encoders.build_encoder(
                "vit_tiny_patch16_224", img_size=(32, 32), mean=MEAN, std=STD, depth=1
            )
            model = SimMIM(encoder, mean=MEAN, std=STD, plain=plain)
        module = engine.setup(model)
        assert_kept(module.module)
        assert_kept(module.module.encoder)
        if precision == "bf16-true":
            loss = module(IMAGES, MASK)
            engine.backward(loss)
            assert loss.isfinite()


def test_loss_modules_hold_numbers():
    loss = nn.MaskedL1Loss(mean=torch.tensor(MEAN, dtype=torch.float64), std=STD).bfloat16()
    assert (loss.mean, loss.std) == (MEAN, STD)


LOSSES = [nn.MaskedL1Loss, nn.MaskedMSELoss, nn.MaskedSmoothL1Loss, nn.MaskedHuberLoss]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"std": None}, ValueError, "mean and std go together"),
        ({"mean": None}, ValueError, "mean and std go together"),
        ({"mean": 0.5}, TypeError, "mean is 0.5; allowed: one number a channel"),
        ({"mean": {0.5, 0.4}}, TypeError, "mean is {.*; allowed: one number a channel"),
        ({"mean": (0.5, 0.4, float("inf"))}, ValueError, "mean is .*; allowed: finite numbers"),
        ({"std": (0.5, 0.0, 0.3)}, ValueError, "std is .*; allowed: positive numbers"),
        ({"std": torch.tensor([0.5, 0.4, float("nan")])}, ValueError, "std is .*; allowed: pos"),
    ],
)
def test_wrong_statistics_are_named_where_they_are_given(change, error, words):
    model = encoder_of_vit().backbone
    makers = (lambda **stats: MaskedEncoder(model, **stats), *LOSSES)
    for make in makers:
        with pytest.raises(error, match=rf"^{words}"):
            make(**{"mean": MEAN, "std": STD} | change)


def test_a_stage_without_a_convolution_is_named():
    model = timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=32, num_heads=2)
    with pytest.raises(
        TypeError, match="NaFlexVit has no patch_embed or stem; this model embeds"
    ) as e:
        MaskedEncoder(model)
    assert "stage=" not in str(e.value)
    for stage in ("embeds", "blocks"):
        with pytest.raises(TypeError, match=f"{stage} of NaFlexVit has no convolution"):
            MaskedEncoder(model, stage=stage)
    with pytest.raises(TypeError, match=r"layer1 of .* has no|has no layer9; pass stage="):
        MaskedEncoder(timm.create_model("resnet10t"), stage="layer9")
