"""Every setting of transformers' configurations and of our encoders is carried or refused by name."""

from __future__ import annotations

import json

import pytest
import torch

from simmim.config.pretrain import PretrainConfig
from simmim.evaluation.reconstruct import load_model
from simmim.models.build import build_model
from simmim.models.simmim import IMAGENET_MEAN, IMAGENET_STD
from simmim.storage import checkpoint
from tests.app.exchange_models import ENCODERS, SIZE, images_and_mask, run

transformers = pytest.importorskip("transformers")

CONFIGS = {
    "vit": transformers.ViTConfig,
    "swin": transformers.SwinConfig,
    "swinv2": transformers.Swinv2Config,
}
VIT = {
    "image_size": SIZE, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "encoder_stride": 8,
}  # fmt: skip
SWIN = {
    "image_size": SIZE, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4,
    "encoder_stride": 8,
}  # fmt: skip
BASE = {"vit": VIT, "swin": SWIN, "swinv2": SWIN}
#: other values of every field; what is not listed takes the values of its type
FLIPS = {
    "hidden_size": [32], "num_hidden_layers": [1, 3], "num_attention_heads": [4, 8],
    "intermediate_size": [37, 128], "hidden_act": ["relu", "silu", "gelu_pytorch_tanh", "quick_gelu", "selu", "gelu_new"],
    "layer_norm_eps": [1e-3, 1e-6], "image_size": [16, 64], "patch_size": [4, 16],
    "num_channels": [1, 4], "encoder_stride": [4, 16], "embed_dim": [32],
    "depths": [[2, 2], [1, 2, 1]], "num_heads": [[4, 4], [2, 8]], "window_size": [2, 3],
    "mlp_ratio": [2.0, 3.5], "pretrained_window_sizes": [[8, 8], [2, 4]], "drop_path_rate": [0.3],
    "hidden_dropout_prob": [0.3], "attention_probs_dropout_prob": [0.3], "initializer_range": [0.1],
    "pooler_output_size": [8], "pooler_act": ["relu"], "problem_type": ["regression"],
    "id2label": [{0: "a", 1: "b", 2: "c"}], "label2id": [{"a": 0, "b": 1}],
    "chunk_size_feed_forward": [2],
    # of language models, in every configuration before transformers 5
    "pruned_heads": [{0: [0]}], "task_specific_params": [{"a": {}}], "prefix": ["a"],
    "sep_token_id": [1], "tokenizer_class": ["a"], "finetuning_task": ["a"],
    "cross_attention_hidden_size": [8],
}  # fmt: skip
#: written by transformers itself, derived from others, or without a meaning for a model
SELF = {
    "transformers_version", "architectures", "model_type", "_name_or_path", "num_layers",
    "stage_names", "out_features", "out_indices", "output_hidden_states", "output_attentions",
    "return_dict", "is_encoder_decoder", "dtype", "torch_dtype", "torchscript",
    *transformers.GenerationConfig().to_dict(),
}  # fmt: skip


def cases():
    for family, cls in CONFIGS.items():
        for field, value in cls().to_dict().items():
            if field in SELF or (family != "vit" and field == "hidden_size"):
                continue
            values = [not value] if isinstance(value, bool) else FLIPS[field]
            yield from ((family, field, flipped) for flipped in values)


def theirs_of(family, **changes):
    config = CONFIGS[family](**{**BASE[family], **changes})
    torch.manual_seed(2)
    model = transformers.AutoModelForMaskedImageModeling.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double().eval()


def arguments_for(family, img_size, channels=3):
    name, arguments = ENCODERS[family]
    arguments = {k: v for k, v in arguments.items() if k != "window_size"}
    pairs = [str(part) for pair in arguments.items() for part in pair]
    channels = ["--channels", channels] if channels != 3 else []
    return ["--encoder", name, "--img-size", img_size, *channels, "--encoder-args", *pairs]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "field", "value"), cases())
def test_every_field_of_a_configuration(family, field, value, tmp_path, capsys):
    """Flip it, build transformers' own model, import that: the same loss, or the field is named."""
    try:
        theirs = theirs_of(family, **{field: value})
    except Exception as error:
        pytest.skip(f"transformers has no such model: {error}")
    theirs.save_pretrained(tmp_path / "theirs")
    capsys.readouterr()
    size = theirs.config.image_size
    out = tmp_path / "ours.safetensors"
    status, _, err = run(
        capsys,
        "import",
        "--source",
        tmp_path / "theirs",
        "--out",
        out,
        *arguments_for(family, size),
    )
    if status == 2:
        assert field in err or field.replace("_", " ") in err
        assert err.count("\n") == 1
        return
    assert (status, err) == (0, "")
    compare_losses(theirs, out, size)


@torch.no_grad()
def compare_losses(theirs, out, size):
    ours = load_model(out)[0].double().eval()
    images, mask = images_and_mask()
    images = images.repeat(1, 1, 2, 2)[:, :, :size, :size]
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    ours.mean, ours.std = ours.mean.double(), ours.std.double()
    stride = ours.encoder.stride
    cells = size // max(stride, 8)
    mask = torch.rand(2, cells, cells, generator=torch.Generator().manual_seed(3)) < 0.5
    patch = theirs.config.patch_size
    flat = mask.repeat_interleave(size // cells // patch, 1).repeat_interleave(
        size // cells // patch, 2
    )
    expected = theirs((images.double() / 255 - mean) / std, flat.flatten(1)).loss
    # transformers counts the pixels of an integer mask, and adds 1e-5 to them
    assert ours(images, mask).item() == pytest.approx(expected.item(), rel=1e-6)
    hidden = theirs.base_model((images.double() / 255 - mean) / std).last_hidden_state
    got = ours.encoder.backbone.forward_features((images.double() / 255 - mean) / std)
    torch.testing.assert_close(got.flatten(1, -2), hidden, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "field", "value", "status"),
    [
        ("vit", "num_attention_heads", 4, 2), ("vit", "hidden_act", "relu", 0),
        ("vit", "layer_norm_eps", 1e-3, 0), ("swin", "window_size", 2, 0),
        ("swinv2", "pretrained_window_sizes", [8, 8], 0), ("swin", "hidden_act", "relu", 2),
        ("vit", "num_channels", 1, 2),
    ],
)  # fmt: skip
def test_some_fields_of_a_configuration(family, field, value, status, tmp_path, capsys):
    """The quick part of the test of every field, with what becomes of each."""
    theirs = theirs_of(family, **{field: value})
    theirs.save_pretrained(tmp_path / "theirs")
    capsys.readouterr()
    out = tmp_path / "ours.safetensors"
    got, _, err = run(
        capsys,
        "import",
        "--source",
        tmp_path / "theirs",
        "--out",
        out,
        *arguments_for(family, SIZE),
    )
    assert got == status, err
    if status:
        assert field in err
    else:
        compare_losses(theirs, out, SIZE)


def test_unknown_fields_are_refused(tmp_path, capsys):
    theirs_of("vit").save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    capsys.readouterr()
    for change, words in (
        ({"rope": True}, "rope, of which no effect is known"),
        ({"model_type": "beit"}, "model_type 'beit'"),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        status, _, err = run(
            capsys, "import", "--source", tmp_path / "theirs", *arguments_for("vit", SIZE)
        )
        assert status == 2 and words in err


#: arguments of our encoders that change outputs, with values
OURS = {
    "vit": {
        "num_heads": [4], "mlp_ratio": [2.0], "qkv_bias": [False], "act_layer": ["relu", "gelu_tanh"],
        "norm_eps": [1e-3], "class_token": [False], "no_embed_class": [True], "reg_tokens": [2],
        "pre_norm": [True], "final_norm": [False], "qk_norm": [True], "init_values": [0.1],
        "proj_bias": [False], "pos_embed": ["none"], "scale_attn_norm": [True],
        "scale_mlp_norm": [True], "norm_layer": ["rmsnorm"], "dynamic_img_size": [True],
        "proj_drop_rate": [0.1], "attn_drop_rate": [0.1],
    },
    "swin": {
        "window_size": [2, 8], "always_partition": [True], "mlp_ratio": [2.0], "qkv_bias": [False],
        "norm_eps": [1e-3], "head_dim": [4], "patch_size": [2], "norm_layer": ["rmsnorm"],
    },
    "swinv2": {
        "window_size": [2, 8], "always_partition": [True], "mlp_ratio": [2.0], "qkv_bias": [False],
        "norm_eps": [1e-3], "pretrained_window_sizes": ["8,8", "2,4"], "act_layer": ["relu"],
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "argument", "value"),
    [(f, a, v) for f, arguments in OURS.items() for a, values in arguments.items() for v in values],
)
def test_every_argument_of_our_encoders(family, argument, value, tmp_path, capsys):
    """Exported, transformers' own model has the same loss, or the argument is named."""
    name, arguments = ENCODERS[family]
    config = PretrainConfig(
        encoder=name, encoder_args={**arguments, argument: value}, img_size=SIZE, mask_unit=8
    )
    torch.manual_seed(2)
    try:
        model = build_model(config)
    except ValueError as error:
        pytest.skip(f"there is no such encoder: {error}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    path, folder = tmp_path / "ours.safetensors", tmp_path / "theirs"
    checkpoint.save_model(path, config.to_json(), model.state_dict())
    status, _, err = run(
        capsys, "export", "--checkpoint", path, "--project", "transformers", "--out", folder
    )
    if status == 2:
        assert argument in err and err.count("\n") == 1
        assert not folder.exists()
        return
    assert (status, err) == (0, "")
    theirs = transformers.AutoModelForMaskedImageModeling.from_pretrained(folder).double().eval()
    compare_losses(theirs, path, SIZE)
