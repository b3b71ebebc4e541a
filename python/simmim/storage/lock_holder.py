"""The process that holds a lock: its identity, and whether it still runs."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _process_space() -> str:
    """Within which process numbers mean the same; empty where the system does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def start_time(pid: int) -> str | None:
    """When process ``pid`` was started, as the system counts; empty where it does not say, ``None``
    if there is no such process, or only its exit status is left."""
    # the name of the program, in parentheses, may hold spaces and parentheses itself
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) >= 20:
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        # a process of another user; /proc may hide those
        pass
    return ""


@dataclass(frozen=True)
class Holder:
    """A process, in words that other processes and machines can compare.

    Attributes:
        host: the machine's name.
        boot: which start of the machine, empty where unknown; with it, machines of the same name
            are told apart.
        space: within which process numbers mean the same: containers have their own.
        pid: the process number.
        started: when it was started, as the system counts.
        token: of this lock alone.
    """

    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=lambda: _read("/proc/sys/kernel/random/boot_id"))
    space: str = field(default_factory=_process_space)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: start_time(os.getpid()) or "")
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @classmethod
    def from_json(cls, text: str) -> Holder | None:
        """The holder that ``to_json`` described; ``None`` if the text is not complete."""
        kinds = {field.name: int if field.name == "pid" else str for field in fields(cls)}
        try:
            values = json.loads(text)
            complete = {name: type(value) for name, value in values.items()} == kinds
        except (ValueError, AttributeError):
            return None
        return cls(**values) if complete else None

    def to_json(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    def place(self) -> tuple[str, str, str]:
        return self.host, self.boot, self.space

    def is_this_process(self) -> bool:
        return self == Holder(token=self.token)

    def runs(self) -> bool | None:
        """Whether the process still runs; ``None`` where that cannot be seen from here."""
        if self.place() != Holder().place():
            return None
        now = start_time(self.pid)
        if now == "":
            return None
        return now is not None and now == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"
