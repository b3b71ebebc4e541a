"""Checks of the layout: an op has a file of its name in every layer, and imports go one way."""

import ast
import importlib
import importlib.util
import inspect
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from simmim_kernels.backends._loss_spec import LossSpec
from tests.gpu import launches
from tests.gpu.cuda_cases import CASES
from tests.gpu.suite import modules_of

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    p.stem for p in (ROOT / "simmim_kernels/ops").glob("*.py") if not p.stem.startswith("_")
)
LAYERS = (
    "simmim_kernels/ops/{}.py",
    "simmim_kernels/backends/reference/{}.py",
    "simmim_kernels/backends/cpu/{}.py",
    "csrc/cpu/{}.cpp",
    "simmim_kernels/backends/triton/{}.py",
    "tests/ops/test_{}.py",
)


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_has_a_file_of_the_op(op, layer):
    assert (ROOT / layer.format(op)).is_file()


def test_every_op_on_a_gpu_has_a_case_for_one_and_launches_to_compile():
    named = {op for modules, *_ in CASES.values() for op in modules}
    assert named == {*modules_of("triton")} - {"avg_dist"}  # a number, so it waits for the GPU
    assert not [op for op in modules_of("triton") if not hasattr(launches, op)]


@pytest.mark.parametrize("op", NAMES)
def test_backends_define_the_same_functions(op):
    from simmim_kernels.ops import _define

    ops = importlib.import_module(f"simmim_kernels.ops.{op}")
    defined = [v for v in vars(ops).values() if isinstance(v, _define.Op) and v.module == op]
    assert defined, f"ops/{op}.py defines no op"
    backends = ["reference", "cpu"]
    if importlib.util.find_spec("triton"):
        backends.append("triton")
    if (ROOT / f"simmim_kernels/backends/cuda/{op}.py").is_file():
        backends.append("cuda")
    for backend in backends:
        module = importlib.import_module(f"simmim_kernels.backends.{backend}.{op}")
        for each in defined:
            parameters = inspect.signature(getattr(module, each.name)).parameters.values()
            names = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
            if "spec" in names:  # the schema has its fields
                at = names.index("spec")
                names[at : at + 1] = LossSpec._fields
            arguments = [a.name for a in each.overload._schema.arguments]
            short = any(p.kind is p.VAR_POSITIONAL for p in parameters)  # the rest is handed on
            arguments = arguments[: len(names)] if short else arguments
            assert names[: len(arguments)] == arguments, f"{backend}: {each.name} takes others"


# What a folder's files may import of the project.
SHARED = ("simmim_kernels._numbers", "simmim_kernels.grid", "simmim_kernels.backends._*")
MASKS = ("simmim_kernels.masks", "simmim_kernels.target_norm")
OPS = ("simmim_kernels.backends", "simmim_kernels.ops.*", *MASKS, *SHARED)
INTEGRATIONS = (
    "simmim_kernels.integrations*",
    "simmim_kernels.attention",
    "simmim_kernels.channel_statistics",
)
MAY_IMPORT = {
    "simmim_kernels/backends/reference": ("simmim_kernels.backends.reference*", *SHARED),
    "simmim_kernels/backends/cpu": (
        "simmim_kernels.backends.cpu*",
        "simmim_kernels._cpu",
        *SHARED,
    ),
    "simmim_kernels/backends/cuda": (
        "simmim_kernels.backends.cuda*",
        "simmim_kernels._cuda",
        *SHARED,
    ),
    "simmim_kernels/backends/triton": ("simmim_kernels.backends.triton*", *SHARED),
    "simmim_kernels/backends": SHARED,
    "simmim_kernels/ops": OPS,
    "simmim_kernels/integrations": (*INTEGRATIONS, *OPS),
    "simmim_kernels": (
        "simmim_kernels",
        "simmim_kernels.fast_types",
        "simmim_kernels.memory",
        "simmim_kernels.nn",
        *INTEGRATIONS,
        *OPS,
    ),
    "python/simmim": ("simmim", "simmim.*", "simmim_kernels", "simmim_kernels.[!_bo]*"),
}


def imported(file):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by a relative name"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if is_module(name) else node.module


def is_module(name):
    """Whether a name is a module of the project, compiled ones among them."""
    return name in ("simmim_kernels._cpu", "simmim_kernels._cuda") or any(
        (root / name.replace(".", "/")).with_suffix(".py").is_file()
        or (root / name.replace(".", "/")).is_dir()
        for root in (ROOT, ROOT / "python")
    )


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder):
    files = sorted((ROOT / folder).glob("**/*.py" if folder == "python/simmim" else "*.py"))
    assert files
    for file in files:
        ours = {m for m in imported(file) if m.split(".")[0] in ("simmim", "simmim_kernels")}
        wrong = {m for m in ours if not any(fnmatch(m, name) for name in MAY_IMPORT[folder])}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_the_definition_needs_pytorch_alone():
    for file in (ROOT / "simmim_kernels/backends/reference").glob("*.py"):
        foreign = {module.partition(".")[0] for module in imported(file)}
        assert foreign <= {"torch", "simmim_kernels", *sys.stdlib_module_names}, file
