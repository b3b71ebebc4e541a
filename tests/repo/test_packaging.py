"""The wheel: built without PyTorch, linked against none, the same bits beside two versions of it."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.repo.wheel import ROOT, build, call, shared_folder

pytestmark = pytest.mark.slow
OLDER_TORCH = "2.13.0"

# Every kernel with fixed inputs; prints a digest of all bits. Inputs come from integers, so that they
# do not depend on a version's random numbers.
DIGEST = """
import hashlib, json, torch
import simmim_kernels as sk

assert not sk.backends.why_not("cpu", "mask_tokens", "cpu"), "the compiled kernels do not serve"
def pattern(*shape):
    n = 1
    for s in shape: n *= s
    return ((torch.arange(n) * 2654435761 % 4096).float() / 1024 - 2).view(shape)
results = []
mask = sk.random_mask(torch.arange(5), (4, 6), 0.6, seed=3, epoch=1)
results += list(mask)
x = pattern(5, 96, 40).requires_grad_()
token = pattern(1, 1, 40).requires_grad_()
out = sk.mask_tokens(x, mask, token)
results += [out, *torch.autograd.grad(out, (x, token), pattern(5, 96, 40))]
image, pred = pattern(5, 3, 32, 48), pattern(5, 3, 32, 48).flip(0).contiguous().requires_grad_()
for loss in (getattr(sk, f"masked_{kind}") for kind in sk.backends._loss_spec.KINDS):
    value = loss(pred, image, mask)
    results += [value, *torch.autograd.grad(value, pred)]
results.append(sk.mask_image((image * 60 + 128).to(torch.uint8), mask, mean=(.5,) * 3, std=(.2,) * 3))
digest = hashlib.sha256()
for t in results:
    digest.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes() if t.dim() else
                  str(float(t).hex()).encode())
print(json.dumps({"torch": torch.__version__, "digest": digest.hexdigest()}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(shared_folder(tmp_path_factory))


def test_wheel_is_complete_and_links_no_pytorch(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    modules = list((tmp_path / "simmim_kernels").glob("*.so"))
    assert {m.name.partition(".")[0] for m in modules} - {"_cuda"} == {"_cpu"}
    for module in modules:
        needed = subprocess.run(["readelf", "-d", module], capture_output=True, text=True).stdout
        libraries = re.findall(r"NEEDED.*\[(.*)\]", needed)
        assert libraries
        assert not [lib for lib in libraries if re.search(r"torch|c10|cuda|python", lib)]
    assert (tmp_path / "simmim/__init__.py").is_file()


def test_the_same_bits_beside_two_versions_of_pytorch(wheel, tmp_path):
    newer = call(sys.executable, "-c", DIGEST, PYTHONPATH=str(wheel.parents[1] / "site"))
    assert newer.returncode == 0, newer.stderr
    environment = tmp_path / "older"
    assert call(sys.executable, "-m", "venv", environment).returncode == 0
    python = environment / "bin" / "python"
    installed = call(python, "-m", "pip", "install", "-q", f"torch=={OLDER_TORCH}", "numpy")
    if installed.returncode:
        pytest.skip(f"torch {OLDER_TORCH} can't be installed here: {installed.stderr[-200:]}")
    assert call(python, "-m", "pip", "install", "-q", "--no-deps", wheel).returncode == 0
    older = call(python, "-c", DIGEST)
    assert older.returncode == 0, older.stderr
    newer, older = json.loads(newer.stdout), json.loads(older.stdout)
    assert older["torch"].startswith(OLDER_TORCH)
    assert newer["torch"] == torch.__version__ != older["torch"]
    assert newer["digest"] == older["digest"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The package as it is where there is no C++ compiler."""
    out = tmp_path_factory.mktemp("bare")
    built = call(
        sys.executable,
        ROOT / "setup.py",
        "-q",
        "build",
        "--build-base",
        out / "base",
        "--build-lib",
        out / "lib",
        cwd=ROOT,
        CXX="no-such-compiler",
        SIMMIM_CUDA="0",
    )
    assert built.returncode == 0, built.stderr
    lines = [line for line in built.stderr.splitlines() if "_cpu was not built" in line]
    assert len(lines) == 1
    assert "install g++ or set CXX" in lines[0]
    # Where the project is installed as editable, the finder of that installation would supply the
    # compiled modules that this copy lacks.
    (out / "lib" / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)]\n"
    )
    return out / "lib"


def test_without_a_compiler_the_reference_serves(bare):
    script = (
        "import torch, simmim_kernels as sk;"
        "print(sk.random_mask(2, (4, 4), 0.5, seed=1).mask.sum().item())"
    )
    ran = call(sys.executable, "-c", script, PYTHONPATH=str(bare))
    assert ran.stdout.strip() == "16", ran.stderr


def test_info_says_what_is_missing_and_why(bare):
    info = call(sys.executable, "-m", "simmim_kernels.info", PYTHONPATH=str(bare))
    assert info.returncode == 0, info.stderr
    assert "no C++ compiler was found" in info.stdout
    assert re.search(r"mask_tokens +reference +\(cpu: not built", info.stdout)
    assert "smoke call on cpu: random_mask, mask_tokens and its gradient ran" in info.stdout


def test_info_survives_a_broken_module(bare, tmp_path):
    broken = tmp_path / "lib"
    shutil.copytree(bare, broken)
    suffix = "cpython-{}{}-x86_64-linux-gnu".format(*sys.version_info[:2])
    (broken / "simmim_kernels" / f"_cpu.{suffix}.so").write_bytes(b"not a library")
    info = call(sys.executable, "-m", "simmim_kernels.info", PYTHONPATH=str(broken))
    assert info.returncode == 0, info.stderr
    assert re.search(r"cpu kernels +failed: ImportError", info.stdout)
    assert "ran and are right" in info.stdout


def test_info_of_a_whole_installation():
    info = call(sys.executable, "-m", "simmim_kernels.info", PYTHONPATH=str(ROOT))
    assert info.returncode == 0, info.stderr
    assert re.search(r"mask_tokens +cpu\n", info.stdout)


def test_setup_never_imports_torch():
    assert "import torch" not in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_wide_code_shares_no_inline_function(wheel, isa):
    """A weak symbol outside the set's own namespace could replace the baseline's copy of it."""
    if platform.machine() != "x86_64":
        pytest.skip("instruction sets of x86-64")
    objects = list((ROOT / "build").glob(f"cmake-*/CMakeFiles/cpu_{isa}.dir/cpu/*.o"))
    assert len(objects) >= len(list((ROOT / "csrc/cpu").glob("*.cpp")))
    for path in objects:
        listed = subprocess.run(["nm", "-C", path], capture_output=True, text=True).stdout
        weak = [line for line in listed.splitlines() if re.search(r" [WVu] ", line)]
        strangers = [line for line in weak if f"simmim::{isa}::" not in line]
        assert not strangers, f"{path.name}: {strangers[:3]}"
