"""The grids of position tables in another project's file, and the tables made to fit ours."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.models.build import encoder_of
from simmim_kernels.integrations.position_tables import Table, resample, square_table, tables_of

Size = int | tuple[int, int] | None
_ENCODER = "encoder.backbone."


def fit_tables(
    ours: dict[str, Tensor],
    backbone: nn.Module,
    config: PretrainConfig,
    *,
    img_size: Size,
    window: Size,
    where: str,
    cubic: bool = False,
) -> tuple[dict[str, Tensor], list[str]]:
    """`ours` with its position tables interpolated to the grids of `backbone`, and what was done.

    Args:
        ours: tensors by our names.
        config: describes `backbone`.
        img_size, window: of the model that the tables come from; None where unknown, which is
            refused unless a table can only be one of a square grid.
        where: the file's name in messages.
        cubic: as for `resample`.

    Raises:
        UserError: a table whose grid is not known, or has other rows than its grid.
    """
    known = _source_tables(config, img_size, window, where)
    out, guessed, changed = dict(ours), set(), set()
    for name, target in tables_of(backbone).items():
        table = ours.get(_ENCODER + name)
        axis = 0 if target.relative else 1
        if table is None or table.dim() != (2 if target.relative else 3):
            continue
        rows = table.shape[axis]
        source = known.get(name)
        if source is None or source.rows != rows:
            said = f"{where}: {name} has {rows} rows"
            _check_known(said, source, target, img_size, window)
            source = _square(said, rows, target)
            guessed |= {_words(source)} if source != target else set()
        try:
            out[_ENCODER + name] = resample(table, source, target, cubic=cubic)
        except ValueError as error:
            raise UserError(f"{where}: {name}: {error}") from None
        if source != target:
            changed.add((name, f"{_words(source)} to {_words(target)}"))
    notes = []
    if changed:
        grids = ", ".join(sorted({grid for _, grid in changed}))
        notes.append(f"interpolated {len(changed)} position tables, {grids}")
    if guessed:
        notes.append(
            f"taken for tables of square images: {', '.join(sorted(guessed))}; if they are not, "
            "give --source-img-size and, for Swin, --source-window"
        )
    return out, notes


def _source_tables(
    config: PretrainConfig, img_size: Size, window: Size, where: str
) -> dict[str, Table]:
    """The tables that the file's model has, by name; none where its image size is unknown."""
    if img_size is None and window is None:
        return {}
    arguments = dict(config.encoder_args)
    if window is not None:
        arguments["window_size"] = window if isinstance(window, int) else ",".join(map(str, window))
    source = dataclasses.replace(
        config, img_size=img_size or config.img_size, encoder_args=arguments
    )
    try:
        with torch.device("meta"):
            backbone = encoder_of(source).backbone
    except UserError as error:
        raise UserError(f"{where}, its --source-img-size or --source-window: {error}") from None
    # without the image size only windows are known
    return {n: t for n, t in tables_of(backbone).items() if img_size or t.relative}


def _check_known(
    said: str, source: Table | None, target: Table, img_size: Size, window: Size
) -> None:
    """Refuse rows that contradict what is known of the file's grid."""
    if source is None or (target.relative and window is None):
        return
    if target.relative and source.height != source.width:
        return  # microsoft's windows stay square where timm's are cut to the grid
    raise UserError(
        f"{said}, not the {source.rows} of {_words(source)}: check --source-img-size "
        f"({img_size}) and --source-window ({window})"
    )


def _square(said: str, rows: int, target: Table) -> Table:
    source = square_table(rows, target)
    ways = "give --source-img-size HEIGHT WIDTH, the images that the file's model was trained on"
    ways += ", and for Swin --source-window" if target.relative else ""
    if source is None:
        raise UserError(f"{said}, which no square image has: {ways}")
    if rows == target.rows and source != target:
        raise UserError(f"{said}, of {_words(source)} or of {_words(target)}: {ways}")
    return source


def _words(table: Table) -> str:
    kind = "offsets in" if table.relative else "grid"
    return f"{kind} {table.height}x{table.width}"
