"""What setup.py decides before and after CMake runs."""

import importlib.util
import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in ("SIMMIM_CUDA", "SIMMIM_CUDA_ARCHS", "SIMMIM_ISAS", "SIMMIM_SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("simmim_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    command = module.CMakeBuild(setuptools.Distribution())
    command.for_this_machine, command.build_lib = True, str(tmp_path / "lib")
    return command


@pytest.mark.parametrize("name", ["_cpu.so", "_cpu.cp311-win_amd64.pyd", "Release/_cpu.pyd"])
def test_a_module_is_found_whatever_its_suffix(build, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "_cpu.lib").touch()
    assert build.find_module(tmp_path, "_cpu") == tmp_path / name


def test_a_build_without_a_module_is_one_plain_line(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "call", lambda command: None)
    monkeypatch.setattr("pybind11.get_cmake_dir", lambda: "")
    monkeypatch.setattr(build, "get_ext_fullpath", lambda name: str(tmp_path / "_cpu.so"))
    monkeypatch.setattr(build, "compile", lambda *_: build.find_module(tmp_path, "_cpu"))
    build.report = {}
    build.build_extension(setuptools.Extension("simmim_kernels._cpu", []))
    assert "CMake left no module named _cpu" in build.report["_cpu"]
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", ["build_ext", "editable_wheel"])
def test_a_compile_error_fails_make_build_and_no_installation(
    module, build, monkeypatch, capsys, command
):
    def fail(*_):
        raise subprocess.CalledProcessError(1, ["cmake"], "a.h:1: error: no\na.h:2: note: here", "")

    extension = setuptools.Extension("simmim_kernels._cpu", [])
    monkeypatch.setattr(build, "compile", fail)
    monkeypatch.setattr(module.build_ext, "run", lambda self: self.build_extension(extension))
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    if command == "build_ext":
        with pytest.raises(SystemExit, match="1"):
            build.run()
    else:
        build.run()
    assert ("note: here" in capsys.readouterr().err) == (command == "build_ext")
    report = json.loads(Path(build.build_lib, "simmim_kernels/_build_info.json").read_text())
    assert report["_cpu"] == "not built: a.h:1: error: no"


def test_a_module_of_an_earlier_build_does_not_stay(build, tmp_path, monkeypatch):
    """As of a wheel that was built in the same tree: an in-place build copies what it finds."""
    monkeypatch.setenv("SIMMIM_CUDA", "0")
    extension = setuptools.Extension("simmim_kernels._cuda", [])
    stale = Path(build.get_ext_fullpath(extension.name))
    in_place = tmp_path / "simmim_kernels" / stale.name
    for path in (stale, in_place):
        path.parent.mkdir(parents=True)
        path.touch()
    build.report = {}
    build.build_extension(extension)
    assert not stale.exists() and not in_place.exists()


def test_cuda_is_built_in_place_where_there_is_a_gpu_or_where_it_is_asked_for(
    module, build, monkeypatch, capsys
):
    monkeypatch.setattr(module, "gpus_here", list)
    with pytest.raises(module.NotWanted, match="no NVIDIA GPU was found"):
        build.cuda_architectures()
    monkeypatch.setattr(module, "gpus_here", lambda: ["90"])
    assert build.cuda_architectures() == "90"
    monkeypatch.setenv("SIMMIM_CUDA", "1")
    assert build.cuda_architectures() == "80;90;100"
    monkeypatch.setenv("SIMMIM_CUDA", "0")
    build.report = {}
    build.build_extension(setuptools.Extension("simmim_kernels._cuda", []))
    assert build.report["_cuda"] == "not built: SIMMIM_CUDA is 0"
    assert not capsys.readouterr().err
    monkeypatch.delenv("SIMMIM_CUDA")
    build.for_this_machine = False  # a wheel
    assert build.cuda_architectures() == "80;90;100"
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: "/nvcc")
    assert "-DSIMMIM_CUDA_ARCHS=80;90;100" in build.cuda_options("80;90;100", "")
    # PTX for newer GPUs is for wheels; a build for one GPU does without
    assert "-DSIMMIM_CUDA_NEWEST=ON" in build.cuda_options("80;90;100", "")
    assert "-DSIMMIM_CUDA_NEWEST=OFF" in build.cuda_options("90", "")


def test_a_build_in_place_takes_its_module_from_a_wheel_of_the_same_sources(
    module, build, tmp_path, monkeypatch
):
    monkeypatch.setenv("SIMMIM_WHEELS", str(tmp_path))
    python = "cp{}{}".format(*sys.version_info[:2])
    machine = sysconfig.get_platform().partition("-")[2]
    wheel = tmp_path / f"simmim_kernels-0.1.0-{python}-{python}-manylinux_2_28_{machine}.whl"
    target = tmp_path / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"

    def pack(sources):
        with zipfile.ZipFile(wheel, "w") as archive:
            report = json.dumps({"sources": sources})
            archive.writestr("simmim_kernels/_build_info.json", report)
            archive.writestr(f"simmim_kernels/{target.name}", b"module")

    pack(module.digest_sources())
    assert build.compile("_cpu", target) == f"taken from {wheel.name}"
    assert target.read_bytes() == b"module"
    pack("others")
    assert build.find_wheel() is None
    pack(module.digest_sources())
    monkeypatch.setenv("SIMMIM_ISAS", "native")  # asks for a build of its own
    assert build.find_wheel() is None
    monkeypatch.delenv("SIMMIM_ISAS")
    build.for_this_machine = False
    assert build.find_wheel() is None


def test_the_reason_of_a_failure_is_cmakes_own_words(build):
    output = "CMake Error at CMakeLists.txt:9 (message):\n  error: SIMMIM_ISAS names sse9\n"
    error = subprocess.CalledProcessError(1, ["cmake"], output, "")
    assert build.reason(error) == "error: SIMMIM_ISAS names sse9"


def test_what_is_built_here_is_of_these_sources(module):
    """Else the tests would run the kernels of other sources."""
    report = ROOT / "simmim_kernels/_build_info.json"
    built = json.loads(report.read_text()).get("sources") if report.exists() else None
    if built is None:
        pytest.skip("nothing is compiled here")
    assert built == module.digest_sources(), (
        "csrc/ has changed since it was built: run `make build`"
    )


def test_this_machines_gpus_are_compute_capabilities(module):
    assert all(found.isdecimal() for found in module.gpus_here())
