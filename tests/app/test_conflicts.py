"""Settings that contradict each other cost one line; numbers that are not finite do everywhere."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from pathlib import Path

import pytest

from simmim.cli import main, version
from simmim.config.conflicts import check_conflicts, remarks
from simmim.config.exchange import ExportConfig, ImportConfig
from simmim.config.labels import FinetuneConfig, ProbeConfig
from simmim.config.numbers import check_numbers, flag
from simmim.config.pretrain import PretrainConfig, ReconstructConfig
from simmim.errors import UserError
from simmim.models.masking import Masking
from simmim.presets import PRESETS

DATA = ("--data", "nowhere")
PRETRAIN = ("pretrain", *DATA)
FINETUNE = ("finetune", *DATA, "--encoder", "cnn")
CONFLICTS = {
    "resume": ((*PRETRAIN, "--resume", "--overwrite"), "give one of them"),
    "two folders": (
        (*PRETRAIN, "--data", "there"),
        "--data is given more than once: nowhere, there",
    ),
    "resume finetune": ((*FINETUNE, "--resume", "--overwrite"), "give one of them"),
    "held out twice": (
        (*PRETRAIN, "--val-data", "there", "--val-count", 2),
        "--val-count holds images of --data out, --val-data brings others",
    ),
    "share": (
        (*FINETUNE, "--val-data", "there", "--val-share", 0.5),
        "--val-share holds images of --data out, --val-data brings others",
    ),
    "share probe": (
        ("probe", *DATA, "--val-data", "there", "--val-share", 0.5),
        "--val-share holds images of --data out, --val-data brings others",
    ),
    "black alone": ((*PRETRAIN, "--low", 0), "--low and --high belong together"),
    "black": ((*PRETRAIN, "--low", 0, "--high", 1), "--low has 1 numbers for 3 channels"),
    "black above white": (
        (*PRETRAIN, "--low", 1, 1, 1, "--high", 2, 0, 2),
        "--low is larger than --high in some channel",
    ),
    "percentiles": (
        (*PRETRAIN, "--stats", "x", "--clip-percentile", 98, 2),
        "--clip-percentile takes two percentiles, the smaller one first",
    ),
    "rates": ((*PRETRAIN, "--lr", 1e-7), "--min-lr 1e-06 is larger than --lr 1e-07"),
    "rates of a preset": (
        (*PRETRAIN, "--preset", "tutorial", "--lr", 1e-3),
        "--min-lr 0.016 is larger than --lr 0.001",
    ),
    "warm-up": (
        (*PRETRAIN, "--schedule", "step", "--warmup-lr", 1),
        "--warmup-lr 1 is larger than --lr 0.0001",
    ),
    "no milestones": (
        (*PRETRAIN, "--schedule", "multistep"),
        "at --milestones: give some, in epochs",
    ),
    "early milestone": (
        (*PRETRAIN, "--schedule", "multistep", "--milestones", 90, 5),
        "--milestones 5 lies within the warm-up of 10 epochs",
    ),
    "negative milestone": (
        (*PRETRAIN, "--schedule", "multistep", "--milestones", -1),
        "--milestones must be at least 0, not -1",
    ),
    "gamma": (
        (*PRETRAIN, "--schedule", "multistep", "--milestones", 50, "--gamma", 0),
        "--gamma must be greater than 0 and at most 1, not 0",
    ),
    "demo": (("pretrain", "--preset", "demo", "--val-count", 2), "--val-count needs --data"),
    "window": ((*PRETRAIN, "--target-window", 5), "--target-window is the square of"),
    "attention": (
        (*PRETRAIN, "--encoder", "cnn", "--attention", "sdpa"),
        "--encoder cnn has no attention",
    ),
    "presets": (
        (*PRETRAIN, "--preset", "vit-b", "--preset=swin-b"),
        "--preset is given more than once: swin-b, vit-b",
    ),
    "head": (
        ("import", "--source", "x", "--encoder", "cnn", "--encoder-only", "--head-order", "yxc"),
        "an encoder alone has none",
    ),
    "export": (
        *(
            (
                "export",
                "--checkpoint",
                "x",
                "--out",
                "y",
                "--project",
                "timm",
                "--head-order",
                "yxc",
            ),
        ),
        "an encoder alone has none",
    ),
    "count": (("reconstruct", "--checkpoint", "x", "--count", 0), "--count must be at least 1"),
    "seed": (("reconstruct", "--checkpoint", "x", "--seed", -1), "--seed must be between 0 and"),
    "size": (
        ("import", "--source", "x", "--encoder", "cnn", "--img-size", 0),
        "--img-size must be at least 1, not 0",
    ),
    "source's size": (
        ("import", "--source", "x", "--encoder", "cnn", "--source-img-size", 0),
        "--source-img-size must be at least 1, not 0",
    ),
    "argument": (
        (*PRETRAIN, "--encoder-args", "init_values", "nan"),
        "--encoder-args must be finite, not nan",
    ),
}


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_contradictions_cost_one_line(conflict, capsys):
    arguments, words = CONFLICTS[conflict]
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.startswith("simmim: ")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_contradict_nothing(name):
    preset = PRESETS[name]
    for changes in ({}, {"data": Path("images")}, {"resume": True}, {"overwrite": True}):
        dataclasses.replace(preset, **changes).check()


def test_demo_deletes_no_earlier_run():
    assert not any(preset.overwrite for preset in PRESETS.values())


CONFIGS = {
    PretrainConfig: {},
    FinetuneConfig: {},
    ProbeConfig: {},
    ReconstructConfig: {"checkpoint": Path("x")},
    ImportConfig: {"source": Path("x"), "encoder": "cnn"},
    ExportConfig: {"checkpoint": Path("x"), "project": "timm", "out": Path("y")},
}


def kinds_of(hint: object) -> set[object]:
    """The plain types in a type hint."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, dict):
        return set().union(*(kinds_of(inner) for inner in typing.get_args(hint)))
    return {hint}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_of_any_command_may_be_infinite_or_nan(config, number):
    hints = typing.get_type_hints(config)
    count = 0
    for name, hint in hints.items():
        if not kinds_of(hint) & {int, float} or typing.get_origin(hint) is typing.Literal:
            continue
        value: object = number
        default = getattr(config(**CONFIGS[config]), name)
        if isinstance(default, tuple):
            value = (0.5, number)
        elif isinstance(default, dict):
            value = {"x": number}
        count += 1
        with pytest.raises(UserError, match=flag(name)):
            check_numbers(dataclasses.replace(config(**CONFIGS[config]), **{name: value}))
    assert count or config is ExportConfig


@pytest.mark.parametrize(
    ("strategy", "ratio", "words"),
    [
        ("random", 0.0, "--mask-ratio 0 hides none of the 49 units"),
        ("block", 0.0, "--mask-ratio 0 hides none of the 49 units"),
        ("box", 0.1, "--mask-ratio 0.1 hides none of the 49 units"),
        ("random", 1.0, "--mask-ratio 1 hides all 49 units"),
        ("random", 0.99, "from: lower it, or --mask-unit, which is 32 pixels"),
        ("box", 1.0, "--mask-ratio 1 hides all 49 units"),
    ],
)
def test_masks_that_leave_nothing_to_predict_or_to_predict_from(strategy, ratio, words):
    with pytest.raises(UserError, match=words):
        Masking(strategy, 32, ratio, (224, 224))


@pytest.mark.parametrize("ratio", [math.nan, -0.1, 1.1])
def test_ratios_of_masks_that_are_none(ratio):
    with pytest.raises(UserError, match="--mask-ratio must be between 0 and 1"):
        check_numbers(PretrainConfig(mask_ratio=ratio))


def test_what_is_only_said():
    config = PretrainConfig(
        **{"data": Path("a"), "val_data": Path("a"), "epochs": 5, "cache": True, "workers": 4}
    )
    lines = remarks(config)
    assert "the warm-up of 10 epochs is as long as the run of 5 or longer" in lines[0]
    assert "--val-data is --data" in lines[1]
    assert "each worker comes to hold all decoded images" in lines[2]
    assert len(lines) == 3
    assert remarks(PretrainConfig(data=Path("a"), epochs=100)) == []
    steps = PretrainConfig(data=Path("a"), schedule="multistep", milestones=(50, 100, 90))
    steps.check()
    assert remarks(steps) == ["--milestones 100 is never reached: the run ends after 100 epochs"]
    idle = dataclasses.replace(steps, schedule="step")
    idle.check()
    assert remarks(idle) == ["--milestones has no effect with --schedule step"]
    more = {"nodata_share": 0.1, "min_lr": 0.0, "gamma": 0.2, "warmup_lr": 0.0, "warmup_epochs": 0}
    idle = dataclasses.replace(idle, **more, fixed_ends=True, show_bands=(1,))
    for name in ("milestones", "gamma", "min_lr", "warmup_lr", "fixed_ends", "nodata_share"):
        assert any(line.startswith(f"{flag(name)} has no effect with") for line in remarks(idle))
    assert "--show-bands has no effect without --picture" in remarks(idle)
    demo = dataclasses.replace(PRESETS["demo"], data=Path("a"))
    assert remarks(demo) == ["no picture is drawn at the end: there are no validation images"]
    check_conflicts(demo, PRESETS["demo"])


def test_version(capsys, simmim):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"simmim {version()}\n"
    assert version()[0].isdigit() or version() == "(not installed)"
    ended = simmim("--version")
    assert (ended.returncode, ended.stdout) == (0, f"simmim {version()}\n")


def test_help_lists_the_commands_before_the_exit_statuses(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        text.index("pretrain Pre-train")
        < text.index("--version")
        < text.index("Exit status: 0 done")
    )


@pytest.mark.parametrize("command", ["pretrain", "stats", "pack", "finetune"])
@pytest.mark.parametrize("name", ["column", "layout"])
def test_what_says_nothing_of_the_images_is_refused(command, name, labelled, tmp_path, capsys):
    """``--column`` and ``--layout`` for pictures, which have neither columns nor axes."""
    more = ("--encoder", "cnn") if command == "finetune" else ()
    arguments = [command, "--data", labelled, "--out", tmp_path / "out", f"--{name}", "chw", *more]
    assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(f"and {labelled} holds none: leave it out"), error
