"""What the commands may replace: only what they wrote, and never the newest good checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from simmim.cli import main
from simmim.storage import checkpoint
from simmim.storage.manifest import FOLDER, events

from .runs import start, train_together
from .test_damage import pretrain, refused, snapshot
from .test_resume import config_of
from .test_train import config_of as small_config


@pytest.fixture
def run(photographs, tmp_path, capsys):
    """Pre-train with further flags in the folder that is returned; two updates an epoch."""
    out = tmp_path / "run"

    def go(*more: object, epochs: int = 2) -> Path:
        flags = ("--epochs", epochs, "--save-every", 1, "--keep", 3, "--log-every", 1)
        assert main(pretrain(photographs, out, *flags, *more)) == 0
        return out

    return go


def everything(folder: Path) -> dict[str, bytes]:
    """Contents of all files, but for the application's own records."""
    files = (path for path in folder.rglob("*") if path.is_file() and FOLDER not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def steps(out: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.numbered(out / "checkpoints")]


def lose(out: Path, *late: int) -> None:
    """As if the run had been stopped before the updates ``late``."""
    for step in late:
        checkpoint.path_of(out / "checkpoints", step).unlink()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


COPIES = (
    *("step-best.pt", "step-00000002 (copy).pt", "step-00000002.pt.bak", "best.pt", "step-2.pt"),
    *(
        "step-000000009.pt",
        "copy of step-00000004.pt",
        "step-00000009.pt.tmp.pt",
        "step-٠٠٠٠٠٠٠٩.pt",
    ),
)


def test_copies_are_neither_counted_nor_chosen_nor_deleted(run):
    out = run()
    assert steps(out) == [2, 3, 4]
    folder = out / "checkpoints"
    for name in COPIES:
        shutil.copy(folder / "step-00000002.pt", folder / name)
    copies = {name: (folder / name).read_bytes() for name in COPIES}
    lose(out, 4)
    run("--resume", "--keep", 1)
    assert steps(out) == [4]
    assert checkpoint.load(folder / "last.pt")["update"] == 4
    run("--overwrite", "--keep", 2)
    assert steps(out) == [3, 4]
    assert {name: (folder / name).read_bytes() for name in COPIES} == copies


@pytest.mark.slow
def test_a_copy_under_another_update_stops_a_run_before_it_begins(run, photographs, capsys):
    out = run()
    copy = checkpoint.path_of(out / "checkpoints", 9)
    shutil.copy(checkpoint.path_of(out / "checkpoints", 2), copy)
    before = everything(out)
    capsys.readouterr()
    for flag in ("--resume", "--overwrite"):
        flags = ("--epochs", 2, "--save-every", 1, "--keep", 3, "--log-every", 1, flag)
        error = refused(capsys, *pretrain(photographs, out, *flags))
        assert "did not write: checkpoints/step-00000009.pt" in error
    assert everything(out) == before


FOREIGN = {
    "metrics.csv": "epoch,my_loss\n1,0.5\n",
    "config.json": '{"model_type": "vit"}',
    "loss_curve.png": "a picture",
    "reconstruction.png": "a picture",
    "checkpoints/last.pt": "weights",
    "checkpoints/step-00000001.pt": "weights",
    "tensorboard/events.out.tfevents.1700000000.host.7.0": "events",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_are_named_and_left_alone(name, photographs, tmp_path, capsys):
    out = tmp_path / "run"
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FOREIGN[name])
    before = snapshot(tmp_path)
    for flags in ((), ("--overwrite",), ("--resume",)):
        error = refused(capsys, *pretrain(photographs, out, *flags))
        assert f"did not write: {name}; move them away" in error
    assert snapshot(tmp_path) == before and not (out / FOLDER).exists()


@pytest.mark.slow
def test_what_is_not_in_the_way_stays(run, tmp_path):
    out = tmp_path / "run"
    for name in ("notes.txt", "checkpoints/best.pt", "tensorboard/README", "metrics.csv.old"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    before = everything(out)
    run()
    run("--overwrite")
    assert everything(out).items() >= before.items()


@pytest.mark.slow
def test_nothing_is_deleted_without_being_asked(run, photographs, capsys):
    out = run()
    before = everything(out)
    capsys.readouterr()
    assert "--overwrite" in refused(capsys, *pretrain(photographs, out))
    shutil.rmtree(out / "checkpoints")
    del before["checkpoints/last.pt"]
    before = {name: content for name, content in before.items() if "step-" not in name}
    assert "already holds a run (metrics.csv)" in refused(capsys, *pretrain(photographs, out))
    assert everything(out) == before


@pytest.mark.slow
def test_a_preset_deletes_nothing(run, photographs, capsys):
    out = run()
    before = everything(out)
    capsys.readouterr()
    flags = ("pretrain", "--preset", "demo", "--data", photographs, "--out", out, "--device", "cpu")
    assert "already holds a run (step-00000004.pt)" in refused(capsys, *flags)
    assert everything(out) == before


@pytest.mark.slow
def test_overwriting_deletes_what_the_run_wrote(run):
    out = run("--picture", 1)
    first = everything(out)
    time.sleep(1)
    run("--overwrite", "--seed", 1, epochs=1)
    second = everything(out)
    assert steps(out) == [1, 2]
    kept = {name for name in first if second.get(name) == first[name]}
    assert not kept, kept
    assert "reconstruction.png" not in second
    assert len(events(out)) == 1


def test_a_run_goes_on_from_the_newest_good_checkpoint(run, capsys):
    out = run("--keep", 10)
    whole = checkpoint.load(out / "checkpoints" / "last.pt")
    for step in (3, 4):
        damage(checkpoint.path_of(out / "checkpoints", step))
    capsys.readouterr()
    run("--resume", "--keep", 1)
    error = capsys.readouterr().err
    good = checkpoint.path_of(out / "checkpoints", 2)
    for step in (3, 4):
        path = checkpoint.path_of(out / "checkpoints", step)
        (line,) = (line for line in error.splitlines() if line.startswith(str(path)))
        assert "damaged" in line and line.endswith(f"; going on from {good}")
    again = checkpoint.load(out / "checkpoints" / "last.pt")
    for name, value in whole["model"].items():
        assert torch.equal(value, again["model"][name])
    assert steps(out) == [4]


@pytest.mark.slow
def test_damaged_later_checkpoints_do_not_count_when_old_ones_are_deleted(run, photographs):
    """With --keep 1, the good checkpoint written after resuming is older than the damaged one."""
    from simmim.storage.run_folder import RunFolder

    out = run("--keep", 10)
    damage(checkpoint.path_of(out / "checkpoints", 4))
    state = checkpoint.load(checkpoint.path_of(out / "checkpoints", 2))
    with RunFolder(out, "pretrain") as folder:
        folder.lock()
        found = folder.resume_from(lambda path: checkpoint.read(path, "pretrain"))
        assert checkpoint.step_of(found) == 3
        folder.go_on(found)
        assert (out / "checkpoints" / "last.pt").samefile(found)
        folder.save(3, state | {"update": 3}, keep=1)
    assert steps(out) == [3, 4]
    assert checkpoint.load(out / "checkpoints" / "last.pt")["update"] == 3


@pytest.mark.slow
def test_without_a_good_checkpoint_all_are_named(run, photographs, capsys):
    out = run()
    for step in steps(out):
        damage(checkpoint.path_of(out / "checkpoints", step))
    before = everything(out)
    capsys.readouterr()
    flags = ("--epochs", 2, "--save-every", 1, "--keep", 3, "--log-every", 1, "--resume")
    error = refused(capsys, *pretrain(photographs, out, *flags))
    assert all(f"step-0000000{step}.pt" in error for step in (2, 3, 4))
    assert everything(out) == before


@pytest.mark.slow
def test_checkpoints_brought_from_elsewhere_are_gone_on_from_and_kept(run, tmp_path):
    out = run()
    other = tmp_path / "other" / "checkpoints"
    other.mkdir(parents=True)
    shutil.copy(checkpoint.path_of(out / "checkpoints", 3), other)
    run("--resume", "--keep", 1, "--out", other.parent)
    assert steps(other.parent) == [3, 4]


@pytest.mark.slow
def test_probing_in_the_folder_of_a_run_keeps_all_of_it(run, labelled, capsys):
    out = run()
    before = everything(out)
    flags = ("probe", "--checkpoint", out / "checkpoints" / "last.pt", "--data", labelled)
    flags = [str(f) for f in (*flags, "--out", out, "--workers", 0, "--device", "cpu")]
    assert main(flags) == 0
    assert everything(out).items() >= before.items() and len(events(out)) == 2
    capsys.readouterr()
    assert "already holds the results of a probe" in refused(capsys, *flags)
    probed = everything(out)
    time.sleep(1)
    assert main([*flags, "--overwrite"]) == 0
    assert everything(out).items() >= before.items() and len(events(out)) == 2
    run("--overwrite")
    assert (out / "probe.csv").read_bytes() == probed["probe.csv"] and len(events(out)) == 2


@pytest.mark.slow
def test_runs_of_different_commands_do_not_share_a_folder(run, labelled, capsys):
    out = run()
    before = everything(out)
    capsys.readouterr()
    flags = ("finetune", "--checkpoint", out / "checkpoints" / "last.pt", "--data", labelled)
    flags = (*flags, "--out", out, "--workers", 0, "--device", "cpu", "--overwrite")
    error = refused(capsys, *flags)
    assert "config.json of simmim pretrain" in error and "another --out" in error
    assert everything(out) == before


@pytest.mark.slow
def test_single_files_are_replaced_when_asked(run, photographs, tmp_path, capsys):
    out = run()
    last = out / "checkpoints" / "last.pt"
    places = {
        "picture.png": ("reconstruct", "--checkpoint", last, "--data", photographs),
        "x.safetensors": ("export", "--checkpoint", last, "--project", "timm"),
        "folder": ("export", "--checkpoint", last, "--project", "transformers"),
    }
    for name, arguments in places.items():
        path = tmp_path / name
        arguments = [str(a) for a in (*arguments, "--out", path)]
        assert main(arguments) == 0
        written = path / "config.json" if path.is_dir() else path
        written.write_text("mine")
        before = snapshot(tmp_path)
        capsys.readouterr()
        assert "exists: replace it with --overwrite" in refused(capsys, *arguments)
        assert snapshot(tmp_path) == before
        assert main([*arguments, "--overwrite"]) == 0
        assert written.read_bytes() != b"mine"
    source = str(tmp_path / "x.safetensors")
    arguments = ["import", "--source", source, "--encoder", "vit_tiny_patch16_224", "--out", source]
    capsys.readouterr()
    assert "is the file that is read" in refused(capsys, *arguments, "--overwrite")


@pytest.mark.slow
def test_files_of_a_run_are_never_a_commands_output(run, photographs, tmp_path, capsys):
    out = run()
    last = out / "checkpoints" / "last.pt"
    before = everything(out)
    capsys.readouterr()
    for arguments in (
        (
            "reconstruct",
            "--checkpoint",
            last,
            "--data",
            photographs,
            "--out",
            out / "loss_curve.png",
        ),
        ("export", "--checkpoint", last, "--project", "transformers", "--out", out),
        (
            *("export", "--checkpoint", last, "--project", "microsoft"),
            *("--out", checkpoint.path_of(last.parent, 2)),
        ),
    ):
        assert f"belongs to the run in {out}" in refused(capsys, *arguments, "--overwrite")
    assert everything(out) == before


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(photographs, tmp_path, capsys):
    config = config_of(photographs, tmp_path / "run", epochs=10**6, save_every=10**6, compile="off")
    process = start(config)
    while not (config.out / "metrics.csv").exists():
        assert process.is_alive()
        time.sleep(0.01)
    for flag in ("--resume", "--overwrite", "--keep=1"):
        error = refused(capsys, *pretrain(photographs, config.out, flag))
        assert f"is in use by process {process.pid} on " in error
    os.kill(process.pid, signal.SIGTERM)
    process.join(300)
    assert process.exitcode == 143
    assert not list((config.out / FOLDER).glob("*.lock"))


def test_the_folder_is_free_after_an_error_and_after_the_end(photographs, tmp_path):
    from simmim.errors import UserError
    from simmim.training.pretrain import Trainer

    config = small_config(photographs, tmp_path / "run")
    trainer = Trainer(config)
    assert len(list((config.out / FOLDER).glob("*.lock"))) == 1
    trainer.fit()
    assert not list((config.out / FOLDER).glob("*.lock"))
    with pytest.raises(UserError, match="already holds a run"):
        Trainer(config)
    assert not list((config.out / FOLDER).glob("*.lock"))


@pytest.mark.slow
def test_several_processes_are_refused_together(photographs, tmp_path):
    from simmim.storage.run_folder import RunFolder

    config = small_config(photographs, tmp_path / "run", batch_size=4)
    with RunFolder(config.out, "pretrain") as folder:
        folder.lock()
        assert train_together(config, 2) == [1, 1]
        assert not (config.out / "checkpoints").exists()
    assert train_together(config, 2) == [0, 0]
    assert not list((config.out / FOLDER).glob("*.lock"))


@pytest.mark.slow
def test_a_full_disk_ends_several_processes_together(photographs, small_drive):
    config = small_config(photographs, small_drive / "run", batch_size=4)
    assert train_together(config, 2) == [1, 1]
    assert not list((config.out / "checkpoints").iterdir())
