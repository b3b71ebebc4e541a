"""The command line: ``simmim pretrain``, ``reconstruct``, ``finetune``, ``probe``, ``predict``,
``features``, ``stats``, ``pack``, ``import`` and ``export``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import itertools
import operator
import os
import signal
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Annotated

from simmim.config.apply import FeaturesConfig, PredictConfig
from simmim.config.conflicts import check_conflicts
from simmim.config.exchange import ExportConfig, ImportConfig
from simmim.config.images import MEASURED, measured
from simmim.config.labels import FinetuneConfig, ProbeConfig
from simmim.config.numbers import check_numbers, flag
from simmim.config.pretrain import PretrainConfig, ReconstructConfig
from simmim.config.run import STARTED_FROM, Config
from simmim.config.scan import PackConfig, StatsConfig
from simmim.cores import limit_threads
from simmim.errors import (
    LostProcessError,
    MissingPackageError,
    ProcessError,
    UserError,
    require,
    say,
    system_words,
)
from simmim.help import overview, page
from simmim.launchers import describe_as_torchrun, is_first, is_started_with_others
from simmim.presets import FINETUNE_PRESETS, METHODS, PRESETS
from simmim.storage.files import files_like


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, as ``simmim --help`` lists them. ``SystemExit`` is
    raised with status 0 after ``--help``, with 2 for a command line that cannot be read."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # one that the parent closed: the next file that is opened would take its place
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # names of files may hold any bytes, and those that are no text are printed as \udc.., not
        # refused
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        describe_as_torchrun()
        limit_threads()
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except (UserError, MissingPackageError) as error:
        # of several processes that all meet the same mistake, the first one speaks
        if is_first() or isinstance(error, ProcessError):
            _print_error(str(error))
        return 2
    except LostProcessError:
        return 1
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except BrokenPipeError:
        _print_error("the reader of the output has gone")
        return 128 + signal.SIGPIPE
    # a full disk, a folder that may not be written: what the machine refuses is no fault of ours
    except OSError as error:
        _print_error(system_words(error))
        return 2
    finally:
        _give_up_broken_output()


#: settings of each command, and the module whose ``command`` runs it
_COMMANDS: dict[str, tuple[type, str]] = {
    "pretrain": (PretrainConfig, "training.pretrain"),
    "reconstruct": (ReconstructConfig, "evaluation.reconstruct"),
    "finetune": (FinetuneConfig, "training.finetune"),
    "probe": (ProbeConfig, "evaluation.probe"),
    "predict": (PredictConfig, "evaluation.predict"),
    "features": (FeaturesConfig, "evaluation.features"),
    "stats": (StatsConfig, "data.statistics"),
    "pack": (PackConfig, "data.pack"),
    "import": (ImportConfig, "exchange.command"),
    "export": (ExportConfig, "exchange.command"),
}


def _print_error(text: str) -> None:
    """Print one line to stderr, if that still takes any."""
    with contextlib.suppress(OSError, ValueError):
        say(f"simmim: {' '.join(text.splitlines())}")


def _give_up_broken_output() -> None:
    """Send what cannot be written nowhere, or Python complains once more when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"simmim {version()}")
        return 0
    if not arguments:
        raise UserError(f"say what to do: {', '.join(_COMMANDS)}; simmim --help explains them")
    if arguments[0] in ("-h", "--help"):
        print(overview({name: kind for name, (kind, _) in _COMMANDS.items()}), end="")
        raise SystemExit(0)
    tyro = require("tyro")
    _check_paths(arguments)
    for name in ("--data", "--val-data"):
        _given(arguments, name, ())
    preset = _given(arguments, "--preset", {**PRESETS, **FINETUNE_PRESETS}) or "none"
    method = _given(arguments, "--method", METHODS) or "simmim"
    default = METHODS[method] if preset == "none" else PRESETS[preset]
    tuned = FINETUNE_PRESETS.get(preset, FINETUNE_PRESETS["none"])
    if "--resume" in arguments:
        default, tuned = _of_earlier_run(arguments, default), _of_earlier_run(arguments, tuned)
    if arguments[0] in _COMMANDS and {"-h", "--help"} & {*arguments}:
        kind = _COMMANDS[arguments[0]][0]
        presets = {type(settings): settings for settings in (default, tuned)}
        print(page(arguments[0], kind, presets.get(kind)), end="")
        raise SystemExit(0)
    # tyro asks for pairs that a default holds already by flags of their own
    pairs = {type(settings): settings.encoder_args for settings in (default, tuned)}
    default, tuned = (dataclasses.replace(c, encoder_args={}) for c in (default, tuned))
    defaults = {"pretrain": {"default": default}, "finetune": {"default": tuned}}
    commands = (
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False, **defaults.get(name, {}))]
        for name, (kind, _) in _COMMANDS.items()
    )
    config = tyro.cli(
        functools.reduce(operator.or_, commands),
        args=arguments,
        prog="simmim",
    )
    if type(config) in pairs and not config.encoder_args:
        config = dataclasses.replace(config, encoder_args=pairs[type(config)])
    if hasattr(config, "check"):
        config.check()
    else:
        check_numbers(config)
        check_conflicts(config)
    if _values(arguments, "--channels") and getattr(config, "stats", None):
        # 3 is the default, which the number in the file replaces where nobody asked for it
        found = measured(config).channels
        if found != config.channels:
            raise UserError(
                f"--stats {config.stats} has {found} channels, not {config.channels}: leave out --channels"
            )
    processes = int(os.environ["WORLD_SIZE"]) if is_started_with_others() else 1
    if processes > 1 and not isinstance(config, PretrainConfig | FinetuneConfig):
        if not is_first():
            return 0
        say(f"{arguments[0]} runs in one of the {processes} processes")
    if isinstance(config, PretrainConfig | FinetuneConfig | ProbeConfig):
        if "torch" not in sys.modules and is_first():
            # PyTorch takes seconds to load, from a cold disk many
            say(
                f"simmim {version()}: {arguments[0]} on {config.data or 'the demo'}, results in "
                f"{config.out}; loading PyTorch"
            )
        from simmim_kernels import keep_freed_memory

        keep_freed_memory()
    module = next(module for kind, module in _COMMANDS.values() if kind is type(config))
    return require(f"simmim.{module}").command(config)


def version() -> str:
    """The version of the installed package, or of the source where nothing is installed."""
    try:
        return importlib.metadata.version("simmim-kernels")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _values(arguments: list[str], name: str) -> list[str]:
    """What a flag is given on the command line, each time that it is."""
    return [
        here.removeprefix(f"{name}=") if "=" in here else after
        for here, after in itertools.pairwise([*arguments, "(nothing)"])
        if here.partition("=")[0] == name
    ]


def _check_paths(arguments: list[str]) -> None:
    """Refuse a path that is empty, as a variable of a shell that is not set leaves it: it would be
    the folder that the command is given in."""
    fields = {f for kind, _ in _COMMANDS.values() for f in dataclasses.fields(kind)}
    for name in sorted({flag(f.name) for f in fields if "Path" in str(f.type)}):
        if "" in _values(arguments, name):
            raise UserError(f"{name} is empty: name a file or folder, or . for the one you are in")


def _given(arguments: list[str], name: str, known: Container[str]) -> str | None:
    """A flag's value on the command line, if it is known, needed before parsing: it sets defaults;
    raises ``UserError`` for two different ones."""
    names = {*_values(arguments, name)}
    if len(names) > 1:
        raise UserError(f"{name} is given more than once: {', '.join(sorted(names))}")
    value = names.pop() if names else None
    return value if value in known else None


def _of_earlier_run(arguments: list[str], default: Config) -> Config:
    """The settings of the run in --out, which --resume takes where the command line has none;
    ``default``, those of a new run, where no run of that kind and preset is there."""
    outs = _values(arguments, "--out")
    path = Path(outs[-1] if outs else default.out, "config.json")
    try:
        settings = type(default).from_json(path.read_text(encoding="utf-8"))
    # no run, another command's, or a file that somebody edited: what resumes it will say so
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
        TypeError,
        AttributeError,
        UserError,
    ):
        return default
    if default.preset not in ("none", settings.preset):
        return default
    # its statistics it has; another file of them is looked at anew
    stated = _values(arguments, "--stats")
    measured = {name: getattr(default, name) for name in MEASURED} if stated else {}
    once = {"resume": False, "overwrite": False, "stats": None}
    # and weights once it has a checkpoint: killed before the first one, it begins as it was to
    if files_like(path.parent / "checkpoints", "step-*.pt"):
        once |= {name: None for name in STARTED_FROM if hasattr(settings, name)}
    return dataclasses.replace(settings, **once, **measured)
