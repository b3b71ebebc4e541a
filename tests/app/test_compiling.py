"""``--compile``: when it is done, that it changes nothing but the speed, and how it fails."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
import torch._inductor.config

from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.models.build import build_masking, build_model
from simmim.models.classifier import Classifier
from simmim.storage import checkpoint
from simmim.training import compiling
from simmim.training.compiling import is_worth_compiling
from simmim.training.finetune import Finetuner
from simmim.training.metrics import read_metrics
from simmim.training.pretrain import Trainer

from .conftest import TINY
from .labels import finetuning
from .test_resume import assert_same_run

SWIN = {"embed_dim": 24, "depths": "1,1", "num_heads": "1,2", "window_size": 2}
DECODER = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
# every family and every target; a target does the same for each family
MODELS = {
    "vit": {},
    "beit, window targets": {
        "encoder": "beit_base_patch16_224",
        "encoder_args": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        **{"target_norm": "window", "target_window": 5, "loss": "smooth_l1"},
    },
    "swin, histograms": {
        "encoder": "swin_tiny_patch4_window7_224",
        "encoder_args": SWIN,
        **{"target": "hog", "loss": "mse"},
    },
    "swinv2, low-pass targets": {
        "encoder": "swinv2_tiny_window8_256",
        "encoder_args": SWIN,
        "target": "lowpass",
    },
    "cnn": {"encoder": "cnn", "encoder_args": {"widths": "4,4,4"}, "normalize": False},
    "mae": {"method": "mae", **DECODER, "target_norm": "patch"},
    "mae swin": {
        **{"method": "mae", **DECODER, "mask": "uniform", "mask_ratio": 0.75},
        **{"encoder": "swin_tiny_patch4_window7_224", "encoder_args": SWIN},
    },
}
# the families' graphs; Inductor's part, which takes most of the time, is the same for the others
INDUCTOR = ("beit, window targets", "cnn")
SHALLOW = {**TINY, "encoder_args": {**TINY["encoder_args"], "depth": 1}}


def config_of(photographs, out, **options) -> PretrainConfig:
    options = {**SHALLOW, "batch_size": 4, "epochs": 4, "val_count": 2, "log_every": 1, **options}
    return PretrainConfig(data=photographs, out=out, save_every=2, keep=9, **options)


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


def test_what_is_worth_it():
    vit = torch.nn.Identity()
    assert is_worth_compiling(vit, "cpu", "bf16-mixed", 0.37, 100_000) == (
        True,
        "with 10:16:40 left at 0.37 s an update it is earned back",
    )
    assert is_worth_compiling(vit, "cuda", "32-true", 0.37, 300) == (
        False,
        "1:51 left at 0.37 s an update would not earn back the minute that it takes",
    )


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_more_is_needed_for_swin_and_in_float32(name):
    swin = timm.create_model(name, embed_dim=8, depths=(1,), num_heads=(1,))

    def least(model, device, precision):
        return next(
            m for m in range(120) if is_worth_compiling(model, device, precision, 1, 60 * m)[0]
        )

    vit = torch.nn.Identity()
    assert [least(vit, "cpu", "bf16-mixed"), least(vit, "cuda", "32-true")] == [11, 11]
    assert least(vit, "cpu", "32-true") == 51
    assert least(swin, "cpu", "bf16-mixed") == 41
    why = is_worth_compiling(swin, "cpu", "bf16-mixed", 1, 60 * 30)[1]
    assert why == "30:00 left at 1 s an update would not earn back the 4 minutes that it takes"
    why = (False, "a Swin is no faster compiled, in float32 on a CPU")
    assert is_worth_compiling(swin, "cpu", "32-true", 1, 10**6) == why


def test_a_short_run_is_not_compiled(photographs, tmp_path, capfd):
    config = config_of(photographs, tmp_path / "run", epochs=4)
    Trainer(config).fit()
    lines = capfd.readouterr().err.splitlines()
    said = [line for line in lines if "compil" in line and "into" not in line]
    assert len(said) == 1 and said[0].startswith("not compiled: 0:00 left at")


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_every_model_is_one_graph_that_gives_the_same_gradients(kind, photographs):
    options = {**SHALLOW, "drop_path": 0.0, **MODELS[kind]}
    dropping = {"proj_drop_rate": 0.0} if options["encoder"] == TINY["encoder"] else {}
    options["encoder_args"] = {**options["encoder_args"], **dropping}
    config = PretrainConfig(data=photographs, batch_size=4, **options)
    torch.manual_seed(0)
    model = build_model(config).train()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    mask = build_masking(config)(torch.arange(4), seed=0)
    backend = "inductor" if kind in INDUCTOR else "aot_eager"
    options = {"fullgraph": True, "dynamic": False, "backend": backend}
    results = []
    for forward in (model, torch.compile(model, **options)):
        torch.manual_seed(1)
        loss = forward(images, mask)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([loss.detach(), *gradients])
        model.zero_grad()
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_a_classifier_is_one_graph(photographs):
    config = PretrainConfig(data=photographs, **SHALLOW)
    model = Classifier(build_model(config).encoder, 3)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    scores = torch.compile(model.eval(), fullgraph=True)(images)
    torch.testing.assert_close(scores, model(images))


@pytest.mark.slow
def test_a_resumed_compiled_run_is_the_uninterrupted_one(photographs, tmp_path, monkeypatch):
    """With dropout, and with validations between the updates: auto, resumed before and after it has
    decided, and on, all bit for bit."""
    monkeypatch.setattr(compiling, "COSTS", -1.0)
    for wanted, at in (("auto", 2), ("auto", 4), ("on", 2)):
        whole, out = tmp_path / f"whole {wanted}", tmp_path / f"{wanted} {at}"
        config = config_of(photographs, whole, compile=wanted, epochs=6)
        if not whole.exists():
            Trainer(config).fit()
        stopped = dataclasses.replace(config, out=out)
        _stop_at(stopped, at)
        Trainer(dataclasses.replace(stopped, resume=True)).fit()
        assert_same_run(whole, out)
        state = checkpoint.load(out / "checkpoints" / checkpoint.LAST)
        assert state["counters"]["compiled"] is True


def _stop_at(config: PretrainConfig, update: int) -> None:
    """Train as far as a signal would have let it come."""
    trainer = Trainer(config)
    step = trainer._update

    def make_one():
        step()
        return 15 if trainer.update == update else 0

    trainer._update = make_one
    trainer._reason_to_stop = lambda: 15 if trainer.update == update else 0
    assert trainer.fit().updates == update


@pytest.mark.slow
def test_compiling_changes_nothing_but_the_speed(photographs, tmp_path):
    """The same images are dropped at random, in a short last update too."""
    losses = []
    for wanted in ("off", "on"):
        config = config_of(
            photographs, tmp_path / wanted, compile=wanted, keep_rest=True, lr=1e-3, accumulate=2
        )
        config = dataclasses.replace(config, batch_size=2)
        Trainer(config).fit()
        rows = read_metrics(config.out / "metrics.csv")
        losses.append(torch.tensor([float(row["loss"]) for row in rows]))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_fine_tuning_compiles(labelled, tmp_path, capfd):
    config = finetuning(labelled, tmp_path / "run", epochs=2, compile="on", batch_size=4)
    assert Finetuner(config).fit().updates > 0
    assert "compiled in" in capfd.readouterr().err


WITHOUT_COMPILER = {
    "auto": (0, "not compiled: "),
    "on": (2, "simmim: --compile on: the model cannot be compiled: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("wanted", WITHOUT_COMPILER)
def test_without_a_compiler(wanted, photographs, tmp_path, monkeypatch, capfd, simmim):
    flags = ("--encoder", "cnn", "--img-size", 32, "--mask-unit", 8, "--device", "cpu")
    flags = (*flags, "--batch-size", 4, "--epochs", 3, "--compile", wanted, "--workers", 0)
    flags = ("pretrain", "--data", photographs, "--out", tmp_path / "run", *flags)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    if wanted == "on":
        monkeypatch.setenv("CXX", "/nowhere/c++")
        ended = simmim(*flags)
        status, errors = ended.returncode, ended.stderr
    else:  # a run of seconds that auto takes for worth it, with what PyTorch makes of CXX
        monkeypatch.setattr(compiling, "COSTS", -1.0)
        with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/c++")}):
            status = main(list(map(str, flags)))
        errors = capfd.readouterr().err
    expected, words = WITHOUT_COMPILER[wanted]
    assert status == expected, errors
    lines = [line for line in errors.splitlines() if "C++ compiler" in line]
    assert len(lines) == 1 and lines[0].startswith(words)
    assert "Traceback" not in errors
