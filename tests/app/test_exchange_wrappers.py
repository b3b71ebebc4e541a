"""Files as the other projects' own classes and functions write them."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import timm
import timm.scheduler
import torch
from torch import nn

from simmim.models.simmim import IMAGENET_MEAN, IMAGENET_STD
from simmim.storage import checkpoint
from simmim_kernels.integrations import checkpoints
from tests.app.exchange_models import SIZE, arguments_of, images_and_mask, model_of, run

yacs = pytest.importorskip("yacs.config")
transformers = pytest.importorskip("transformers")
lightning = pytest.importorskip("lightning")


@pytest.fixture
def imports(tmp_path, capsys):
    """Import a file; what was printed and the tensors that came of it, or the error."""

    def run_import(source, family, *more, status=0):
        out = tmp_path / "ours.safetensors"
        capsys.readouterr()  # what the other project printed
        got, printed, err = run(
            *(capsys, "import", "--source", source, "--out", out, "--overwrite"),
            *(*arguments_of(family), *more),
        )
        assert got == status, err
        assert err.count("\n") == (status != 0)
        return (printed, checkpoint.load(out, kind=None)["model"]) if status == 0 else err

    return run_import


def assert_same(found, model, encoder_only=False):
    for name, value in model.state_dict().items():
        if not encoder_only or name.startswith("encoder.backbone."):
            assert torch.equal(found[name], value), name


class Theirs(nn.Module):
    """A module whose parameters have microsoft's names."""

    def __init__(self, model):
        super().__init__()
        for name, value in checkpoints.from_simmim(model.state_dict(), "microsoft").items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            module.register_parameter(last, nn.Parameter(value.clone()))

    def forward(self, x):
        return x * self.encoder.mask_token.mean()


def microsoft_config(family):
    """The nodes of microsoft's configuration that matter here, of yacs' own class, frozen."""
    node = yacs.CfgNode
    swin = {
        "PATCH_SIZE": 4, "IN_CHANS": 3, "EMBED_DIM": 16, "DEPTHS": [1, 2], "NUM_HEADS": [2, 4],
        "WINDOW_SIZE": 4, "MLP_RATIO": 4.0, "QKV_BIAS": True, "APE": False, "PATCH_NORM": True,
    }  # fmt: skip
    vit = {
        "PATCH_SIZE": 8, "IN_CHANS": 3, "EMBED_DIM": 16, "DEPTH": 2, "NUM_HEADS": 2, "MLP_RATIO": 4,
        "QKV_BIAS": True, "INIT_VALUES": 0.1, "USE_APE": False, "USE_RPB": False,
        "USE_SHARED_RPB": True, "USE_MEAN_POOLING": False,
    }  # fmt: skip
    model = {"TYPE": family, "NAME": "simmim", "SWIN": {**swin, "QK_SCALE": None}, "SWINV2": swin}
    config = node({"DATA": {"IMG_SIZE": SIZE}, "MODEL": {**model, "VIT": vit}, "AMP": "O1"})
    config.set_new_allowed(True)
    config.freeze()
    return config


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("family", "theirs"), [("beit", "vit"), ("swin", "swin"), ("swinv2",) * 2])
def test_microsofts_save_checkpoint(family, theirs, scaled, tmp_path, imports):
    """`save_checkpoint` of microsoft/SimMIM, and with a scaler that of microsoft/Swin-Transformer."""
    model = model_of(family)
    module = Theirs(model)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module.encoder.mask_token.grad = torch.ones_like(module.encoder.mask_token)
    optimizer.step()
    scheduler = timm.scheduler.CosineLRScheduler(optimizer, t_initial=10, t_in_epochs=False)
    state = {
        "model": checkpoints.from_simmim(model.state_dict(), "microsoft"),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "max_accuracy": np.float64(0.5),
        "epoch": 799,
        "config": microsoft_config(theirs),
    }
    if scaled:
        state["scaler"] = torch.amp.GradScaler("cpu").state_dict()
    torch.save(state, tmp_path / "ckpt_epoch_799.pth")
    _, found = imports(tmp_path / "ckpt_epoch_799.pth", family)
    assert_same(found, model)


def test_microsofts_settings_are_heeded(tmp_path, imports):
    """What no tensor of a SwinV2 shows is taken from the configuration, or refused by name."""
    model = model_of("swinv2")
    theirs = checkpoints.from_simmim(model.state_dict(), "microsoft")
    config = microsoft_config("swinv2")
    config.defrost()
    config.MODEL.SWINV2.WINDOW_SIZE = 2
    torch.save({"model": theirs, "config": config}, tmp_path / "a.pth")
    err = imports(tmp_path / "a.pth", "swinv2", status=2)
    assert "MODEL.SWINV2.WINDOW_SIZE 2" in err and "leave that argument out" in err
    config.MODEL.SWINV2.WINDOW_SIZE, config.MODEL.SWINV2.APE = 4, True
    torch.save({"model": theirs, "config": config}, tmp_path / "a.pth")
    assert "MODEL.SWINV2.APE" in imports(tmp_path / "a.pth", "swinv2", status=2)


def test_objects_beside_the_weights(tmp_path, imports):
    model = model_of("swin")
    state = {
        "args": argparse.Namespace(lr=np.float32(1e-3), path=tmp_path, betas=(0.9, 0.95)),
        "metrics": {"loss": np.float64(0.3), "curve": np.arange(3.0), "best": np.int64(4)},
        "rng": torch.get_rng_state(),
        "model_state": checkpoints.from_simmim(model.state_dict(), "microsoft"),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "whole": nn.Linear(2, 2),
    }
    torch.save(state, tmp_path / "a.pt")
    assert_same(imports(tmp_path / "a.pt", "swin")[1], model)


class Lit(lightning.LightningModule):
    def __init__(self, model, settings):
        super().__init__()
        self.save_hyperparameters({"settings": settings, "width": np.int64(3)})
        self.net = model

    def training_step(self, batch, _):
        return self.net(batch[0]).mean()

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(torch.ones(2, 1))
        return torch.utils.data.DataLoader(data, batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def distributed(module, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(module).state_dict()
    finally:
        torch.distributed.destroy_process_group()


def trained_by_lightning(module, folder, *callbacks):
    trainer = lightning.Trainer(
        max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, accelerator="cpu", callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(Lit(module, argparse.Namespace(a=1)))
    return next(folder.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "wrapper", ["DDP", "compile", "compiled inside", "Lightning", "averaged", "whole module"]
)
def test_wrappers_of_modules(wrapper, tmp_path, imports):
    model = model_of("beit")
    module, path = Theirs(model), tmp_path / "a.pt"
    if wrapper == "Lightning":
        path = trained_by_lightning(module, tmp_path)
    elif wrapper == "DDP":
        torch.save({"model": distributed(module, tmp_path / "store")}, path)
    elif wrapper == "compile":
        torch.save(torch.compile(module).state_dict(), path)
    elif wrapper == "compiled inside":
        module.encoder = torch.compile(module.encoder)
        torch.save({"state_dict": nn.ModuleDict({"net": module}).state_dict()}, path)
    elif wrapper == "averaged":
        torch.save(torch.optim.swa_utils.AveragedModel(module).state_dict(), path)
    else:
        torch.save(module, path)
    assert_same(imports(path, "beit")[1], model)


AVERAGES = {
    "StochasticWeightAveraging": {"swa_lrs": 1e-3, "swa_epoch_start": 1},
    "EMAWeightAveraging": {},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_copies_that_lightnings_callbacks_keep(name, tmp_path, imports):
    """The model that Lightning loads again is taken, the copy told of."""
    callback = getattr(lightning.pytorch.callbacks, name, None)
    if callback is None:
        pytest.skip(f"this Lightning has no {name}")
    model = model_of("swin")
    path = trained_by_lightning(Theirs(model), tmp_path, callback(**AVERAGES[name]))
    printed, found = imports(path, "swin")
    assert_same(found, model)
    assert "took the weights under state_dict" in printed and "left: " in printed


@pytest.mark.parametrize("version", [2, 3])
def test_files_with_an_ema_copy(version, tmp_path, imports):
    plain, averaged = model_of("swin"), model_of("swin")
    ema = getattr(timm.utils, f"ModelEmaV{version}")(Theirs(averaged))
    theirs = checkpoints.from_simmim(plain.state_dict(), "microsoft")
    path = tmp_path / "a.pth"
    for key, weights in (
        ("state_dict_ema", ema.module.state_dict()),
        ("model_ema", ema.state_dict()),
    ):
        torch.save({"arch": "swin", "state_dict": theirs, key: weights}, path)
        printed, found = imports(path, "swin")
        assert_same(found, plain)
        assert f"left: {key}" in printed and "--weights" in printed
        assert_same(imports(path, "swin", "--weights", key)[1], averaged)
        torch.save({"epoch": 3, key: weights}, path)
        printed, found = imports(path, "swin")
        assert_same(found, averaged)
        assert f"took the weights under {key}" in printed


def test_several_models_must_be_chosen_from(tmp_path, imports):
    student, teacher = model_of("swin"), model_of("swin")
    both = nn.ModuleDict({"student": Theirs(student), "teacher": Theirs(teacher)})
    torch.save({"state_dict": both.state_dict()}, tmp_path / "a.pth")
    err = imports(tmp_path / "a.pth", "swin", status=2)
    assert "state_dict.student, state_dict.teacher: say which by --weights" in err
    assert_same(imports(tmp_path / "a.pth", "swin", "--weights", "teacher")[1], teacher)
    err = imports(tmp_path / "a.pth", "swin", "--weights", "nobody", status=2)
    assert "no model under nobody: it has state_dict.student" in err


def test_weights_that_are_no_tensors(tmp_path, imports):
    theirs = checkpoints.from_simmim(model_of("swin").state_dict(), "microsoft")
    theirs["encoder.norm.bias"] = theirs["encoder.norm.bias"].numpy()
    torch.save({"model": theirs}, tmp_path / "a.pth")
    err = imports(tmp_path / "a.pth", "swin", status=2)
    assert "encoder.norm.bias (numpy." in err and "torch.as_tensor" in err


def test_swinv2_in_its_published_names(tmp_path, imports):
    model = model_of("swinv2")
    theirs = checkpoints.from_simmim(model.state_dict(), "microsoft")
    published = {name.replace("cpb_mlp", "rpe_mlp"): value for name, value in theirs.items()}
    assert published.keys() != theirs.keys()
    torch.save({"model": published}, tmp_path / "a.pth")
    assert_same(imports(tmp_path / "a.pth", "swinv2")[1], model)


def test_mae_of_facebookresearch(tmp_path, imports):
    """timm's names and a decoder; `save_model` stores an argparse.Namespace beside."""
    model = model_of("vit")
    state = checkpoints.from_simmim(model.state_dict(), "timm")
    decoder = nn.ModuleDict(
        {
            "decoder_embed": nn.Linear(16, 8),
            "decoder_blocks": nn.ModuleList(
                [timm.models.vision_transformer.Block(8, 2, qkv_bias=True)]
            ),
            "decoder_norm": nn.LayerNorm(8),
            "decoder_pred": nn.Linear(8, 192),
        }
    )
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    state |= decoder.state_dict()
    scaler = torch.amp.GradScaler("cpu").state_dict()
    torch.save(
        {"model": state, "epoch": 1, "scaler": scaler, "args": argparse.Namespace(lr=1)},
        tmp_path / "a.pth",
    )
    printed, found = imports(tmp_path / "a.pth", "vit", "--encoder-only")
    assert_same(found, model, encoder_only=True)
    for part in ("decoder_blocks (12 tensors)", "mask_token", "head (2 tensors)"):
        assert part in printed
    assert "--encoder-only" in imports(tmp_path / "a.pth", "vit", status=2)


def vit_config(cls=transformers.ViTConfig, **changes):
    return cls(
        **{
            "image_size": SIZE, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 64, "encoder_stride": 8, **changes,
        }
    )  # fmt: skip


def swin_config(cls, **changes):
    sizes = {"image_size": SIZE, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]}
    return cls(**{**sizes, "window_size": 4, "encoder_stride": 8, **changes})


def backbones():
    mae = vit_config(
        transformers.ViTMAEConfig, decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=16, mask_ratio=0.0,
    )  # fmt: skip
    return {
        "ViTModel": ("vit", transformers.ViTModel(vit_config())),
        "ViTModel with mask token": (
            "vit", transformers.ViTModel(vit_config(), use_mask_token=True),
        ),
        "ViTMAEForPreTraining": ("vit", transformers.ViTMAEForPreTraining(mae)),
        "ViTForImageClassification": ("vit", transformers.ViTForImageClassification(vit_config())),
        "SwinModel": ("swin", transformers.SwinModel(swin_config(transformers.SwinConfig))),
        "Swinv2Model": ("swinv2", transformers.Swinv2Model(swin_config(transformers.Swinv2Config))),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("name", backbones())
def test_backbones_of_transformers(name, shards, tmp_path, imports):
    torch.manual_seed(1)
    family, theirs = backbones()[name]
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path / "it", max_shard_size="20KB" if shards else "1GB")
    assert len(list((tmp_path / "it").glob("*.safetensors"))) > shards
    assert "--encoder-only" in imports(tmp_path / "it", family, status=2)
    printed, found = imports(tmp_path / "it", family, "--encoder-only")
    for part, listed in (("MAE", "decoder_blocks ("), ("Classification", "classifier (2 tensors)")):
        assert part not in name or listed in printed
    compare_features(theirs, tmp_path / "ours.safetensors", name)
    torch.save(theirs.state_dict(), tmp_path / "memory.pt")
    from_memory = imports(tmp_path / "memory.pt", family, "--encoder-only")[1]
    assert_equal = [torch.equal(found[n], v) for n, v in from_memory.items() if "backbone" in n]
    assert all(assert_equal)


@torch.no_grad()
def compare_features(theirs, path, name):
    from simmim.evaluation.reconstruct import load_model

    ours, images = load_model(path)[0].eval().double(), images_and_mask()[0]
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    x = (images.double() / 255 - mean) / std
    inner = getattr(theirs, "vit", theirs).double()
    if "MAE" in name:
        # without masks; the noise decides the order, which is put back
        noise = torch.arange(16).repeat(2, 1) / 16
        expected = inner(x, noise=noise).last_hidden_state
    else:
        expected = inner(x).last_hidden_state
    got = ours.encoder.backbone.forward_features(x)
    torch.testing.assert_close(got.flatten(1, -2), expected, rtol=1e-9, atol=1e-9)


def test_a_damaged_index_of_shards(tmp_path, imports):
    theirs = transformers.ViTModel(vit_config())
    theirs.save_pretrained(tmp_path / "it", max_shard_size="20KB")
    index = tmp_path / "it" / "model.safetensors.index.json"
    for text in ("[]", "{", '{"weight_map": {"a": "../../x.safetensors"}}'):
        index.write_text(text)
        assert "no index of shards" in imports(tmp_path / "it", "vit", "--encoder-only", status=2)
