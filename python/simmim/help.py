"""What ``simmim --help`` and ``simmim COMMAND --help`` print: the fields of a command's settings with
their docstrings, in groups, the ones that most runs need first. tyro reads the command line itself."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import shutil
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

from simmim.config.numbers import flag

#: groups of options and the fields in them; fields in none are the command's own
_GROUPS = {
    "main options": "checkpoint source project data val_data val_count val_share label_column out resume "
    "overwrite preset method encoder img_size init_from epochs batch_size lr device",
    "own": "",
    "masks and targets": "mask mask_unit mask_ratio second_ratio loss target target_norm target_window "
    "normalize plain",
    "how images are read": "stats bands channels layout column nodata nodata_share pixel_type mean std low "
    "high clip_percentile on_bad_image workers cache",
    "crops and augmentation": "crop_scale crop_ratio crops_per_image interpolation flip test_crop "
    "auto_augment erase mixup cutmix smoothing",
    "model": "encoder_args drop_path init decoder_width decoder_depth decoder_heads fc_norm head_scale",
    "optimisation": "accumulate keep_rest warmup_epochs warmup_lr schedule min_lr milestones gamma late_rate "
    "layer_decay fixed_ends betas weight_decay also_decay clip",
    "validation, log and checkpoints": "val_every val_crops picture show_bands log_every save_every keep",
    "speed and machine": "precision compile attention shard seed",
}
_SIMPLE = {int: "INT", float: "FLOAT", bool: "", str: "TEXT", Path: "PATH"}
#: a longer list of choices goes into the text
_LONGEST_CHOICES = 60

_END = """\
simmim COMMAND --help explains a command's options, simmim --version prints the version.

A training run that ends early, by Ctrl-C, a signal or an error, first saves its state where that is
possible, and --resume goes on from there. Exit status: 0 done; 1 another process of the run has died or
failed; 2 a mistake or numbers that are no longer finite, told in one line; 128 + N ended by signal N, 130 by Ctrl-C, 141 as the reader of the
output has gone."""


def overview(commands: dict[str, type]) -> str:
    """The page of ``simmim --help``: what each of ``commands`` does."""
    parser = _parser(
        "simmim COMMAND [options]", "Masked image modelling: train encoders on images alone."
    )
    group = parser.add_argument_group("commands")
    for name, kind in commands.items():
        summary = " ".join((kind.__doc__ or "").split()).partition(". ")[0]
        group.add_argument(name, metavar=name, help=f"{summary.removesuffix('.')}.")
    return f"{parser.format_help()}\n" + "\n".join(
        f"{_fill(part)}\n" for part in _END.split("\n\n")
    )


def page(command: str, kind: type, defaults: object | None = None) -> str:
    """The page of ``simmim COMMAND --help``, with the values of ``defaults`` where a preset has
    others than the class ``kind``."""
    documented, kinds = _docstrings(kind), typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = [
        f"{flag(name)} {name.upper() if '|' in (word := _metavar(kinds[name])) else word} "
        for name, field in fields.items()
        if dataclasses.MISSING is field.default is field.default_factory
    ]
    usage = f"simmim {command} {''.join(needed)}[options]"
    parser = _parser(usage, " ".join((kind.__doc__ or "").split()))
    grouped = {name for names in _GROUPS.values() for name in names.split()}
    for title, names in _GROUPS.items():
        own = title == "own"
        group = parser.add_argument_group(f"options of {command}" if own else title)
        for name in [n for n in fields if n not in grouped] if own else names.split():
            if name in fields:
                default = getattr(defaults, name, fields[name].default)
                _add(group, name, kinds[name], documented[name], default)
    return parser.format_help()


class _Formatter(argparse.HelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        # a flag such as --min-lr is not broken at its hyphens
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _fill(text: str) -> str:
    width = max(shutil.get_terminal_size().columns - 2, 20)
    return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)


def _parser(usage: str, description: str) -> argparse.ArgumentParser:
    # nothing is parsed with it: argparse puts options and texts into two columns
    return argparse.ArgumentParser(
        usage=usage, description=description, add_help=False, formatter_class=_Formatter
    )


def _add(group: Any, name: str, kind: Any, text: str, default: object) -> None:
    text, metavar = " ".join(text.split()), _metavar(kind)
    if len(metavar) > _LONGEST_CHOICES:
        text, metavar = f"{text} One of: {metavar.replace('|', ', ')}.", "NAME"
    if isinstance(default, tuple):
        default = " ".join(f"{d:.4g}" if isinstance(d, float) else str(d) for d in default)
    if default is dataclasses.MISSING:
        # a dictionary made anew each time is empty; anything else without a default is needed
        text += "" if typing.get_origin(kind) is dict else " (required)"
    elif default is True:
        text += " (default: on)"
    elif default not in (None, "", {}, False) or (default == 0 and default is not False):
        text += f" (default: {default})"
    names = [flag(name), flag(f"no_{name}")] if kind is bool and default is True else [flag(name)]
    how = {"action": "store_true"} if kind is bool else {"metavar": metavar}
    group.add_argument(*names, **how, help=text.replace("%", "%%"))


def _metavar(kind: Any) -> str:
    """A type in words, as ``INT`` or ``auto|cpu|cuda``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is tuple:
        return f"{_metavar(inner[0])} ..." if ... in inner else " ".join(map(_metavar, inner))
    if origin is dict:
        return "NAME VALUE ..."
    if origin in (Union, types.UnionType):
        words = [_metavar(i) for i in inner if i is not type(None)]
        # --bands takes numbers, which its text writes with commas
        return "|".join(word for word in words if word != "TEXT" or len(words) == 1)
    return _SIMPLE[kind]


def _docstrings(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass and of those it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for here, after in itertools.pairwise(body):
            if isinstance(here, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[here.target.id] = ast.literal_eval(after.value)  # type: ignore[union-attr]
    return found
