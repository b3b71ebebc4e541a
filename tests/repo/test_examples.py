"""Every script of `examples/` runs, small, and its loss falls."""

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "own_loop": {"steps": 30, "size": 48, "batch": 8, "width": 32},
    "transformers_vit": {"steps": 30, "size": 48, "batch": 8, "width": 32},
    "timm_encoder": {
        "steps": 30,
        "size": 64,
        "batch": 4,
        "depths": (1, 1, 1, 1),
        "dims": (24, 48, 96, 192),
    },
    "multispectral": {"steps": 30, "height": 72, "width": 48, "batch": 4},
}
NEEDS = {"transformers_vit": "transformers", "timm_encoder": "timm", "multispectral": "timm"}


def test_every_script_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMALL)
    page = (EXAMPLES / "README.md").read_text()
    assert all(f"{name}.py" in page for name in SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_script(name, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    losses = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**SMALL[name])
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5])
    assert "step 20: loss" in capsys.readouterr().out
