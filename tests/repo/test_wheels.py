"""What `make wheels` leaves in dist/, and the parts of it that cost little to keep true.

The tests of dist/ run where SIMMIM_TEST_DIST names that folder, as `make wheels` does at its end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.repo.wheel import ROOT, call
from tools.wheels import PYTHONS, find_python

pytestmark = pytest.mark.slow
SOURCES = ("csrc", "python", "simmim_kernels")
IGNORED = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__", "_build_info.json")
# What `import torch` needs beside NVIDIA's packages, which are linked from this environment.
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions")


def run_hook(hook: str, source: Path, out: Path, **environment) -> Path:
    """Call a hook of the build backend where neither git nor a compiler is on the PATH."""
    out.mkdir()
    script = f"from setuptools import build_meta; build_meta.{hook}({str(out)!r})"
    built = call(sys.executable, "-c", script, cwd=source, PATH=str(out), **environment)
    assert built.returncode == 0, built.stderr
    return next(out.iterdir())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The unpacked source distribution of a tree without git."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=IGNORED)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder / "tree")
    (folder / "tree/simmim_kernels/_build_info.json").write_text("{}")  # of a build in place
    packed = run_hook("build_sdist", folder / "tree", folder / "out")
    with tarfile.open(packed) as archive:
        archive.extractall(folder / "unpacked")
    return next((folder / "unpacked").iterdir())


def test_the_source_distribution_has_every_source_and_no_build(sdist):
    def files(root: Path) -> set[str]:
        found = (path.relative_to(root) for name in SOURCES for path in (root / name).rglob("*"))
        return {str(path) for path in found if path.suffix in {".cpp", ".cu", ".h", ".py", ".txt"}}

    own = {name for name in files(ROOT) if "egg-info" not in name}
    assert {name for name in files(sdist) if "egg-info" not in name} == own
    assert not (sdist / "simmim_kernels/_build_info.json").exists()


def test_the_pure_wheel_works_without_compiled_parts(sdist, tmp_path):
    wheel = run_hook("build_wheel", sdist, tmp_path / "out", SIMMIM_PURE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert not [path for path in site.rglob("*") if path.suffix in {".so", ".pyd", ".cpp"}]
    # The finder of an editable installation would supply the compiled modules.
    (site / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)]\n"
    )
    info = call(sys.executable, "-m", "simmim_kernels.info", PYTHONPATH=str(site))
    assert info.returncode == 0, info.stderr
    assert re.search(r"mask_tokens +reference +\(cpu: not built: this wheel has no", info.stdout)
    assert "smoke call on cpu: random_mask, mask_tokens and its gradient ran" in info.stdout


@pytest.fixture(scope="module")
def dist() -> Path:
    if "SIMMIM_TEST_DIST" not in os.environ:
        pytest.skip("SIMMIM_TEST_DIST names no folder of wheels; `make wheels` sets it")
    return Path(os.environ["SIMMIM_TEST_DIST"]).resolve()


def test_the_source_distribution_in_dist_holds_nothing_of_a_build(dist):
    (packed,) = dist.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        names = [Path(name) for name in archive.getnames()]
    assert not [n for n in names if "build" in n.parts or n.suffix in {".o", ".so", ".pyc"}]
    assert "_build_info.json" not in {n.name for n in names}


def test_compiled_modules_name_no_path_of_this_machine_and_no_stray_symbol(dist, tmp_path):
    for wheel in dist.glob("*manylinux*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / wheel.stem)
        for path in (tmp_path / wheel.stem).rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                hosts = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix}
                assert not [host for host in hosts if host.encode() in content], path
        for module in (tmp_path / wheel.stem).rglob("*.so"):
            dynamic = subprocess.run(["readelf", "-dW", module], capture_output=True, text=True)
            assert "PATH" not in dynamic.stdout
            listed = subprocess.run(["nm", "-Du", module], capture_output=True, text=True).stdout
            strong = re.findall(r" U (\S+)", listed)
            assert strong
            # A symbol without a version would be looked for in whatever happens to be loaded.
            assert not [s for s in strong if "@" not in s and not re.match("_?Py", s)], module


@pytest.mark.parametrize("version", PYTHONS)
def test_an_empty_environment_gets_the_right_wheel(dist, tmp_path, version):
    found = find_python(version)
    if found is None:
        pytest.skip(f"no CPython {version} was found")
    assert call(found, "-m", "venv", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv/bin/python"
    pip = (python, "-m", "pip", "install", "-q", "--no-cache-dir")
    own = call(*pip, "--no-index", "--no-deps", "--find-links", dist, "simmim-kernels")
    assert own.returncode == 0, own.stderr
    site = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    tag = next(site.glob("simmim_kernels-*.dist-info")) / "WHEEL"
    assert f"Tag: cp{version.replace('.', '')}-" in tag.read_text()
    release = torch.__version__.partition("+")[0]
    pytorch = call(*pip, "--no-deps", f"torch=={release}")
    if pytorch.returncode or call(*pip, *TORCH_NEEDS).returncode:
        pytest.skip(f"torch {release} for CPython {version}: {pytorch.stderr[-200:]}")
    nvidia = Path(sysconfig.get_path("purelib"), "nvidia")
    if nvidia.is_dir():
        (site / "nvidia").symlink_to(nvidia)
    info = call(python, "-m", "simmim_kernels.info")
    modules = ", ".join(
        f"simmim_kernels.{p.name.partition('.')[0]}" for p in site.glob("simmim_kernels/*.so")
    )
    loaded = call(python, "-c", f"import torch, {modules}", LD_BIND_NOW="1")
    shutil.rmtree(site / "torch")  # some GB
    assert info.returncode == 0, info.stdout + info.stderr
    assert loaded.returncode == 0, loaded.stderr
    assert re.search(r"cpu kernels +instruction set \w+, threads on", info.stdout), info.stdout
    assert re.search(r"mask_tokens +cpu\n", info.stdout), info.stdout
    assert "_cuda built with nvcc" not in info.stdout or list(site.glob("simmim_kernels/_cuda*"))
