"""MAE: what it computes, held to the published code, and every command on its checkpoints."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.models.build import build_masking, build_model
from simmim.models.classifier import Classifier
from simmim.models.mae import MAE
from simmim.presets import METHODS
from simmim.storage import checkpoint
from simmim_kernels import PatchMask
from tests.budget import assert_within_budget

from .conftest import TINY
from .runs import train, train_together
from .test_resume import assert_same_run

SWIN = {"embed_dim": 24, "depths": "1,1,2,1"}
DECODER = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 4}
MODELS = {
    "vit": {"encoder": "vit_tiny_patch16_224", "encoder_args": {"depth": 2}},
    "vit-registers": {
        "encoder": "vit_tiny_patch16_224",
        "encoder_args": {"depth": 1, "reg_tokens": 2, "no_embed_class": True},
    },
    "vit-wide-units": {
        "encoder": "vit_tiny_patch16_224",
        "encoder_args": {"depth": 1, "class_token": False},
        "mask_unit": 32,
    },
    "swin": {
        "encoder": "swin_tiny_patch4_window7_224",
        "encoder_args": SWIN,
        "mask": "uniform",
        "img_size": (128, 192),
    },
    "swinv2": {
        "encoder": "swinv2_tiny_window8_256",
        "encoder_args": SWIN,
        "mask": "uniform",
        "mask_unit": 32,
        "img_size": 128,
    },
}


def config_of(kind: str, **changes) -> PretrainConfig:
    settings = {"img_size": (64, 96), **DECODER, **MODELS[kind], **changes}
    return dataclasses.replace(METHODS["mae"], **settings)


def inputs(config: PretrainConfig, count: int = 2) -> tuple[Tensor, PatchMask]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, *config.size), dtype=torch.uint8, generator=generator)
    return images, build_masking(config)(torch.arange(count), seed=3)


def model_of(config: PretrainConfig) -> MAE:
    torch.manual_seed(0)
    return build_model(config)


CASES = [(kind, "pixels") for kind in MODELS]
CASES += [(kind, target) for kind in ("vit", "swin") for target in ("hog", "lowpass")]


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_loss_and_gradients_are_those_of_plain_pytorch(kind, target):
    config = config_of(kind, second_ratio=0.25 if kind == "swin" else 0.0, target=target)
    images, mask = inputs(config)
    second = {}
    if config.second_ratio:
        second["second"] = build_masking(config).second(torch.arange(2), seed=3, epoch=0)
    start, results = model_of(config), {}
    for key, plain, dtype in (
        ("ours", False, torch.float32),
        ("plain", True, torch.float32),
        ("exact", True, torch.float64),
    ):
        model = copy.deepcopy(start).to(dtype)
        model.plain = model.encoder.plain = plain
        value = model(images, mask, **second)
        each = model(images, mask, "none", **second).detach()
        learnt = [p for p in model.parameters() if p.requires_grad]
        results[key] = [value, each, *torch.autograd.grad(value, learnt)]
    names = [name for name, p in start.named_parameters() if p.requires_grad]
    for name, *values in zip(["loss", "of each", *names], *results.values(), strict=True):
        assert_within_budget(*values, name)


#: of facebookresearch/mae's own code in float64, for weights and images by the formulas below
PUBLISHED_LOSS = 1.3073322095005782
PUBLISHED_GRADIENT_NORMS = {
    "encoder.backbone.cls_token": 6.750074277625709e-05,
    "encoder.backbone.patch_embed.proj.weight": 0.0018589054485556673,
    "encoder.backbone.blocks.1.attn.qkv.weight": 0.0001254233164395973,
    "encoder.backbone.norm.bias": 0.00041525162755131256,
    "decoder_embed.weight": 0.016961352844269778,
    "mask_token": 0.6767988669374955,
    "decoder_blocks.0.mlp.fc2.weight": 1.853677201350571,
    "decoder_blocks.1.attn.qkv.bias": 0.11088525331639458,
    "decoder_norm.weight": 0.35208488057513176,
    "head.weight": 0.30031268463118327,
    "head.bias": 0.04064341765787395,
}


@pytest.mark.parametrize("plain", [False, True])
def test_loss_and_gradients_are_the_published_codes(plain):
    config = config_of(
        "vit",
        encoder_args={"embed_dim": 48, "depth": 3, "num_heads": 4},
        img_size=96,
        decoder_width=64,
    )
    model = model_of(config).double()
    model.plain = model.encoder.plain = plain
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if parameter.requires_grad:
                angle = torch.arange(parameter.numel(), dtype=torch.float64) * (1 + number / 100)
                one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_((angle.sin() * 0.1 + one).view_as(parameter))
    images = (torch.arange(2 * 3 * 96 * 96) * 37 % 251).view(2, 3, 96, 96).to(torch.uint8)
    loss = model(images, build_masking(config)(torch.arange(2), seed=5))
    loss.backward()
    # sums of thousands of terms in another order
    assert loss.item() == pytest.approx(PUBLISHED_LOSS, rel=1e-14)
    gradients = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    found = {name: gradients[name] for name in PUBLISHED_GRADIENT_NORMS}
    assert found == pytest.approx(PUBLISHED_GRADIENT_NORMS, rel=1e-12)
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}


def test_the_published_size():
    """111,907,840 numbers in the published ViT-B with its decoder, positions among them."""
    with torch.device("meta"):
        model = build_model(METHODS["mae"])
    own = sum(p.numel() for p in model.parameters()) + model.decoder_pos_embed.numel()
    assert own - model.encoder.mask_token.numel() == 111_907_840


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_hidden_pixels_do_not_reach_the_prediction(kind, plain):
    config = config_of(kind, plain=plain)
    model, (images, mask) = model_of(config).eval(), inputs(config)
    hidden = mask.mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    with torch.no_grad():
        other = model.predict_tokens(torch.where(hidden, 255 - images, images), mask)
        assert torch.equal(model.predict_tokens(images, mask), other)


def test_swin_sees_the_visible_units_as_an_image_of_half_the_side(monkeypatch):
    config = config_of("swin")
    model, (images, mask) = model_of(config), inputs(config)
    seen = []
    monkeypatch.setattr(
        model.encoder, "forward", lambda x, m: seen.append(x) or torch.zeros(len(x), 6, 192)
    )
    model(images, mask)
    for image, small, units in zip(images, seen[0], mask.mask, strict=True):
        for y, x in (~units).nonzero().tolist():
            unit = image[:, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            row, column = 16 * (y // 2), 16 * (x // 2)
            assert torch.equal(small[:, row : row + 16, column : column + 16], unit)


def test_what_swin_makes_of_a_unit_gets_into_its_place(monkeypatch):
    config = config_of("swin", decoder_depth=1)
    model, (images, mask) = model_of(config), inputs(config)
    places = torch.arange(4 * 6.0)  # of the small image's units

    def encode(x, m):
        by_token = places.view(2, 2, 3, 2).permute(0, 2, 1, 3).reshape(6, 4)
        return by_token.expand(len(x), -1, -1)

    monkeypatch.setattr(model.encoder, "forward", encode)
    width = model.mask_token.shape[2]
    monkeypatch.setattr(
        model.decoder_embed,
        "forward",
        lambda x: x[:, :, None].expand(-1, -1, width, -1).flatten(2),
    )
    with torch.no_grad():
        x = model._before_last(images, mask, None) - model.decoder_pos_embed
    for tokens, units in zip(x.unflatten(1, (8, 12)), mask.mask, strict=True):
        for row, column in (~units).nonzero().tolist():
            place = row // 2 * 6 + column // 2
            torch.testing.assert_close(tokens[row, column], torch.full((width,), float(place)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "simmim_vit_base"}, "for example vit_base_patch16_224"),
        ({"encoder": "cnn", "encoder_args": {}}, "needs a ViT, Swin or SwinV2"),
        ({"encoder": "swin_tiny_patch4_window7_224", "mask": "random"}, "give --mask uniform"),
        ({"decoder_width": 36, "decoder_heads": 8}, "--decoder-width 36 must be a multiple"),
        ({"second_ratio": 0.25}, "--second-ratio is for --method mae with a Swin"),
        ({"method": "simmim", "decoder_width": 64}, "--decoder-width is for --method mae"),
        ({"mask": "uniform", "mask_ratio": 0.6}, "must be 0.25, 0.5 or 0.75"),
        ({"mask": "uniform", "img_size": 80}, "use 64x64"),
    ],
)
def test_mistakes_are_named(changes, words):
    config = config_of("vit", **{"encoder_args": {}, **changes})
    with pytest.raises(UserError, match=words):
        config.check()
        build_masking(config)
        build_model(config)


def test_an_encoder_without_a_final_norm():
    """RADIO's; epsilon is that of the norms in its blocks."""
    arguments = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    config = config_of("vit", encoder="vit_base_patch16_radio_v3", encoder_args=arguments)
    model = build_model(config)
    assert isinstance(model.encoder.backbone.norm, torch.nn.Identity)
    assert model.decoder_norm.eps == model.encoder.backbone.blocks[-1].norm2.eps
    images, mask = inputs(config)
    model(images, mask).backward()
    classifier = Classifier(model.encoder, 3, fc_norm=True)
    assert classifier(images).shape == (2, 3)


def test_swin_units_divide_its_stride():
    with pytest.raises(UserError, match="--mask-unit 24 must divide the encoder's stride of 32"):
        build_model(config_of("swin", mask_unit=24, img_size=192))


#: runs of all commands that train in seconds, with every kind of randomness that a run can have
RUNS = {
    "vit": {"mask_unit": 8, "encoder_args": TINY["encoder_args"], "encoder": TINY["encoder"]},
    "swin": {
        **{"mask": "uniform", "mask_unit": 8, "second_ratio": 0.25},
        "encoder": "swin_tiny_patch4_window7_224",
        "encoder_args": {"embed_dim": 24, "depths": "1,1", "num_heads": "1,2", "window_size": 4},
    },
}


def run_of(kind: str, photographs, out, **changes) -> PretrainConfig:
    base = {**TINY, "data": photographs, "out": out, "batch_size": 2, "val_count": 2, "epochs": 2}
    base |= {"crops_per_image": 2, "log_every": 1, "save_every": 1, **DECODER, **RUNS[kind]}
    return dataclasses.replace(METHODS["mae"], **{**base, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(kind, photographs, tmp_path):
    whole = run_of(kind, photographs, tmp_path / "whole", epochs=3)
    assert train(whole) == 0
    part = dataclasses.replace(whole, out=tmp_path / "part", resume=True)
    while train(part, die_at="before-link:5"):
        assert (part.out / "checkpoints").is_dir()
    assert_same_run(whole.out, part.out)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shard"), [("vit", True), ("swin", False)])
def test_two_processes_end_with_the_weights_of_one(kind, shard, photographs, tmp_path):
    still = {"drop_path": 0.0, "epochs": 1, "batch_size": 4, "lr": 1e-3}
    arguments = {k: v for k, v in RUNS[kind]["encoder_args"].items() if k != "proj_drop_rate"}
    one = run_of(kind, photographs, tmp_path / "one", encoder_args=arguments, **still)
    two = dataclasses.replace(one, out=tmp_path / "two", batch_size=2, shard=shard)
    exact = dataclasses.replace(one, out=tmp_path / "exact", plain=True)
    assert train(one) == train(exact) == 0
    assert train_together(two, 2) == [0, 0]
    states = [
        checkpoint.load(c.out / "checkpoints" / checkpoint.LAST)["model"] for c in (two, one, exact)
    ]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(value, states[2][name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_every_command_takes_its_checkpoints(kind, photographs, labelled, tmp_path, capsys):
    """From the command line as a user types it, in bfloat16; then at twice the size."""
    out = tmp_path / "run"
    arguments = [
        "--mask-unit",
        8,
        "--img-size",
        32,
        "--batch-size",
        2,
        "--epochs",
        1,
        "--workers",
        0,
    ]
    arguments += ["--decoder-width", 32, "--decoder-depth", 1, "--decoder-heads", 2]
    arguments += ["--encoder", RUNS[kind]["encoder"], "--encoder-args"]
    arguments += [part for pair in RUNS[kind]["encoder_args"].items() for part in pair]
    if kind == "swin":
        arguments += ["--mask", "uniform", "--second-ratio", 0.25]
    run("pretrain", "--method", "mae", "--data", photographs, "--out", out, *arguments)
    last = out / "checkpoints" / "last.pt"
    config = checkpoint.settings(last, checkpoint.load(last), PretrainConfig)
    assert (config.method, config.loss, config.target_norm) == ("mae", "mse", "patch")
    assert (config.mask_ratio, config.lr, config.clip) == (0.75, 3e-4, 0.0)
    picture = tmp_path / "picture.png"
    run("reconstruct", "--checkpoint", last, "--data", photographs, "--out", picture)
    assert picture.stat().st_size > 1000
    common = ["--checkpoint", last, "--data", labelled, "--workers", 0]
    run("probe", *common, "--out", tmp_path / "probe", "--blocks", 0)
    for size in (32, 64):
        tuned = ["--img-size", size, "--epochs", 1, "--batch-size", 4, "--warmup-epochs", 0]
        run("finetune", *common, "--out", tmp_path / f"tuned{size}", *tuned)
    tuned = checkpoint.load(tmp_path / "tuned64" / "checkpoints" / "last.pt", "finetune")
    assert all(value.isfinite().all() for value in tuned["model"].values())


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0
