"""The cores that a process may use: those that it may run on, and what containers limit it to."""

from __future__ import annotations

import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def limit_threads() -> None:
    """Have PyTorch, if it is not loaded yet, start one thread for each usable core, unless
    ``OMP_NUM_THREADS`` is set. By itself it takes all that it sees."""
    if usable_cores() < visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def usable_cores() -> int:
    """Cores that this process may use, shared fairly with those that torchrun started beside it."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, math.ceil(min(visible_cores(), core_limit())) // here)


def visible_cores() -> int:
    """Cores that this process may run on, which is what PyTorch takes."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def core_limit(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores' worth of time that Linux's control groups allow, infinite without a limit: what
    ``docker --cpus`` and Kubernetes' limits set.

    Args:
        groups: where control groups are mounted, version 1 or 2.
        own: lists the groups of this process, one ``number:controllers:path`` a line.
    """
    limit = math.inf
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return limit
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = groups / controllers
        group = mounted / path.lstrip("/")
        # the limits of all groups around it count; in a container `path` may be the host's
        for place in (group, *group.parents):
            if place.is_relative_to(mounted):
                limit = min(limit, _limit_in(place))
    return limit


def _limit_in(group: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if int(quota) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # no such file; "max", no limit
            continue
    return math.inf
