"""What a run says before it begins."""

from __future__ import annotations

from simmim.config.run import RunConfig
from simmim.data.order import Order


def introduction(
    kind: str,
    config: RunConfig,
    order: Order,
    *,
    parameters: int,
    images: int,
    update: int,
    device: str,
) -> str:
    """What is going to be done, in one line.

    Args:
        kind: the command.
        parameters: numbers in the model.
        images: files to train on.
        update: updates done before.
        device: ``"cpu"`` or ``"cuda"``.
    """
    processes = f", {order.world} processes" if order.world > 1 else ""
    return (
        f"{kind} {config.encoder}: {parameters / 1e6:.3g} M parameters, {images} images, "
        f"{order.updates - update} of {order.updates} updates of {order.global_batch} images "
        f"({config.epochs} epochs), {device}{processes}, {config.precision}, into {config.out}"
    )
