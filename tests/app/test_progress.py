"""What is seen while a run goes on: at its start, with every update, and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import threading
import time

from simmim.training import progress
from simmim.training.pretrain import Trainer
from simmim.training.progress import Progress, named_if_slow
from simmim.training.records import NoRecords

from .test_endings import assert_saved, config_of, endless, wait_for_rows


def test_plain_lines(photographs, tmp_path, capfd, monkeypatch):
    """No terminal: what is going to be done, the first update, each row."""
    monkeypatch.setattr(progress, "QUIET", float("inf"))
    Trainer(config_of(photographs, tmp_path / "run", log_every=6)).fit()
    lines = capfd.readouterr().err.splitlines()
    assert re.match(
        r"pretrain vit_tiny_patch16_224: 0\.\d+ M parameters, 6 images \(24 crops an epoch\), 12 of 12 updates "
        r"of 4 images \(2 epochs\), cpu, 32-true, into ",
        lines[0],
    )
    updates = [line.split()[1] for line in lines if line.startswith("update")]
    assert updates == ["0/12", "1/12", "6/12", "6/12", "12/12", "12/12"]


def test_silence_is_broken_after_a_while(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = Progress(total=1000, done=100, images=lambda updates: 8 * updates)
    for update in range(101, 150):
        now[0] += 3
        shown.advance(update)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["101/1000", "108/1000", "115/1000"]
    assert all("images/s" in line and "left" in line for line in lines)
    assert len(lines) == 7


def test_other_processes_show_nothing(tmp_path, capsys):
    records = NoRecords(10, 0, lambda updates: 4 * updates)
    records.say("line")
    records.advance(1)
    records.note(1, "line")
    records.close()
    assert "".join(capsys.readouterr()) == ""


def test_a_preparation_is_named_only_if_it_is_slow(capsys, monkeypatch):
    before = set(threading.enumerate())
    with named_if_slow("quick", patience=30):
        pass
    with named_if_slow("slow", patience=0.01):
        # joined, not polled: what is written while readouterr runs can be lost
        for thread in set(threading.enumerate()) - before:
            thread.join(300)
    monkeypatch.setenv("RANK", "1")
    with named_if_slow("left by another program", patience=0.01):
        for thread in set(threading.enumerate()) - before:
            thread.join(300)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    with named_if_slow("elsewhere", patience=0):
        for thread in set(threading.enumerate()) - before:
            thread.join(300)
    assert capsys.readouterr().err == "slow\nleft by another program\n"
    assert not set(threading.enumerate()) - before


class Terminal:
    """A pseudo-terminal, to whose ``stream`` a program writes."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while part := os.read(self.master, 65536):
                self._parts.append(part)
        except OSError:
            return

    def close(self) -> str:
        """All that was written, once nobody holds the terminal any more."""
        self.stream.close()
        self._thread.join(300)
        os.close(self.master)
        return b"".join(self._parts).decode()


def test_the_bar_moves_with_every_update(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    shown = Progress(total=8, done=2, images=lambda updates: 4 * updates)
    shown.open()
    for update in range(3, 9):
        time.sleep(0.12)
        shown.advance(update)
        if update == 5:
            shown.show(update, 0, 0.25, 33.0, 0.12)
            shown.say("skipped an image")
    shown.close()
    monkeypatch.undo()
    text = terminal.close()
    assert [f"{update}/8" in text for update in range(2, 9)] == [True] * 7
    assert "loss 0.2500, 33 images/s" in text
    assert "skipped an image\r\n" in text
    assert shown.error is None


def test_a_real_run_on_a_terminal(photographs, tmp_path, start_simmim):
    """Closing the terminal, as a user's window is closed, saves a checkpoint."""
    terminal = Terminal()
    out = tmp_path / "run"
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.stream)
    process = start_simmim(*endless(photographs, out), **streams, start_new_session=True)
    wait_for_rows(out, process)
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(300) == 129
    text = terminal.close()
    assert "loading PyTorch" in text and "epoch" in text
    assert "stopped by signal 1 at update" in text
    assert "Traceback" not in text
    assert_saved(out)
