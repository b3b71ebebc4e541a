"""Loads the compiled modules."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import torch  # first: it loads the OpenMP runtime that the module for the CPU shares


def load(name: str) -> tuple[ModuleType | None, str | None]:
    """The compiled module `simmim_kernels.<name>`; or None, and why it can't be used."""
    try:
        module = importlib.import_module(f"simmim_kernels.{name}")
        module.connect(torch.Tensor)
        if name == "_cpu":
            module.make_call_signature  # noqa: B018, a module of older sources lacks it
        return module, None
    except RuntimeError as error:
        return None, str(error)
    except AttributeError:
        return None, "the compiled module was built from other sources: build it again"
    except ImportError as error:
        record = Path(__file__).parents[1] / "_build_info.json"
        built = json.loads(record.read_text()).get(name, "") if record.exists() else ""
        if built.startswith("not built"):
            return None, built
        return None, f"the compiled module does not load: {error}"
