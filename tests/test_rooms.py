"""One op, one name, in every room: an op's file stands in each place where it must."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = sorted(
    p.stem for p in (ROOT / "simmim_kernels/ops").glob("*.py") if not p.stem.startswith("_")
)
ROOMS = (
    "simmim_kernels/ops/{}.py",
    "simmim_kernels/backends/reference/{}.py",
    "simmim_kernels/backends/cpu/{}.py",
    "csrc/cpu/{}.cpp",
    "simmim_kernels/backends/triton/{}.py",
    "tests/test_{}.py",
)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("room", ROOMS)
def test_op_stands_in_every_room(op, room):
    assert (ROOT / room.format(op)).is_file()


@pytest.mark.parametrize("op", OPS)
def test_backends_define_the_same_functions(op):
    import importlib.util

    from simmim_kernels.ops import _define

    ops = importlib.import_module(f"simmim_kernels.ops.{op}")
    names = [v.name for v in vars(ops).values() if isinstance(v, _define.Op) and v.room == op]
    assert names, f"ops/{op}.py defines no op"
    backends = ["reference", "cpu"]
    if importlib.util.find_spec("triton"):
        backends.append("triton")
    if (ROOT / f"simmim_kernels/backends/cuda/{op}.py").is_file():
        backends.append("cuda")
    for backend in backends:
        module = importlib.import_module(f"simmim_kernels.backends.{backend}.{op}")
        for name in names:
            assert callable(getattr(module, name)), f"{backend} lacks {name}"
