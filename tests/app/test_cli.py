"""The command line: mistakes cost one line, help explains, commands write what they say."""

from __future__ import annotations

import dataclasses
import inspect
import sys

import pytest

from simmim.cli import main, version
from simmim.config.exchange import ExportConfig, ImportConfig
from simmim.config.labels import FinetuneConfig, ProbeConfig
from simmim.config.pretrain import PretrainConfig, ReconstructConfig
from simmim.presets import PRESETS
from simmim.training.metrics import read_metrics

FAST = (
    *("--encoder", "vit_tiny_patch16_224", "--img-size", 32, "--mask-unit", 8, "--device", "cpu"),
    *("--precision", "32-true", "--workers", 0, "--warmup-epochs", 0, "--batch-size", 4),
    *("--encoder-args", "patch_size", 8, "embed_dim", 16, "depth", 1, "num_heads", 2),
)
PRETRAIN = ("pretrain", "--data", "DATA", "--out", "OUT", *FAST)
MISTAKES = {
    "empty folder": (("pretrain", "--data", "EMPTY"), "no images in"),
    "no folder": (("pretrain", "--data", "NOWHERE"), "no such file or folder"),
    "no data": (("pretrain",), "--data FOLDER"),
    "encoder": ((*PRETRAIN, "--encoder", "swin_bse_patch4_window7_224"), "did you mean swin_base"),
    "size": ((*PRETRAIN, "--img-size", 36, 40), "not a multiple of the mask unit, 8 pixels"),
    "stride": (
        (*PRETRAIN, "--encoder", "swin_tiny_patch4_window7_224", "--encoder-args", "depths", 1),
        "timm cannot build",
    ),
    "numbers": ((*PRETRAIN, "--encoder-args", "depths", "2,x"), "belong whole numbers"),
    "patch": ((*PRETRAIN, "--mask-unit", 4), "no multiple of the encoder's patch, 8 pixels"),
    "ratio": ((*PRETRAIN, "--mask-ratio", 1.5), "between 0 and 1"),
    "batch": ((*PRETRAIN, "--batch-size", 100), "lower --batch-size"),
    "passes": ((*PRETRAIN, "--accumulate", 64), "of 256: lower --accumulate, 64, or --batch-size"),
    "epochs": ((*PRETRAIN, "--epochs", 0), "--epochs must be at least 1"),
    "channels": ((*PRETRAIN, "--channels", 2), "run  simmim stats --data"),
    "workers": ((*PRETRAIN, "--workers", -1), "--workers must be at least 0, not -1"),
    "processes": ((*PRETRAIN, "--workers", 10**23), "--workers must be at most 1024, not"),
    "crops": ((*PRETRAIN, "--crops-per-image", 10**23), "must be at most 1000000, not"),
    "betas": ((*PRETRAIN, "--betas", 0.9, 1), "--betas must be at least 0 and less than 1, not 1"),
    "empty data": (("pretrain", "--data", ""), "--data is empty: name a file or folder, or ."),
    "empty validation": ((*PRETRAIN, "--val-data="), "--val-data is empty: name"),
    "empty out": (("pretrain", "--data", "DATA", "--out=", *FAST), "--out is empty: name"),
    "held out": ((*PRETRAIN, "--val-count", -1), "--val-count must be at least 0, not -1"),
    "rate": ((*PRETRAIN, "--lr", "nan"), "--lr must be at least 0, not nan"),
    "seed": ((*PRETRAIN, "--seed", 2**70), "--seed must be between 0 and 2**63 - 1"),
    "flip": ((*PRETRAIN, "--flip", 2), "--flip must be between 0 and 1, not 2"),
    "scale": ((*PRETRAIN, "--crop-scale", 1, 0.5), "--crop-scale takes two numbers"),
    "aspect": ((*PRETRAIN, "--crop-ratio", 0, 1), "the smaller one first, not 0 1"),
    "given": ((*PRETRAIN, "--encoder-args", "pretrained", 1), "no weights are downloaded"),
    "no encoder": ((*PRETRAIN, "--encoder-args", "num_heads", 0), "timm cannot build"),
    "no block": (
        (
            *PRETRAIN,
            "--encoder",
            "vit_tiny_patch16_224",
            "--mask-unit",
            16,
            "--encoder-args",
            "depth",
            0,
        ),
        "encoder 'vit_tiny_patch16_224': it has no block",
    ),
    "cnn": ((*PRETRAIN, "--encoder", "cnn", "--encoder-args", "depth", 3), "widths 64,128,64"),
    "cnn tuned": (
        ("finetune", "--data", "DATA", "--encoder", "cnn", "--device", "cpu"),
        "encoder 'cnn' has no residual branches: give --drop-path 0",
    ),
    "out": (("pretrain", "--data", "DATA", "--out", "FILE", *FAST), "Not a directory"),
    "gpu": ((*PRETRAIN, "--device", "cuda"), "sees no GPU"),
    "checkpoint": (("reconstruct", "--checkpoint", "NOWHERE"), "no such checkpoint"),
}


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(a) for a in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_cost_one_line(mistake, photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    places = {
        "DATA": photographs,
        "OUT": tmp_path / "run",
        "EMPTY": tmp_path / "empty",
        "NOWHERE": tmp_path / "nowhere",
        "FILE": photographs / "part0" / "0.png",
    }
    arguments, words = MISTAKES[mistake]
    status, _, err = run(capsys, *(places.get(a, a) for a in arguments))
    assert status == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_mistake_ends_the_process_with_status_2(simmim, tmp_path):
    result = simmim("pretrain", "--data", tmp_path, "--out", tmp_path / "run")
    assert result.returncode == 2
    first, last = result.stderr.splitlines()
    assert first.startswith(f"simmim {version()}: pretrain on {tmp_path}, results in")
    assert last.startswith("simmim: no images in")


@pytest.mark.parametrize("command", ["stats", "pack"])
def test_streams_may_be_closed(command, photographs, tmp_path, monkeypatch):
    """As by a shell's ``>&-``: Python puts None in their places."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    out = tmp_path / "out"
    assert main([command, "--data", str(photographs), "--out", str(out)]) == 0 and out.exists()


def test_no_command_at_all_names_them(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(command in said for command in COMMANDS)


def test_an_unknown_flag_has_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["pretrain", "--mask-rato", "0.5"])
    assert caught.value.code == 2
    assert "--mask-ratio" in "".join(capsys.readouterr())


COMMANDS = {
    "pretrain": PretrainConfig,
    "reconstruct": ReconstructConfig,
    "finetune": FinetuneConfig,
    "probe": ProbeConfig,
    "import": ImportConfig,
    "export": ExportConfig,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_field(command, capsys):
    config = COMMANDS[command]
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    lines = "".join(map(inspect.getsource, filter(dataclasses.is_dataclass, config.__mro__)))
    for field in dataclasses.fields(config):
        assert "--" + field.name.replace("_", "-") in text
        documented = lines.split(f"    {field.name}: ")[1].split("\n    ", 1)[1]
        assert documented.startswith('"""'), field.name
        first_words = documented.removeprefix('"""').split('"""')[0].split()[:5]
        assert " ".join(first_words) in text, field.name


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_say_their_name(name):
    preset = PRESETS[name]
    assert preset.preset == name
    assert PretrainConfig.from_json(preset.to_json()) == preset


def test_published_recipes():
    for name in ("vit-b", "swin-b"):
        recipe = PRESETS[name]
        assert recipe.batch_size * recipe.accumulate == 2048
        assert (recipe.epochs, recipe.warmup_epochs, recipe.schedule) == (800, 10, "step")
        assert (recipe.lr, recipe.warmup_lr, recipe.weight_decay) == (1e-4, 5e-7, 0.05)
        assert (recipe.clip, recipe.mask_unit, recipe.mask_ratio) == (5.0, 32, 0.6)
        assert (recipe.crop_scale, recipe.crop_ratio) == ((0.67, 1.0), (3 / 4, 4 / 3))
    assert (PRESETS["vit-b"].img_size, PRESETS["vit-b"].drop_path) == (224, 0.1)
    assert (PRESETS["swin-b"].img_size, PRESETS["swin-b"].drop_path) == (192, 0.0)


def test_flags_override_the_preset(photographs, tmp_path, capsys):
    status, out, err = run(
        capsys,
        *("pretrain", "--preset=tutorial", "--data", photographs, "--out", tmp_path / "run"),
        *("--img-size", 24, 32, "--epochs", 1, "--batch-size", 2, "--workers", 0),
        *("--device", "cpu", "--precision", "32-true", "--val-count", 2, "--log-every", 1),
    )
    assert status == 0
    config = PretrainConfig.from_json((tmp_path / "run" / "config.json").read_text())
    assert (config.encoder, config.loss, config.mask) == ("cnn", "mse", "box")
    assert (config.img_size, config.epochs) == ((24, 32), 1)
    assert "validation loss" in out
    assert "predicting the mean of the visible part" in out
    assert "images/s" in out
    assert "3/3" in err


def test_training_and_reconstructing_write_what_they_name(photographs, tmp_path, capsys):
    (photographs / "part1" / "1.png").write_bytes(b"")
    out = tmp_path / "run"
    status, text, _ = run(
        capsys,
        *("pretrain", "--data", photographs, "--out", out, *FAST, "--epochs", 2, "--batch-size", 2),
        *("--val-count", 2, "--picture", 2, "--log-every", 1),
    )
    assert status == 0
    named = [line.split()[-1] for line in text.splitlines() if line.startswith("  ")]
    assert len(named) == 6
    for path in named:
        assert out in tmp_path.joinpath(path).parents, path
        assert tmp_path.joinpath(path).exists(), path
    assert "1 of 8 images could not be read" in text
    assert len([r for r in read_metrics(out / "metrics.csv") if r["split"] == "train"]) == 6

    picture = tmp_path / "new" / "picture.png"
    status, text, err = run(
        capsys,
        *("reconstruct", "--checkpoint", out / "checkpoints" / "last.pt"),
        *("--data", photographs, "--out", picture, "--count", 8),
    )
    assert (status, picture.exists()) == (0, True)
    assert "skipped" in err
    assert "1.png" in err


def test_a_missing_package_is_named(monkeypatch, photographs, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "lightning_fabric", raising=False)
    status, _, err = run(capsys, "pretrain", "--data", photographs)
    assert status == 2
    assert 'pip install "simmim-kernels[train]"' in err
    assert "tyro" in err


class Absent:
    """An import hook that finds a package as little as Python does where it is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [("skimage", "demo", ("pretrain", "--preset", "demo")), ("sklearn", "probe", ("probe",))],
)
def test_an_extra_that_is_missing_is_named(package, extra, command, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(package), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "simmim.evaluation.probe", raising=False)
    more = ("--checkpoint", tmp_path / "c.pt", "--data", tmp_path) if extra == "probe" else ()
    status, _, err = run(capsys, *command, *more, "--out", tmp_path / "run")
    assert status == 2
    assert f'{package}, which is not installed: pip install "simmim-kernels[{extra}]"' in err


def test_ends_of_names_that_no_parameter_has_are_refused(photographs, tmp_path, capsys):
    """But for a preset's own, whose encoder may have been replaced."""
    given = ("--data", photographs, *FAST, "--epochs", 1, "--out")
    also = ("--also-decay", "mask_token", "nonsense")
    status, _, error = run(capsys, "pretrain", *given, tmp_path / "a", *also)
    words = "simmim: --also-decay nonsense: no parameter of vit_tiny_patch16_224 ends so\n"
    assert status == 2 and error.endswith(words)
    preset = ("--preset", "swin-b", "--accumulate", 1)
    assert run(capsys, "pretrain", *given, tmp_path / "b", *preset)[0] == 0


def test_resuming_takes_the_settings_of_the_run(photographs, labelled, tmp_path, capsys):
    out = tmp_path / "out"
    begin = ("pretrain", "--data", photographs, "--out", out, *FAST, "--lr", 0.5, "--overwrite")
    assert run(capsys, *begin, "--epochs", 1)[0] == 0
    status, said, error = run(capsys, "pretrain", f"--out={out}", "--resume", "--epochs", 2)
    assert status == 0, error
    assert "--epochs 2 instead of 1" in said + error and "--lr" not in said + error
    written = PretrainConfig.from_json((out / "config.json").read_text())
    assert (written.lr, written.epochs, written.encoder_args["depth"]) == (0.5, 2, 1)
    repeated = ("pretrain", "--out", out, "--resume", *FAST, "--epochs", 2)
    assert run(capsys, *repeated)[0] == 0
    status, _, error = run(capsys, "pretrain", "--out", out, "--resume", "--img-size", 64)
    assert status == 2 and "--img-size 32, not 64" in error
    # another command's run is none of this one's
    status, _, error = run(capsys, "finetune", "--out", out, "--resume", "--data", labelled)
    assert status == 2 and "--checkpoint" in error
