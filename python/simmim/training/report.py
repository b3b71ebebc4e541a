"""The closing lines of a training command."""

from __future__ import annotations

import contextlib
from pathlib import Path

from simmim.data.listing import summarize_bad
from simmim.evaluation.plot import loss_curve
from simmim.training.counters import Summary
from simmim.training.loop import Loop


def stopped(trainer: Loop, summary: Summary) -> int:
    """The exit status of a process that has nothing more to do; the first one says why."""
    if summary.signal and trainer.fabric.is_global_zero:
        # the terminal may be what has gone
        with contextlib.suppress(OSError):
            print(
                f"stopped by signal {summary.signal} at update {summary.updates}; "
                f"saved {summary.checkpoint}; go on with --resume",
                flush=True,
            )
    return 128 + summary.signal if summary.signal else 0


def print_trained(trainer: Loop, summary: Summary) -> None:
    """Say how much was done, how fast, and what could not be read."""
    print(f"\ntrained {summary.updates} updates at {summary.images_per_second:.0f} images/s")
    bad, partly = summary.counters.bad, summary.counters.partly
    if summary.counters.skipped:
        print(f"{summary.counters.skipped} of them skipped, where the gradient overflowed float16")
    if bad:
        print(
            f"{len(bad)} of {trainer.all_images} images could not be read and were skipped: "
            f"{summarize_bad(bad)}"
        )
    if partly:
        print(f"used in part: {summarize_bad(partly)}")


def print_files(
    trainer: Loop, summary: Summary, *pictures: tuple[str, Path], baseline: float | None = None
) -> None:
    """Draw the loss curve, and say what the run has written and where; ``pictures`` were drawn before."""
    out = trainer.config.out
    curve = out / "loss_curve.png"
    trainer.run_folder.claim(curve)
    loss_curve(out / "metrics.csv", curve, baseline)
    print_written(
        ("checkpoint", summary.checkpoint),
        *pictures,
        ("loss curve", curve),
        ("configuration", out / "config.json"),
        ("numbers", out / "metrics.csv"),
        ("TensorBoard", out / "tensorboard"),
    )


def print_written(*files: tuple[str, Path]) -> None:
    """One line a file: what it is, and where."""
    for what, path in files:
        print(f"  {what:<15} {path}")
