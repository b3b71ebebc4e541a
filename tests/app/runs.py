"""Runs in processes of their own that can be killed; importable, so that they can be started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simmim.data.images import read_image

_CONTEXT = multiprocessing.get_context("forkserver")
# the server imports once, each run starts from there at once
_CONTEXT.set_forkserver_preload(
    ["simmim.cli", "simmim.training.pretrain", "simmim.training.finetune", "simmim.data.pack"]
)
_STARTED: list[multiprocessing.Process] = []


def _start(*arguments: object) -> multiprocessing.Process:
    process = _CONTEXT.Process(target=arguments[0], args=arguments[1:])
    process.start()
    _STARTED.append(process)
    return process


def kill_started() -> None:
    """End what a test that failed has left: Python would wait for it without end."""
    while _STARTED:
        process = _STARTED.pop()
        process.kill()
        process.join()


def is_running(process: multiprocessing.Process | subprocess.Popen) -> bool:
    if isinstance(process, subprocess.Popen):
        return process.poll() is None
    return process.is_alive()


def start_command(
    *arguments: object, output: Path, errors: Path, prepare: Callable[[], object] | None = None
) -> multiprocessing.Process:
    """Start ``simmim`` as its entry point does, from a process that has imported it already.

    Args:
        output, errors: files, pipes or devices that stdout and stderr go to.
        prepare: what the process calls first.
    """
    return _start(_run_command, list(map(str, arguments)), output, errors, prepare)


def run_command(*arguments: object, **options: Any) -> int:
    """Run ``simmim`` to its end, see ``start_command``; returns the exit status."""
    process = start_command(*arguments, **options)
    process.join(300)
    assert process.exitcode is not None, "the command did not end"
    return process.exitcode


def _run_command(
    arguments: list[str], output: Path, errors: Path, prepare: Callable[[], object] | None
) -> None:
    import torch

    from simmim.cli import main

    torch.set_num_threads(1)
    for path, stream in ((output, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    if prepare:
        prepare()
    sys.exit(main(arguments))


def start(config, die_at: str | None = None, environment=()) -> multiprocessing.Process:
    """Start training ``config``; ``die_at`` names a moment in writing a checkpoint, see ``_die``."""
    return _start(_train, config, die_at, dict(environment))


def start_together(config, world: int) -> list[multiprocessing.Process]:
    """Start training ``config`` in ``world`` processes, with what torchrun would tell them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    told = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [
        start(config, None, {**told, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


def train_together(config, world: int) -> list[int]:
    """Run to the end in ``world`` processes; returns their exit codes."""
    processes = start_together(config, world)
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def train(config, die_at: str | None = None) -> int:
    """Run to the end; returns the exit code."""
    process = start(config, die_at)
    process.join(300)
    assert process.exitcode is not None, "the run did not end"
    return process.exitcode


def _train(config, die_at: str | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.setsid()  # without the terminal that the tests may run in, as srun's tasks are
    import torch

    from simmim.config.pretrain import PretrainConfig
    from simmim.training.finetune import Finetuner
    from simmim.training.pretrain import Trainer

    torch.set_num_threads(1)
    if die_at:
        _die(*die_at.split(":"))
    try:
        summary = (Trainer if isinstance(config, PretrainConfig) else Finetuner)(config).fit()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(128 + summary.signal if summary.signal else 0)


def _die(moment: str, turn: str) -> None:
    """Replace one step of writing a checkpoint: the process kills itself there, the n-th time."""
    import simmim.storage.checkpoint as module

    left = int(turn)

    def kill() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if moment == "half-written":
        genuine = module.torch.save

        def save(state, file):
            genuine(state, file)
            file.flush()
            file.truncate(file.tell() // 2)
            kill()
            file.seek(0)
            file.truncate()
            genuine(state, file)

        module.torch.save = save
    elif moment == "before-rename":
        genuine_replace = Path.replace

        def replace(self, target):
            if str(target).endswith(".pt") and "step" in str(target):
                kill()
            return genuine_replace(self, target)

        Path.replace = replace
    elif moment == "before-link":
        import simmim.storage.run_folder as module

        genuine_point = module.point_last_at
        module.point_last_at = lambda path: (kill(), genuine_point(path))
    else:
        raise ValueError(moment)


def stop_at(trainer: Any, update: int) -> None:
    """Have the process sent SIGTERM in the middle of ``update``, counted from 1."""
    step = trainer.optimizer.step

    def stop() -> None:
        if trainer.update == update - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step()

    trainer.optimizer.step = stop


def kill_readers(monkeypatch: Any) -> None:
    """Have every process that reads images killed at its first one."""
    parent, genuine = os.getpid(), read_image

    def die(path: Any, wanted: Any) -> Any:
        if os.getpid() == parent:
            return genuine(path, wanted)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("simmim.data.crops.read_image", die)
