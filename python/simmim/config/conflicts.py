"""Settings that contradict each other, and settings that have no effect together.

What is refused and what is only said: a run that cannot be what was asked for is refused; a setting
that others make idle is said, where it may come from a preset or a script, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from simmim.config.numbers import flag
from simmim.errors import UserError


def check_conflicts(config: object, defaults: object | None = None) -> None:
    """Raise ``UserError`` for settings of one command that contradict each other; ``defaults`` are
    those before the command line changed them, without it the class's."""
    for text in _conflicts(config, _given(config, defaults)):
        raise UserError(text)


def check_without_validation(config: object, defaults: object | None = None) -> None:
    """Raise ``UserError`` for settings about the validation of a run that has no images for it;
    ``defaults`` as of ``check_conflicts``."""
    given = _given(config, defaults)
    for name in ("picture", "val_crops", "val_every"):
        if given(name) and vars(config).get(name):
            raise UserError(f"{flag(name)} needs validation images: give --val-data or --val-count")


def remarks(config: object, validated: bool = False) -> list[str]:
    """A line for each setting of a training run that has no effect or an unexpected one; ``validated``
    says whether images were found to validate on, as in data that is split."""
    has, lines = vars(config).get, []
    if 0 < has("epochs", 0) <= has("warmup_epochs", 0):
        lines.append(
            f"the warm-up of {config.warmup_epochs:g} epochs is as long as the run of "
            f"{config.epochs} or longer: the learning rate never comes down from --lr, or never "
            "reaches it; lower --warmup-epochs"
        )
    given = _given(config, None)
    lines += [f"{flag(name)} has no effect {why}" for name, why in _idle(has) if given(name)]
    late = [m for m in has("milestones", ()) if m >= has("epochs")]
    if late and has("schedule") == "multistep":
        lines.append(
            f"--milestones {late[0]:g} is never reached: the run ends after {config.epochs} epochs"
        )
    if has("data") is not None and has("data") == has("val_data"):
        lines.append("--val-data is --data: the validation is on the images of the training")
    demo = has("preset") == "demo" and has("data") is None
    asked = has("val_data") is not None or has("val_count") or demo
    if has("picture") and not asked and not validated:
        lines.append("no picture is drawn at the end: there are no validation images")
    if has("cache") and has("workers") not in (None, "auto", 0, 1):
        lines.append(
            f"--cache with --workers {config.workers}: each worker comes to hold all decoded images"
        )
    return lines


def _idle(has: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Settings that others make idle, and which."""
    schedule = has("schedule")
    if schedule != "multistep":
        yield from ((name, f"with --schedule {schedule}") for name in ("milestones", "gamma"))
    if schedule in ("step", "multistep"):
        yield "min_lr", f"with --schedule {schedule}"
    if has("warmup_epochs") == 0:
        yield "warmup_lr", "without --warmup-epochs"
    if has("layer_decay", 1) == 1:
        yield "fixed_ends", "without a --layer-decay"
    if not has("nodata"):
        yield "nodata_share", "without --nodata"
    if not has("picture", 1):
        yield "show_bands", "without --picture"


def _conflicts(config: Any, given: Callable[[str], bool]) -> Iterator[str]:
    has = vars(config).get
    if has("resume") and has("overwrite"):
        yield "--resume goes on with the run in --out, --overwrite deletes it: give one of them"
    if has("checkpoint") and has("init_from"):
        yield "--checkpoint and --init-from both bring an encoder: give one of them"
    if has("val_data") is not None:
        for name in ("val_count", "val_share"):
            if given(name):
                yield (
                    f"{flag(name)} holds images of --data out, --val-data brings others: give one "
                    "of them"
                )
    if has("lr") is not None:
        yield from _learning_rates(config)
    demo = has("preset") == "demo" and has("data") is None
    if demo:
        for name in ("val_data", "val_count"):
            if has(name):
                yield f"--preset demo brings its own validation images: {flag(name)} needs --data"
    for name in ("decoder_width", "decoder_depth", "decoder_heads", "second_ratio"):
        if given(name) and has("method") == "simmim":
            yield f"{flag(name)} is for --method mae: leave it out"
    if given("target_window") and has("target_norm") != "window":
        yield "--target-window is the square of --target-norm window: give that too"
    if has("target") == "hog" and given("picture") and has("picture"):
        yield "--target hog predicts histograms, of which --picture draws none: leave it out"
    if has("encoder") == "cnn" and given("attention"):
        yield "--encoder cnn has no attention: leave out --attention"
    if has("compile") == "on" and has("shard"):
        yield "--compile on does not go with --shard: leave out one of them"
    encoder_alone = has("encoder_only") or has("project") == "timm"
    if encoder_alone and given("head_order"):
        yield "--head-order is about a head, and an encoder alone has none: leave it out"


def _learning_rates(config: Any) -> Iterator[str]:
    if config.schedule == "multistep" and not config.milestones:
        yield "--schedule multistep drops the learning rate at --milestones: give some, in epochs"
    early = [m for m in config.milestones if m < config.warmup_epochs]
    if config.schedule == "multistep" and early:
        yield (
            f"--milestones {early[0]:g} lies within the warm-up of {config.warmup_epochs:g} epochs: give "
            "a later one, or a shorter --warmup-epochs"
        )
    if config.schedule.startswith("cosine") and config.min_lr > config.lr:
        yield (
            f"--min-lr {config.min_lr:g} is larger than --lr {config.lr:g}: give a --min-lr of at "
            "most --lr"
        )
    if config.warmup_epochs and config.warmup_lr > config.lr:
        yield (
            f"--warmup-lr {config.warmup_lr:g} is larger than --lr {config.lr:g}: give a "
            "--warmup-lr of at most --lr"
        )


def _given(config: object, defaults: object | None) -> Callable[[str], bool]:
    """Whether a setting of ``config`` is another than the default."""
    before = {field.name: field.default for field in dataclasses.fields(config)}
    if defaults is not None:
        before = {name: getattr(defaults, name) for name in before}
    return lambda name: name in before and getattr(config, name) != before[name]
