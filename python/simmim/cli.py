"""The command line: ``simmim pretrain``, ``reconstruct``, ``finetune``, ``probe``, ``import`` and
``export``."""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Annotated

from simmim.config import PretrainConfig, ReconstructConfig
from simmim.errors import (
    LostProcessError,
    MissingPackageError,
    UnreadableImageError,
    UserError,
    first_line,
    printable,
    require,
)
from simmim.exchange_config import ExportConfig, ImportConfig
from simmim.labels_config import FinetuneConfig, ProbeConfig
from simmim.memory import keep_freed_memory
from simmim.presets import PRESETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: another process of the run has died. 2: a mistake in what was asked for, or something
    that the system refuses, told in one line. 130, 143: Ctrl-C, SIGTERM, after saving a checkpoint.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # names of files may hold any bytes, and those that are no text are printed as \udc.., not
        # refused
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(arguments)
    except (UserError, MissingPackageError) as error:
        # of several processes that all meet the same mistake, the first one speaks
        if os.environ.get("RANK", "0") == "0" or isinstance(error, UnreadableImageError):
            print(printable(f"simmim: {error}"), file=sys.stderr)
        return 2
    except LostProcessError:
        return 1
    except KeyboardInterrupt:
        print("simmim: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output has gone; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # a full disk, a folder that may not be written: what the machine refuses is no fault of ours
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(printable(f"simmim: {error.strerror or first_line(error)}{where}"), file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    tyro = require("tyro")
    pretrain = tyro.conf.subcommand(
        "pretrain", default=PRESETS[_preset(arguments)], prefix_name=False
    )
    config = tyro.cli(
        Annotated[PretrainConfig, pretrain]
        | Annotated[ReconstructConfig, tyro.conf.subcommand("reconstruct", prefix_name=False)]
        | Annotated[FinetuneConfig, tyro.conf.subcommand("finetune", prefix_name=False)]
        | Annotated[ProbeConfig, tyro.conf.subcommand("probe", prefix_name=False)]
        | Annotated[ImportConfig, tyro.conf.subcommand("import", prefix_name=False)]
        | Annotated[ExportConfig, tyro.conf.subcommand("export", prefix_name=False)],
        args=arguments,
        prog="simmim",
        description="Masked image modelling: pre-train encoders on images alone.",
    )
    if isinstance(config, PretrainConfig | FinetuneConfig | ProbeConfig):
        keep_freed_memory()
    if isinstance(config, PretrainConfig):
        return _pretrain(config)
    if isinstance(config, FinetuneConfig | ProbeConfig):
        module = "finetune" if isinstance(config, FinetuneConfig) else "probe"
        return require(f"simmim.{module}").command(config)
    if isinstance(config, ImportConfig | ExportConfig):
        return require("simmim.exchange").command(config)
    from simmim.reconstruct import run

    run(config)
    print(f"wrote {config.out}")
    return 0


def _preset(arguments: list[str]) -> str:
    """The preset named on the command line, needed before parsing: it sets the defaults."""
    for here, after in itertools.pairwise([*arguments, ""]):
        if here.partition("=")[0] == "--preset":
            name = here.partition("=")[2] or after
            return name if name in PRESETS else "none"
    return "none"


def _pretrain(config: PretrainConfig) -> int:
    from simmim.plot import loss_curve
    from simmim.reconstruct import run
    from simmim.report import print_trained, print_written, run_files, stopped
    from simmim.train import Trainer

    trainer = Trainer(config)
    summary = trainer.fit()
    if summary.signal or not trainer.fabric.is_global_zero:
        return stopped(trainer, summary)
    print_trained(trainer, summary)
    counters = summary.counters
    written = [("checkpoint", summary.checkpoint)]
    if counters.last_validation is not None:
        print(
            f"validation loss {counters.first_validation:.4f} at the start, "
            f"{counters.last_validation:.4f} at the end; "
            f"{counters.baseline:.4f} for predicting the mean colour of the visible part"
        )
        if config.picture:
            picture = config.out / "reconstruction.png"
            run(ReconstructConfig(summary.checkpoint, out=picture, count=config.picture))
            written.append(("reconstruction", picture))
    curve = config.out / "loss_curve.png"
    loss_curve(config.out / "metrics.csv", curve, counters.baseline)
    written += [("loss curve", curve), *run_files(config.out)]
    print_written(*written)
    return 0
