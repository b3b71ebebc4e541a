"""timm's `config.json` beside a model: what it says of the encoder and of its classifier."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.exchange.settings import Wanted, arguments_of, as_setting, complete, family_of, unlike
from simmim.models.build import encoder_of
from simmim.models.encoders import PAPER_ENCODERS

#: arguments of timm's that are no encoder's, or that are looked at elsewhere
_OTHERS = frozenset(
    {
        *("img_size", "in_chans", "num_classes", "global_pool", "fc_norm", "use_fc_norm"),
        *("pool_include_prefix", "drop_rate", "drop_path_rate", "window_size"),
    }
)


class Said(NamedTuple):
    """The configuration completed, images and windows of the file's model, and what there is to tell."""

    trained: PretrainConfig
    img_size: Any
    window: Any
    notes: list[str]


def read_timm(trained: PretrainConfig, file: dict[str, Any], where: str) -> Said:
    """`trained` with what the architecture and the arguments in `file` say and no tensor shows.

    Arguments that `file` does not name are those of `trained`: timm before 1.0.31 wrote none.

    Raises:
        UserError: a setting that contradicts those of `trained`, or that its encoder cannot have.
    """
    given, notes = arguments_in(file), []
    img_size, window = given.get("img_size"), _window(given.get("window_size"))
    settings = {k: as_setting(v) for k, v in given.items() if k not in _OTHERS and v is not None}
    if window and "window_size" not in trained.encoder_args:
        settings["window_size"] = as_setting(window)
    name = str(file["architecture"]).partition(".")[0]
    if name == PAPER_ENCODERS.get(trained.encoder, (trained.encoder,))[0]:
        added = {k: v for k, v in settings.items() if k not in trained.encoder_args}
        trained = dataclasses.replace(trained, encoder_args=trained.encoder_args | added)
        pairs = " ".join(f"{argument} {value}" for argument, value in added.items())
        notes = [f"from its config.json: --encoder-args {pairs}"] if added else []
    theirs = dataclasses.replace(
        trained, encoder=name, encoder_args={**trained.encoder_args, **settings}
    )
    try:
        with torch.device("meta"):
            encoder, ours = encoder_of(theirs), encoder_of(trained)
            if family_of(ours) == "swin" and "window_size" not in theirs.encoder_args:
                # another architecture's window is asked for: tables are interpolated
                size = {"window_size": arguments_of(ours)["window_size"]}
                encoder = encoder_of(
                    dataclasses.replace(theirs, encoder_args=theirs.encoder_args | size)
                )
    except UserError:
        note = f"its config.json names {name}, which can't be built here: heads, activation and epsilon "
        return Said(trained, img_size, window, [note + "are the encoder's own"])
    if family_of(ours) is None:
        return Said(trained, img_size, window, notes)  # which is refused by its own name
    found = {a: Wanted(a, v) for a, v in arguments_of(encoder).items() if v is not None}
    if not isinstance(settings.get("window_size"), int):
        # said as a pair of numbers, which is compared below
        found.pop("window_size", None)
    trained, more = complete(trained, found, where)
    with torch.device("meta"):
        difference = unlike(encoder, encoder_of(trained))
    if difference:
        raise UserError(
            f"{where} holds {name}, as its config.json says, which has {difference}, unlike "
            f"{trained.encoder}: give --encoder {name} with the arguments that it was made with"
        )
    return Said(trained, img_size, window, notes + more)


def arguments_in(file: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which timm makes the model of `file`."""
    given = file.get("model_args")
    return given if isinstance(given, dict) else {}


def _window(said: Any) -> Any:
    """One window of all stages, as a number or a pair; None where there is none."""
    if isinstance(said, list) and said and all(part == said[0] for part in said):
        said = said[0]
    pair = isinstance(said, list) and len(said) == 2 and all(isinstance(n, int) for n in said)
    return tuple(said) if pair else said if isinstance(said, int) else None
