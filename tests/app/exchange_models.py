"""Small models in the formats that import and export know, and the command line on them."""

from __future__ import annotations

import torch

import simmim_kernels as sk
from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.models.build import build_model
from simmim.storage import checkpoint

SWIN = {"embed_dim": 16, "depths": "1,2", "num_heads": "2,4", "window_size": 4}
ENCODERS = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}),
    "beit": ("simmim_vit_base", {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
}
SIZE = 32


def config_of(family, **changes):
    name, arguments = ENCODERS[family]
    return PretrainConfig(encoder=name, encoder_args=arguments | changes, img_size=SIZE)


def model_of(family, **changes):
    model = build_model(config_of(family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def saved(model, family, tmp_path, **changes):
    path = tmp_path / "ours.safetensors"
    checkpoint.save_model(path, config_of(family, **changes).to_json(), model.state_dict())
    return path


def arguments_of(family, **changes):
    name, arguments = ENCODERS[family]
    pairs = [str(part) for pair in (arguments | changes).items() for part in pair]
    return ["--encoder", name, "--img-size", str(SIZE), "--encoder-args", *pairs]


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def images_and_mask():
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    return images, sk.random_mask(2, (4, 4), 0.5, seed=1)
