"""The photographs of preset ``demo``: those that lie inside scikit-image's wheel."""

from __future__ import annotations

from pathlib import Path

from simmim.errors import UserError, require

TRAIN = (
    "astronaut.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg",
    "ihc.png", "hubble_deep_field.jpg", "camera.png", "coins.png", "moon.png", "brick.png",
    "grass.png", "gravel.png",
)  # fmt: skip
HELD_OUT = ("chelsea.png", "coffee.png")


def demo_photographs() -> tuple[list[Path], list[Path]]:
    """Files to train on, and the two held out (a cat, a cup of coffee); raises ``UserError`` where
    the installed scikit-image lacks one of them."""
    folder = Path(require("skimage", "demo").__file__).parent / "data"
    for name in TRAIN + HELD_OUT:
        if not (folder / name).is_file():
            raise UserError(
                f"this scikit-image brings no {name}: install another release of it, or train on "
                "your own images with --data FOLDER"
            )
    return [folder / name for name in TRAIN], [folder / name for name in HELD_OUT]
