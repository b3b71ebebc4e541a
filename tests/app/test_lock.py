"""The lock on a run's folder: one holder at a time, and none that stays when its process is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simmim.errors import UserError
from simmim.storage import folder_lock
from simmim.storage.folder_lock import LEASE, FolderLock

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


def put(folder: Path, age: float = 0.0, **changes: object) -> Path:
    """The lock file of another process, this one's parent, with some lines changed, last renewed ``age``
    seconds ago."""
    lock = FolderLock(folder, "other", folder)
    lock.acquire()
    path = folder / "run.lock"
    lines = dict(line.split("=", 1) for line in lock.path.read_text().splitlines()[1:])
    lock.release()
    lines |= {"pid": os.getppid(), "start": start_token(os.getppid()), "token": "0" * 32} | changes
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    path.write_text(f"filelock/2\n{text}")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def start_token(pid: int) -> int:
    """What filelock notes of a process's start."""
    from filelock import _identity

    return _identity.process_start_token(pid)


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
    holder.wait()
    lock_of(tmp_path).acquire()
    error = capsys.readouterr().err
    assert f"took over {tmp_path} from process {holder.pid} on " in error
    assert "no longer runs" in error and error.count("\n") == 1


@pytest.mark.slow
def test_of_many_that_take_over_a_stale_lock_one_succeeds(tmp_path, holding):
    put(tmp_path, pid=ended_process())
    processes = holding(8)
    time.sleep(2)
    (tmp_path / "go").touch()
    answers = [process.stdout.readline() for process in processes]
    assert sorted(answer.split()[0] for answer in answers) == ["held"] + ["refused"] * 7
    assert [path.name for path in locks(tmp_path)] == ["run.lock"]


def test_elsewhere_counts_until_it_falls_silent(tmp_path, monkeypatch, capsys):
    path = put(tmp_path, age=LEASE - 20, host="elsewhere")
    with pytest.raises(UserError, match=f"in use by process .* on elsewhere: .* delete {path}"):
        lock_of(tmp_path).acquire()
    monkeypatch.setattr(folder_lock, "LEASE", 1.0)
    monkeypatch.setattr(folder_lock, "RENEWAL", 0.2)
    put(tmp_path, age=20, host="elsewhere")
    lock = lock_of(tmp_path)
    lock.acquire()
    lock.check_held()
    assert "on elsewhere, which has been silent" in capsys.readouterr().err


def test_a_stopped_process_keeps_it(tmp_path):
    put(tmp_path, age=LEASE + 20)
    with pytest.raises(UserError, match=f"in use by process {os.getppid()}"):
        lock_of(tmp_path).acquire()


def test_a_process_number_that_is_used_again(tmp_path):
    put(tmp_path)
    with pytest.raises(UserError, match="in use"):
        lock_of(tmp_path).acquire()
    put(tmp_path, start=1)
    lock_of(tmp_path).acquire()


@pytest.mark.parametrize("content", ["", "{", "\0" * 100])
def test_a_lock_file_that_was_not_completed(content, tmp_path):
    path = tmp_path / "run.lock"
    path.write_text(content)
    with pytest.raises(UserError, match="in use by another process"):
        lock_of(tmp_path).acquire()
    os.utime(path, (time.time() - 600, time.time() - 600))
    lock_of(tmp_path).acquire()


def test_of_one_process_the_last_to_ask_has_it(tmp_path):
    first, second = lock_of(tmp_path), lock_of(tmp_path)
    first.acquire()
    second.acquire()
    second.check_held()
    with pytest.raises(UserError, match="has taken over"):
        first.check_held()


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
    os.utime(lock.path, (0, 0))
    deadline = time.monotonic() + 30
    while lock.path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_lost_it_notices(tmp_path):
    lock = lock_of(tmp_path)
    lock.acquire()
    lock.check_held()
    lock.path.unlink()
    lock.check_held()
    lock.path.unlink()
    other = put(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getppid()} on .* has taken over"):
        lock.check_held()
    lock.release()
    assert locks(tmp_path) == [other]


def test_names_are_independent(tmp_path):
    put(tmp_path)
    FolderLock(tmp_path, "probe", tmp_path).acquire()
