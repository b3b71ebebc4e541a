"""``simmim reconstruct``: a picture of a trained model's predictions for hidden pixels."""

from __future__ import annotations

from pathlib import Path

from simmim.config.pretrain import PretrainConfig, ReconstructConfig
from simmim.data.batches import Sample, collate
from simmim.data.crops import central_crops
from simmim.data.item import Item
from simmim.data.listing import check_outside
from simmim.data.sources import find_source
from simmim.data.splits import split_files
from simmim.errors import UserError, say
from simmim.evaluation import plot
from simmim.models.build import build_masking, build_model
from simmim.models.simmim import SimMIM
from simmim.storage import checkpoint
from simmim.storage.outputs import check_replaceable


def load_model(path: Path) -> tuple[SimMIM, PretrainConfig]:
    """The model of a checkpoint, in evaluation mode on the CPU, and its run's configuration."""
    state = checkpoint.load(path)
    config = checkpoint.settings(path, state, PretrainConfig)
    model = build_model(config)
    checkpoint.check_weights(path, state["model"], model.state_dict())
    model.load_state_dict(state["model"])
    return model.eval(), config


def command(config: ReconstructConfig) -> int:
    """Write the picture that ``config`` asks for; returns the exit status.

    Raises:
        UserError: as ``draw``, or the picture may not be replaced.
    """
    check_replaceable(config.out, config.overwrite, config.checkpoint, config.data)
    draw(config)
    print(f"wrote {config.out}")
    return 0


def draw(config: ReconstructConfig) -> None:
    """As ``command``, whatever stands at ``config.out``.

    Raises:
        UserError: no checkpoint there, no images, none that can be read, no such picture format, or
            a picture that would lie among the images.
    """
    plot.check_picture(config.out)
    model, trained = load_model(config.checkpoint)
    display = plot.choose_display(trained, config.show_bands)
    for folder in (config.data, trained.data, trained.val_data):
        if folder is not None:
            check_outside(config.out, folder)
    if config.data is not None:
        paths = find_source(config.data, trained).paths
    else:
        paths = split_files(trained).validation
    if not paths:
        raise UserError("the run has no validation images: say which to show with --data FOLDER")
    samples = _first_readable(config, trained, paths)
    batch = collate(samples)
    mask = build_masking(trained)(batch.ids, seed=config.seed)
    plot.reconstruction_picture(plot.reconstruct(model, batch.images, mask, display), config.out)


def _first_readable(
    config: ReconstructConfig, trained: PretrainConfig, paths: list[Path | Item]
) -> list[Sample]:
    samples = []
    for number, path in enumerate(paths):
        sample = central_crops(trained, [path])[0, 0]
        if sample.read:
            samples.append(sample._replace(id=number))
        elif config.on_bad_image == "error":
            raise UserError("cannot read {}: {}".format(*sample.bad[0]))
        else:
            say("skipped {}: {}".format(*sample.bad[0]))
        if len(samples) == config.count:
            break
    if not samples:
        raise UserError(f"none of the {len(paths)} images can be read")
    return samples
