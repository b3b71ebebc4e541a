"""TensorBoard's files, in folders of any name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from simmim.errors import require
from simmim.storage.files import is_utf8

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def event_writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """A writer of event files in ``folder``, which is made.

    Args:
        purge_step: TensorBoard forgets earlier records from this step on.
    """
    tensorboard = require("torch.utils.tensorboard")
    folder.mkdir(parents=True, exist_ok=True)
    name = str(folder)
    if not is_utf8(folder):
        # TensorBoard takes text only; Linux, where names are bytes, knows an open folder by a number
        # as well, and it stays open as long as the process writes
        name = f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"
    return tensorboard.SummaryWriter(name, purge_step=purge_step)
