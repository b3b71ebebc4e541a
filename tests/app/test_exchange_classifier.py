"""Fine-tuned classifiers of others: imported whole, with their own logits, and exported again."""

from __future__ import annotations

import pytest
import timm
import torch

from simmim.config.labels import FinetuneConfig
from simmim.models.classifier import Classifier, load_classifier
from simmim.models.encoders import build_encoder
from simmim.models.simmim import IMAGENET_MEAN, IMAGENET_STD
from simmim.storage import checkpoint
from simmim_kernels.integrations import checkpoints
from tests.app.exchange_models import SIZE, images_and_mask, run

SMALL = {"img_size": SIZE, "num_classes": 5}
VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4}
#: timm's models with the structure of fine-tuned ones: the mean, then fc_norm, one table a block
MODELS = {
    "beit": ("beit_base_patch16_224", VIT, {"global_pool": "avg"}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, {}),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, {}),
    "vit": ("vit_tiny_patch16_224", VIT, {"global_pool": "avg"}),
}


def theirs_of(family):
    name, arguments, pooling = MODELS[family]
    torch.manual_seed(4)
    model = timm.create_model(name, **SMALL, **arguments, **pooling).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def arguments_of(family):
    name, arguments, _ = MODELS[family]
    words = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in arguments.items()}
    pairs = [str(part) for pair in words.items() for part in pair]
    return ["--encoder", name, "--img-size", SIZE, "--encoder-args", *pairs]


@torch.no_grad()
def assert_same_logits(ours, theirs):
    images = images_and_mask()[0]
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    ours, theirs = ours.double(), theirs.double()
    ours.encoder.mean, ours.encoder.std = ours.encoder.mean.double(), ours.encoder.std.double()
    expected = theirs((images.double() / 255 - mean) / std)
    got = ours(images)
    assert expected.std() > 1e-3
    # the statistics of the images are float32 numbers in ours
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("held", ["model", None])
def test_the_logits_are_theirs_there_and_back(family, held, tmp_path, capsys):
    theirs = theirs_of(family)
    state = theirs.state_dict()
    source, out = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save({held: state, "epoch": 99} if held else state, source)
    status, printed, err = run(
        capsys, "import", "--source", source, "--out", out, "--classifier", *arguments_of(family)
    )
    assert (status, err) == (0, "")
    assert "a classifier of 5 classes" in printed
    ours, config = load_classifier(out)
    assert config.fc_norm == (family in ("beit", "vit"))
    assert_same_logits(ours, theirs)
    back = tmp_path / "back.safetensors"
    status, printed, err = run(
        capsys, "export", "--checkpoint", out, "--project", "timm", "--out", back
    )
    assert (status, err) == (0, "")
    assert "num_classes=5, global_pool='avg'" in printed
    fresh = theirs_of(family)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    timm.models.load_checkpoint(fresh, str(back), strict=True)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_microsofts_swin_classifier(tmp_path, capsys):
    """Their names: patches are merged at a stage's end, and the head is one matrix."""
    theirs = theirs_of("swin")
    state = {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): v
        for name, v in theirs.state_dict().items()
    }
    source, out = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save({"model": state}, source)
    status, printed, err = run(
        capsys, "import", "--source", source, "--out", out, "--classifier", *arguments_of("swin")
    )
    assert (status, err) == (0, "")
    assert "tensors of microsoft" in printed
    assert_same_logits(load_classifier(out)[0], theirs)


@pytest.mark.parametrize("head", ["head.fc.", "head.layers.head."])
@pytest.mark.parametrize("family", ["swin", "vit"])
def test_mmpretrains_classifiers(family, head, tmp_path, capsys):
    """LinearClsHead and VisionTransformerClsHead, on means over patches; the ViT's norm is ln2."""
    theirs = theirs_of(family)
    encoder = {
        f"encoder.backbone.{name}": value
        for name, value in theirs.state_dict().items()
        if not name.startswith(("head.", "fc_norm."))
    }
    if family == "swin":
        state = checkpoints.from_simmim(encoder, "mmpretrain")
        last = theirs.head.fc
    else:
        renamed = (
            (".norm", ".ln"), ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"),
            ("encoder.backbone.", "backbone."), ("blocks.", "layers."), (".proj.", ".projection."),
            ("attn.projection", "attn.proj"),
        )  # fmt: skip
        state = {}
        for name, value in encoder.items():
            for ours, mmpretrain in renamed:
                name = name.replace(ours, mmpretrain)
            state[name] = value
        state |= {f"backbone.ln2.{n}": v for n, v in theirs.fc_norm.state_dict().items()}
        last = theirs.head
    state |= {head + name: value for name, value in last.state_dict().items()}
    source, out = tmp_path / "epoch_9.pth", tmp_path / "ours.safetensors"
    torch.save({"meta": {"epoch": 9}, "state_dict": state}, source)
    status, printed, err = run(
        capsys, "import", "--source", source, "--out", out, "--classifier", *arguments_of(family)
    )
    assert (status, err) == (0, "") and "tensors of mmpretrain" in printed
    assert_same_logits(load_classifier(out)[0], theirs)
    # one whose tokens are normalised classifies by its class token
    state = {name.replace("backbone.ln2.", "backbone.ln1."): v for name, v in state.items()}
    torch.save({"state_dict": state}, source)
    status, _, err = run(
        capsys, "import", "--source", source, "--out", out, "--classifier", "--overwrite", *arguments_of(family)
    )  # fmt: skip
    assert status == (0 if family == "swin" else 2)
    assert family == "swin" or "classifies by its class token" in err


def test_the_encoder_of_a_classifier(tmp_path, capsys):
    theirs, source = theirs_of("beit"), tmp_path / "theirs.pth"
    torch.save({"model": theirs.state_dict()}, source)
    arguments = ["import", "--source", source, "--out", tmp_path / "a.safetensors"]
    status, _, err = run(capsys, *arguments, *arguments_of("beit"))
    assert status == 2
    assert "missing encoder.backbone.norm" in err and "--classifier" in err


def test_what_cannot_be_a_classifier(tmp_path, capsys):
    name, arguments, _ = MODELS["vit"]
    token = timm.create_model(name, **SMALL, **arguments).state_dict()
    out = ["--out", tmp_path / "a.safetensors", *arguments_of("vit")]
    torch.save(token, tmp_path / "token.pth")
    cases = {
        "by its class token": ["--classifier"],
        "give one of them": ["--classifier", "--encoder-only"],
    }
    for words, flags in cases.items():
        status, _, err = run(capsys, "import", "--source", tmp_path / "token.pth", *flags, *out)
        assert status == 2 and words in err
    headless = {k: v for k, v in token.items() if not k.startswith("head")}
    torch.save(headless, tmp_path / "headless.pth")
    status, _, err = run(
        capsys, "import", "--source", tmp_path / "headless.pth", "--classifier", *out
    )
    assert status == 2 and "holds no classifier: leave out --classifier" in err


def saved_finetuned(tmp_path, fc_norm, encoder="vit_tiny_patch16_224", arguments=VIT):
    mean_std = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    built = build_encoder(encoder, img_size=(SIZE, SIZE), **mean_std, **arguments)
    model = Classifier(built, 3, fc_norm=fc_norm, head_scale=10.0).eval()
    config = FinetuneConfig(
        encoder=encoder, encoder_args=arguments, img_size=SIZE, channels=3, fc_norm=fc_norm
    )
    path = tmp_path / "finetuned.safetensors"
    names = ["ash", "fir", "an\x1boak"]
    checkpoint.save_model(path, config.to_json(), model.state_dict(), "finetune", names)
    return path, model


@pytest.mark.parametrize("fc_norm", [False, True])
@pytest.mark.parametrize("family", ["vit", "beit"])
def test_our_classifiers_are_exported_for_timm(family, fc_norm, tmp_path, capsys):
    name, arguments, _ = MODELS[family]
    path, model = saved_finetuned(tmp_path, fc_norm, name, arguments)
    out = tmp_path / "timm.safetensors"
    status, printed, _ = run(
        capsys, "export", "--checkpoint", path, "--project", "timm", "--out", out
    )
    assert status == 0
    flag = "fc_norm" if family == "vit" else "use_fc_norm"
    assert f"global_pool='avg', {flag}={fc_norm}" in printed
    assert "its outputs are, in this order: ash, fir, an\\x1boak\n" in printed
    options = {**SMALL, "num_classes": 3, "global_pool": "avg", flag: fc_norm}
    theirs = timm.create_model(name, **options, **arguments).eval()
    timm.models.load_checkpoint(theirs, str(out), strict=True)
    assert_same_logits(model, theirs)


def test_other_exports_of_a_classifier(tmp_path, capsys):
    path, model = saved_finetuned(tmp_path, True)
    for project in ("microsoft", "mmpretrain", "transformers"):
        out = tmp_path / "theirs.pth"
        status, _, err = run(
            capsys, "export", "--checkpoint", path, "--project", project, "--out", out
        )
        assert status == 2 and err.count("\n") == 1
        assert "be exported for the projects simmim, timm and transformers" in err or (
            project == "transformers" and "export it for timm, whose models do" in err
        )
        assert not out.exists()
    out = tmp_path / "copy.safetensors"
    assert run(capsys, "export", "--checkpoint", path, "--project", "simmim", "--out", out)[0] == 0
    found = load_classifier(out)[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_fc_norm_and_head_scale_of_a_classifier():
    mean_std = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    encoder = build_encoder("vit_tiny_patch16_224", img_size=(SIZE, SIZE), **mean_std, **VIT)
    model = Classifier(encoder, 4, fc_norm=True, head_scale=0.001)
    assert model.head.weight.abs().max() < 1e-4
    assert isinstance(encoder.backbone.norm, torch.nn.Identity)
    assert model.fc_norm.eps == 1e-6
    convolutions = build_encoder("cnn", img_size=(8, 8), **mean_std)
    with pytest.raises(ValueError, match="--fc-norm needs an encoder with a final norm"):
        Classifier(convolutions, 4, fc_norm=True)
