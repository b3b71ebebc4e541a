"""Processes that torchrun or Slurm's srun starts together, srun's described as torchrun's are."""

from __future__ import annotations

import os

from simmim.errors import UserError

#: a variable that torchrun alone sets
_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"


def is_started_with_others() -> bool:
    """Whether this is one of the processes that torchrun or srun started as one run."""
    return _BY_TORCHRUN in os.environ or is_started_by_srun()


def is_first() -> bool:
    """Whether this is the first of those processes, or the only one."""
    # another program may have left the variable, and nobody would say anything
    return not is_started_with_others() or os.environ.get("RANK", "0") == "0"


def is_started_by_srun() -> bool:
    """Whether srun started this process among several. A shell of ``srun --pty`` is one of them, but
    runs commands alone; it has a terminal, which other tasks have not."""
    several = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    return several and _BY_TORCHRUN not in os.environ and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


def describe_as_torchrun() -> None:
    """Set torchrun's variables from srun's, but for ``MASTER_ADDR`` and ``MASTER_PORT`` if they are set.

    Raises:
        UserError: the nodes run different numbers of tasks.
    """
    if not is_started_by_srun():
        return
    slurm = {name: os.environ[f"SLURM_{name}"] for name in _READ}
    counts = _expand(slurm["STEP_TASKS_PER_NODE"])
    if len(set(counts)) > 1:
        raise UserError(
            f"srun started {slurm['STEP_TASKS_PER_NODE']} tasks on its nodes: give --ntasks-per-node"
        )
    os.environ |= {
        "RANK": slurm["PROCID"],
        "LOCAL_RANK": slurm["LOCALID"],
        "GROUP_RANK": slurm["NODEID"],
        "WORLD_SIZE": slurm["STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(counts[0]),
    }
    # one port for each step, of which a job may run several at a time
    port = 15000 + (10 * int(slurm["JOB_ID"]) + int(slurm["STEP_ID"])) % 10000
    os.environ.setdefault("MASTER_PORT", str(port))
    if len(counts) == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")


_READ = (
    "PROCID",
    "LOCALID",
    "NODEID",
    "STEP_NUM_TASKS",
    "STEP_TASKS_PER_NODE",
    "JOB_ID",
    "STEP_ID",
)


def _expand(counts: str) -> list[int]:
    """Numbers of tasks on each node, of which srun writes ``2(x3),1`` for 2, 2, 2, 1."""
    found: list[int] = []
    for part in counts.split(","):
        number, _, times = part.rstrip(")").partition("(x")
        found += [int(number)] * int(times or 1)
    return found
