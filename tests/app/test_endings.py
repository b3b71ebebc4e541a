"""What ends a run early: the state after the last whole update is saved, and the resumed run ends
with the bits of one that was never interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
from multiprocessing import Process
from pathlib import Path

import pytest

from simmim.config.pretrain import PretrainConfig
from simmim.data import crops as data
from simmim.data.images import BadImageError
from simmim.errors import UserError
from simmim.storage import checkpoint
from simmim.training.metrics import MetricsFile, read_metrics
from simmim.training.pretrain import Trainer
from simmim.training.records import Records
from simmim.training.signals import caught_signals

from .conftest import TINY
from .runs import is_running, run_command, start_command
from .test_resume import assert_same_run, step_of

UPDATES = 12


def config_of(photographs: Path, out: Path, **changes) -> PretrainConfig:
    """12 updates of two passes each, with a row every third and validations between."""
    settings = {
        "data": photographs,
        "out": out,
        "val_count": 2,
        "crops_per_image": 4,
        "batch_size": 2,
        "accumulate": 2,
        "epochs": 2,
        "log_every": 3,
        "save_every": 1000,
        **TINY,
        **changes,
    }
    return PretrainConfig(**settings)


def assert_resumes_to(photographs: Path, stopped: Path, whole: Path) -> None:
    Trainer(config_of(photographs, whole)).fit()
    summary = Trainer(config_of(photographs, stopped, resume=True)).fit()
    assert summary.updates == UPDATES
    assert_same_run(whole, stopped)


def fail_reading(monkeypatch, after: int, error: Exception) -> None:
    """Let every image be unreadable once ``after`` were read."""
    genuine, count = data.read_image, [0]

    def read(path, channels):
        count[0] += 1
        if count[0] > after:
            raise error
        return genuine(path, channels)

    monkeypatch.setattr(data, "read_image", read)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [BadImageError("gone"), OSError(errno.EIO, "Input/output error")], ids=["bad", "os"]
)
@pytest.mark.parametrize("after", [20, 22], ids=["first pass", "second pass"])
def test_images_that_vanish(photographs, tmp_path, monkeypatch, error, after):
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        # 2 images of the first validation, then 4 an update
        fail_reading(patch, 4 + after, error)
        with pytest.raises(UserError, match=r"step-0000000\d\.pt, from which --resume goes on"):
            Trainer(config_of(photographs, out)).fit()
    assert step_of(out) == 5
    state = checkpoint.load(checkpoint.numbered(out / "checkpoints")[-1])
    assert state["counters"]["bad"] == {}
    assert_resumes_to(photographs, out, tmp_path / "whole")


@pytest.mark.slow
def test_images_that_vanish_from_the_disk(photographs, tmp_path, capsys):
    """Deleted while the run reads them, as where a disk is unmounted."""
    out, copy = tmp_path / "stopped", tmp_path / "copy"
    shutil.copytree(photographs, copy)
    trainer = Trainer(config_of(photographs, out))
    step = trainer.optimizer.step

    def delete_during_the_fourth():
        if trainer.update == 3:
            shutil.rmtree(photographs)
        step()

    trainer.optimizer.step = delete_during_the_fourth
    with pytest.raises(UserError, match=r"images in a row cannot be opened.*00004\.pt, from"):
        trainer.fit()
    assert step_of(out) == 4
    shutil.copytree(copy, photographs)
    assert_resumes_to(photographs, out, tmp_path / "whole")


def test_images_that_vanish_in_the_validation(photographs, tmp_path, monkeypatch):
    """The resumed run makes the validation that was cut off, and no other one twice."""
    out = tmp_path / "stopped"
    genuine = Trainer.validate

    def validate(trainer):
        genuine(trainer)
        if trainer.update == 6:
            raise UserError("cannot read")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", validate)
        # the row of the first attempt would be written twice
        patch.setattr(Records, "validation", lambda *_, **__: None)
        with pytest.raises(UserError, match="cannot read; the newest checkpoint is"):
            Trainer(config_of(photographs, out)).fit()
    assert step_of(out) == 6
    Trainer(config_of(photographs, out, resume=True)).fit()
    rows = read_metrics(out / "metrics.csv")
    assert [int(r["update"]) for r in rows if r["split"] == "val"] == [6, 12]


def test_nothing_is_left_of_a_run_that_fails_at_once(photographs, tmp_path, monkeypatch):
    fail_reading(monkeypatch, 3, BadImageError("gone"))
    with pytest.raises(UserError, match="no checkpoint was written yet"):
        Trainer(config_of(photographs, tmp_path / "run")).fit()
    assert step_of(tmp_path / "run") == -1


def test_a_failure_in_the_middle_of_the_step_saves_nothing(photographs, tmp_path, capsys):
    """Weights of two updates mixed are no state to go on from."""
    trainer = Trainer(config_of(photographs, tmp_path / "run", save_every=2))
    step = trainer.optimizer.step

    def fail_in_the_fourth():
        step()
        if trainer.update == 3:
            raise RuntimeError("can't allocate memory: tried to")

    trainer.optimizer.step = fail_in_the_fourth
    with pytest.raises(UserError, match=r"out of memory: .*step-00000002\.pt, from which"):
        trainer.fit()
    assert step_of(tmp_path / "run") == 2


def test_too_many_open_files_are_explained(photographs, tmp_path):
    """In PyTorch's words, which ask for a call that a command line cannot make."""
    trainer = Trainer(config_of(photographs, tmp_path / "run"))

    def fail(batch, epoch):
        raise RuntimeError("Too many open files. Communication with the workers is no longer")

    trainer.pass_loss = fail
    with pytest.raises(UserError, match="ulimit -n 4096, or lower --workers; no checkpoint"):
        trainer.fit()


def test_an_unknown_failure_keeps_its_type_and_saves(photographs, tmp_path):
    trainer = Trainer(config_of(photographs, tmp_path / "run"))
    genuine = trainer.pass_loss

    def fail(batch, epoch):
        if trainer.update == 4:
            raise ZeroDivisionError("a fault of the program")
        return genuine(batch, epoch)

    trainer.pass_loss = fail
    with pytest.raises(ZeroDivisionError, match="a fault of the program"):
        trainer.fit()
    assert step_of(tmp_path / "run") == 4


@pytest.mark.parametrize("failing", ["row", "validation row", "TensorBoard"])
def test_a_full_disk_in_the_records(photographs, tmp_path, monkeypatch, failing):
    """No row is lost or written twice when the run goes on."""
    out = tmp_path / "stopped"
    full = OSError(errno.ENOSPC, "No space left on device")
    genuine = MetricsFile.write

    def write(file, **values):
        if values["update"] == 6 and values["split"] == split:
            file._file.write("6,0,tr")
            raise full
        genuine(file, **values)

    with monkeypatch.context() as patch:
        split = {"row": "train", "validation row": "val"}.get(failing)
        patch.setattr(MetricsFile, "write", write)
        trainer = Trainer(config_of(photographs, out))
        if split is None:

            def add_scalar(name, value, update):
                if update == 6:
                    raise full

            import torch.utils.tensorboard as tensorboard

            patch.setattr(
                tensorboard.SummaryWriter, "add_scalar", lambda _, *values: add_scalar(*values)
            )
        with pytest.raises(UserError, match=r"(metrics\.csv|tensorboard): No space left on dev"):
            trainer.fit()
    assert step_of(out) == 6
    assert_resumes_to(photographs, out, tmp_path / "whole")


def test_when_no_disk_takes_the_checkpoint_the_one_before_is_named(
    photographs, tmp_path, monkeypatch
):
    def write(*_):
        raise UserError("cannot write step-00000003.pt: No space left on device")

    fail_reading(monkeypatch, 3 + 12, BadImageError("gone"))
    monkeypatch.setattr(checkpoint, "write", write)
    with pytest.raises(UserError, match=r"no checkpoint could be saved .*No space left on device"):
        Trainer(config_of(photographs, tmp_path / "run")).fit()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_that_a_process_was_started_to_ignore(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with caught_signals() as caught:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert caught == []
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_the_second_signal_has_its_usual_effect_but_a_closing_terminal_sends_two():
    with pytest.raises(KeyboardInterrupt), caught_signals() as caught:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert caught == [signal.SIGHUP, signal.SIGHUP, signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_signals_of_batch_systems_but_for_a_program_that_uses_them():
    with caught_signals() as caught:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.01)
    assert sorted(caught) == [signal.SIGUSR1, signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: seen.append(number))
    try:
        with caught_signals() as caught:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (caught, seen) == ([], [signal.SIGUSR2])


def endless(photographs: Path, out: Path, *more: object) -> tuple[object, ...]:
    """The command line of a run that does not end, and does not take the time to compile."""
    return (
        *("pretrain", "--data", photographs, "--out", out, "--encoder", "cnn", "--img-size", 32),
        *("--mask-unit", 8, "--batch-size", 2, "--epochs", 100000, "--device", "cpu"),
        *("--save-every", 1000000, "--workers", 0, "--log-every", 1, "--compile", "off", *more),
    )


def wait_for_rows(out: Path, process: Process | subprocess.Popen, count: int = 3) -> None:
    deadline = time.monotonic() + 300
    metrics = out / "metrics.csv"
    while not metrics.exists() or len(read_metrics(metrics)) < count:
        assert is_running(process), "the run ended early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_saved(out: Path) -> None:
    """The newest checkpoint is that of the last update of the log."""
    rows = read_metrics(out / "metrics.csv")
    assert step_of(out) == int(rows[-1]["update"]) > 0


def test_a_real_sigterm(photographs, tmp_path, start_simmim):
    """What closing a terminal does is seen in test_progress.py, Ctrl-C in test_resume.py."""
    out = tmp_path / "run"
    process = start_simmim(
        *endless(photographs, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_rows(out, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors
    assert output.count("\n") == 1 and "stopped by signal 15 at update" in output
    assert "Traceback" not in errors
    assert_saved(out)


def test_a_reader_of_the_output_that_goes(photographs, tmp_path, start_simmim):
    """As in ``simmim pretrain ... 2>&1 | head -5``."""
    out = tmp_path / "run"
    process = start_simmim(
        *endless(photographs, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    head = subprocess.run(["head", "-5"], stdin=process.stdout, capture_output=True, timeout=300)
    process.stdout.close()
    assert process.wait(300) == 141
    assert head.stdout.count(b"\n") == 5
    assert_saved(out)


def test_a_full_disk_under_the_output(photographs, tmp_path, start_simmim):
    """/dev/full fails as a full disk does: at the first line, before PyTorch is loaded, and where it
    is, at the first line of the run."""
    out, full = tmp_path / "run", Path("/dev/full")
    with full.open("w") as stream:
        process = start_simmim(*endless(photographs, out), stdout=stream, stderr=stream)
    assert process.wait(300) == 2
    assert not out.exists()
    assert run_command(*endless(photographs, out), output=full, errors=full) == 2
    # that line fails before the first update, so there is nothing to save
    assert step_of(out) in (-1, 0)


@pytest.mark.slow
def test_a_worker_that_is_killed(photographs, tmp_path):
    out, said = tmp_path / "run", tmp_path / "said"
    process = start_command(
        *endless(photographs, out, "--workers", 1), output=tmp_path / "output", errors=said
    )
    wait_for_rows(out, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.join(300)
    errors = said.read_text()
    assert process.exitcode == 2, errors
    last = errors.splitlines()[-1]
    assert last.startswith("simmim: a process that reads images was killed")
    assert "from which --resume goes on" in last and "Traceback" not in errors
    assert_saved(out)


@pytest.mark.slow
def test_data_that_vanish_end_a_run_with_workers(photographs, tmp_path):
    """The workers end with the run, which would else wait for them without end."""
    data, out, said = (tmp_path / name for name in ("data", "run", "said"))
    shutil.copytree(photographs, data)
    process = start_command(
        *endless(data, out, "--workers", 1), output=tmp_path / "output", errors=said
    )
    wait_for_rows(out, process)
    data.rename(tmp_path / "gone")
    process.join(300)
    errors = said.read_text()
    assert process.exitcode == 2, errors
    assert errors.splitlines()[-1].startswith("simmim: ") and "cannot be opened" in errors
    assert "Traceback" not in errors
    assert step_of(out) > 0


def test_a_pipe_that_closes_in_the_middle(photographs, tmp_path, monkeypatch):
    """The run stops after its update and saves it."""
    read, write = os.pipe()
    pipe = os.fdopen(write, "w", buffering=1)
    monkeypatch.setattr("sys.stderr", pipe)
    trainer = Trainer(config_of(photographs, tmp_path / "run", log_every=1))
    step = trainer.optimizer.step

    def close_in_the_third():
        if trainer.update == 2:
            os.close(read)
        step()

    trainer.optimizer.step = close_in_the_third
    with pytest.raises(BrokenPipeError):
        trainer.fit()
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
    assert step_of(tmp_path / "run") == 3
