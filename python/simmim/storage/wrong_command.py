"""The error for a checkpoint of one command that is given to another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def explain_wrong_command(path: Path, state: Mapping[str, Any], wanted: str) -> str:
    """Why the checkpoint at ``path`` does not serve, and what does, in one line.

    Args:
        state: what it holds.
        wanted: the command whose checkpoint was expected.
    """
    if state["kind"] != "finetune":
        return (
            f"{path} was written by simmim {state['kind']}, whose models have no classes: train one "
            f"with simmim {wanted} --checkpoint {path} and another --out"
        )
    started = json.loads(state["config"])["checkpoint"]
    pretrained = f", for example the one it started from, {started}" if started else ""
    return (
        f"{path} holds a fine-tuned classifier, and what is asked for takes a checkpoint of simmim "
        f"{wanted}{pretrained}; to train the classifier further use simmim finetune --resume"
    )
