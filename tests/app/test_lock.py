"""The lock on a run's folder: one holder at a time, and none that stays when its process is gone."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simmim.errors import UserError
from simmim.storage import folder_lock
from simmim.storage.folder_lock import STALE, FolderLock
from simmim.storage.lock_holder import Holder, start_time

from .conftest import environment

HOLD = """
import sys, time
from pathlib import Path
from simmim.errors import UserError
from simmim.storage.folder_lock import FolderLock

folder = Path(sys.argv[1])
lock = FolderLock(folder, "run", folder)
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    lock.acquire()
except UserError as error:
    print("refused", error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holding(tmp_path):
    """Start processes that take the lock of ``tmp_path`` once a file ``go`` is there, and hold it
    until they are given a line."""
    processes = []

    def start(count: int = 1) -> list[subprocess.Popen]:
        new = [
            subprocess.Popen(
                [sys.executable, "-c", HOLD, str(tmp_path)],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        processes.extend(new)
        return new

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def lock_of(folder: Path) -> FolderLock:
    return FolderLock(folder, "run", folder)


def locks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.lock"))


def put(folder: Path, number: int = 1, age: float = 0.0, **changes: object) -> Path:
    """A lock file that another process left, last renewed ``age`` seconds ago."""
    path = folder / f"run.{number}.lock"
    path.write_text(dataclasses.replace(Holder(), **changes).to_json())
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_two_processes_never_hold_it_together(tmp_path, holding):
    (tmp_path / "go").touch()
    (holder,) = holding()
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
        lock_of(tmp_path).acquire()
    holder.communicate("\n")
    lock_of(tmp_path).acquire()


def test_a_killed_process_is_followed_at_once(tmp_path, holding, capsys):
    (tmp_path / "go").touch()
    (holder,) = holding()
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    # its exit status has not been read: the process number is still taken
    while start_time(holder.pid) is not None:
        time.sleep(0.001)
    lock_of(tmp_path).acquire()
    error = capsys.readouterr().err
    assert f"took over {tmp_path} from process {holder.pid} on " in error
    assert "no longer runs" in error and error.count("\n") == 1


@pytest.mark.slow
def test_of_many_that_take_over_a_stale_lock_one_succeeds(tmp_path, holding):
    put(tmp_path, number=4, pid=ended_process(), token="x")
    processes = holding(8)
    time.sleep(2)
    (tmp_path / "go").touch()
    answers = [process.stdout.readline() for process in processes]
    assert sorted(answer.split()[0] for answer in answers) == ["held"] + ["refused"] * 7
    assert [path.name for path in locks(tmp_path)] == ["run.5.lock"]


def test_takeovers_interleaved_at_every_step(tmp_path, monkeypatch):
    """A second process takes the lock over while a first one is between two steps of doing so."""
    genuine = folder_lock._create
    rival = lock_of(tmp_path)

    def create(path: Path, text: str) -> bool:
        monkeypatch.setattr(folder_lock, "_create", genuine)
        rival.acquire()
        # as if the rival were another process that runs
        rival._path.write_text(put_by_another.to_json())
        return genuine(path, text)

    put_by_another = dataclasses.replace(
        Holder(), pid=os.getppid(), started=start_time(os.getppid())
    )
    put(tmp_path, pid=ended_process())
    monkeypatch.setattr(folder_lock, "_create", create)
    with pytest.raises(UserError, match=f"in use by process {os.getppid()}"):
        lock_of(tmp_path).acquire()
    assert [path.name for path in locks(tmp_path)] == [rival._path.name]


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"boot": "another"}, {"space": "pid:[1]"}],
    ids=["host", "boot", "container"],
)
def test_elsewhere_counts_until_it_falls_silent(changes, tmp_path, capsys):
    path = put(tmp_path, age=STALE - 20, **changes)
    with pytest.raises(UserError, match=f"in use by process .* delete {path}"):
        lock_of(tmp_path).acquire()
    put(tmp_path, age=STALE + 20, **changes)
    lock = lock_of(tmp_path)
    lock.acquire()
    lock.check_held()
    assert "has been silent for 3" in capsys.readouterr().err
    assert [p.name for p in locks(tmp_path)] == ["run.2.lock"]


def test_a_process_number_that_is_used_again(tmp_path):
    put(tmp_path, pid=os.getppid(), started=start_time(os.getppid()))
    with pytest.raises(UserError, match="in use"):
        lock_of(tmp_path).acquire()
    put(tmp_path, pid=os.getppid(), started="1")
    lock_of(tmp_path).acquire()


def test_without_start_times(tmp_path, monkeypatch):
    """As on systems without /proc: what cannot be seen to have ended counts until it is silent."""
    monkeypatch.setattr("simmim.storage.lock_holder._read", lambda path: "")
    assert start_time(os.getpid()) == "" and start_time(ended_process()) is None
    put(tmp_path, pid=os.getppid())
    with pytest.raises(UserError, match="in use"):
        lock_of(tmp_path).acquire()
    put(tmp_path, pid=ended_process())
    lock_of(tmp_path).acquire()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}', "\0" * 100])
def test_a_lock_file_that_was_not_completed(content, tmp_path):
    path = tmp_path / "run.1.lock"
    path.write_text(content)
    with pytest.raises(UserError, match="in use by another process"):
        lock_of(tmp_path).acquire()
    os.utime(path, (time.time() - 60, time.time() - 60))
    lock_of(tmp_path).acquire()


def test_it_is_given_back(tmp_path, holding):
    lock = lock_of(tmp_path)
    lock.acquire()
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())
    lock = lock_of(tmp_path)
    lock.acquire()
    del lock
    assert not list(tmp_path.iterdir())
    (tmp_path / "go").touch()
    (holder,) = holding()
    holder.communicate("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["go"]


def test_processes_that_were_forked_do_not_give_it_back(tmp_path):
    lock = lock_of(tmp_path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    lock.check_held()


def test_it_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "RENEWAL", 0.01)
    lock = lock_of(tmp_path)
    lock.acquire()
    (path,) = locks(tmp_path)
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 300
    while path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_who_lost_it_notices(tmp_path):
    lock = lock_of(tmp_path)
    lock.acquire()
    lock.check_held()
    parent = {"pid": os.getppid(), "started": start_time(os.getppid())}
    other = put(tmp_path, number=2, **parent)
    with pytest.raises(UserError, match=f"process {os.getppid()} on .* has taken over"):
        lock.check_held()
    lock.release()
    assert locks(tmp_path) == [other]


@pytest.mark.slow
def test_who_tried_and_died_takes_nothing(tmp_path):
    lock = lock_of(tmp_path)
    lock.acquire()
    put(tmp_path, number=2, pid=ended_process())
    lock.check_held()
    assert len(locks(tmp_path)) == 1
    put(tmp_path, number=2, pid=ended_process())
    put(tmp_path, number=1, pid=os.getppid(), started=start_time(os.getppid()))
    with pytest.raises(UserError, match=f"in use by process {os.getppid()}"):
        lock_of(tmp_path).acquire()


def test_names_are_independent(tmp_path):
    put(tmp_path, pid=os.getppid(), started=start_time(os.getppid()))
    FolderLock(tmp_path, "probe", tmp_path).acquire()
