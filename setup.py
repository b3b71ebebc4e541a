"""Builds the compiled parts with CMake. PyTorch is not needed and never imported.

A wheel holds the kernels for every instruction set and, where nvcc is found, for every GPU of the
list. A build in place (`make build`, an editable install) is for this machine only: the widest
instruction set that its processor runs, and CUDA where it has an NVIDIA GPU. These environment
variables decide otherwise:

    SIMMIM_ISAS        all, native, or a list of baseline, avx2, avx512
    SIMMIM_CUDA        1 builds the CUDA module, 0 leaves it out
    SIMMIM_CUDA_ARCHS  the GPUs to compile for, for instance 80;90
    SIMMIM_SANITIZE    ON builds with AddressSanitizer and UBSan
    SIMMIM_PURE        1 compiles nothing: the wheel serves every platform
    SIMMIM_WHEELS      a folder of wheels (dist): a build in place takes its modules from one that was
                       compiled from the same sources, where none of the variables above is set
    CMAKE_ARGS         more arguments of CMake, for instance those of a cross-compilation

In an installation a part that cannot be built costs one plain line and is left out: the library
then serves its ops with the next backend, and `python -m simmim_kernels.info` repeats the reason.
`make build`, which asks for nothing else, prints what the compiler said and fails.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
INSTEAD = {
    "_cpu": "the ops run on their reference backend instead",
    "_cuda": "Triton serves GPUs instead",
}
ALL_GPUS = "80;90;100"


class NotWanted(RuntimeError):
    """Why a part is left out on purpose; recorded, but no line is printed."""


class CMakeExtension(Extension):
    """A module that CMake builds from csrc/; optional, so that a failure leaves the rest usable."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[], optional=True)


def write_report(folder: Path, report: dict[str, str]) -> None:
    """Record beside the package in `folder` what became of each module."""
    package = folder / "simmim_kernels"
    package.mkdir(parents=True, exist_ok=True)
    (package / "_build_info.json").write_text(json.dumps(report, indent=1) + "\n")


def digest_sources() -> str:
    """A digest of the names and contents in csrc/: modules of equal sources serve each other's tree."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def replace_file(target: Path, content: bytes) -> None:
    """Write `content` to `target`; a process that has the old file mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(target)


class PureBuild(build_py):
    """Packs the Python files alone."""

    def run(self) -> None:
        super().run()
        reason = "not built: this wheel has no compiled parts, to serve every platform"
        write_report(Path(self.build_lib), dict.fromkeys(INSTEAD, reason))


class CMakeBuild(build_ext):
    """Configures and builds csrc/ for each extension, and records what came of it."""

    def run(self) -> None:
        self.report: dict[str, str] = {}
        self.failed = False
        self.for_this_machine = bool(self.inplace)  # setuptools clears `inplace` while it builds
        super().run()
        self.report["sources"] = digest_sources()
        write_report(Path("" if self.inplace else self.build_lib), self.report)
        if self.failed and self.builds_modules_alone():
            sys.exit(1)

    @staticmethod
    def builds_modules_alone() -> bool:
        """Whether the command line asks for the modules alone, as `make build` does."""
        return "build_ext" in sys.argv

    def build_extension(self, extension: Extension) -> None:
        module = extension.name.rpartition(".")[2]
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        try:
            self.report[module] = self.compile(module, target)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            reason = self.reason(error)
            self.report[module] = f"not built: {reason}"
            # One of an earlier build would be packed, or imported, in its place.
            target.unlink(missing_ok=True)
            if self.for_this_machine:
                (ROOT / "simmim_kernels" / target.name).unlink(missing_ok=True)
            if not isinstance(error, NotWanted):
                self.failed = True
                if isinstance(error, subprocess.CalledProcessError) and self.builds_modules_alone():
                    print(error.stdout, error.stderr, file=sys.stderr)
                print(
                    f"simmim-kernels: {module} was not built ({reason}); {INSTEAD[module]}",
                    file=sys.stderr,
                )

    def compile(self, module: str, target: Path) -> str:
        """Build `module` to the path `target`; returns what is worth knowing about the build."""
        architectures = self.cuda_architectures() if module == "_cuda" else ""
        if wheel := self.find_wheel():
            with zipfile.ZipFile(wheel) as archive:
                if (name := f"simmim_kernels/{target.name}") in archive.namelist():
                    replace_file(target, archive.read(name))
                    return f"taken from {wheel.name}"
        cmake = shutil.which("cmake")
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
        if cmake is None:
            raise RuntimeError("cmake was not found")
        if compiler is None or shutil.which(compiler.split()[0]) is None:
            raise RuntimeError("no C++ compiler was found; install g++ or set CXX")
        import pybind11

        options = [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        if module == "_cuda":
            options += self.cuda_options(architectures, pybind11.get_include())
        else:
            isas = os.environ.get("SIMMIM_ISAS") or ("native" if self.for_this_machine else "all")
            options.append(f"-DSIMMIM_ISAS={re.sub('[, ]+', ';', isas)}")
        if ccache := shutil.which("ccache"):
            options.append(f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache}")
        # Every Python shares the kernels' objects; the module itself is its own.
        folder = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{module}"
        out = folder / "lib" / str(sys.implementation.cache_tag)
        folder.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake,
            "-S",
            str(ROOT / "csrc"),
            "-B",
            str(folder),
            f"-DPython_EXECUTABLE={sys.executable}",
            *options,
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}",
            f"-DSIMMIM_SANITIZE={os.environ.get('SIMMIM_SANITIZE', 'OFF')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        # An isolated build leaves a cache that names tools in a folder which is gone by now.
        (folder / "CMakeCache.txt").unlink(missing_ok=True)
        self.call(configure)
        self.call([cmake, "--build", str(folder), "--target", module, "--parallel"])
        built = self.find_module(out, module)
        replace_file(target, built.read_bytes())
        return f"built with {Path(compiler).name if module == '_cpu' else 'nvcc'}"

    @staticmethod
    def find_module(folder: Path, module: str) -> Path:
        """The newest file in `folder` that Python can import as `module`."""
        suffixes = (".so", ".pyd", *EXTENSION_SUFFIXES)
        built = [
            path
            for path in folder.rglob(f"{module}.*")
            if path.is_file() and path.name.endswith(suffixes)
        ]
        if not built:
            raise RuntimeError(f"CMake left no module named {module} in {folder}")
        return max(built, key=lambda path: path.stat().st_mtime)

    def find_wheel(self) -> Path | None:
        """A wheel for this Python from these sources, for a build in place that asks for nothing."""
        asked = {"SIMMIM_ISAS", "SIMMIM_CUDA", "SIMMIM_CUDA_ARCHS", "SIMMIM_SANITIZE", "CMAKE_ARGS"}
        if not self.for_this_machine or asked & set(os.environ):
            return None
        folder = Path(os.environ.get("SIMMIM_WHEELS", ROOT / "dist"))
        python = "cp{}{}".format(*sys.version_info[:2])
        platform = f"manylinux*_{sysconfig.get_platform().partition('-')[2]}"
        for wheel in folder.glob(f"simmim_kernels-*-{python}-{python}-{platform}.whl"):
            with zipfile.ZipFile(wheel) as archive:
                report = json.loads(archive.read("simmim_kernels/_build_info.json"))
            if report.get("sources") == digest_sources():
                return wheel
        return None

    def cuda_architectures(self) -> str:
        """The GPUs to compile for; raises `NotWanted` where the CUDA module is to be left out."""
        wanted = os.environ.get("SIMMIM_CUDA", "")
        if wanted == "0":
            raise NotWanted("SIMMIM_CUDA is 0")
        architectures = os.environ.get("SIMMIM_CUDA_ARCHS", "")
        if self.for_this_machine and not wanted and not architectures:
            architectures = ";".join(gpus_here())
            if not architectures:
                raise NotWanted("no NVIDIA GPU was found; SIMMIM_CUDA=1 builds it all the same")
        architectures = architectures or ALL_GPUS
        if not re.fullmatch(r"\d+([;, ]\d+)*", architectures):
            raise RuntimeError(
                f"SIMMIM_CUDA_ARCHS is {architectures!r}; allowed: a list like 80;90"
            )
        return architectures

    @staticmethod
    def cuda_options(architectures: str, pybind11_include: str) -> list[str]:
        """What CMake needs for the CUDA module: where nvcc is, and for which GPUs to compile."""
        homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
        folders = [str(Path(home, "bin")) for home in homes if home]
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))
        if nvcc is None:
            raise RuntimeError("nvcc was not found")
        return [
            f"-DSIMMIM_NVCC={nvcc}",
            f"-DSIMMIM_CUDA_ARCHS={re.sub('[, ]', ';', architectures)}",
            f"-DSIMMIM_CUDA_NEWEST={'ON' if architectures == ALL_GPUS else 'OFF'}",
            f"-DSIMMIM_PYBIND11_INCLUDE={pybind11_include}",
            f"-DSIMMIM_PYTHON_INCLUDE={sysconfig.get_path('include')}",
        ]

    @staticmethod
    def call(command: list[str]) -> None:
        subprocess.run(command, check=True, text=True, capture_output=True)

    @staticmethod
    def reason(error: Exception) -> str:
        if isinstance(error, subprocess.CalledProcessError):
            output = f"{error.stdout}\n{error.stderr}"
            for sign in ("error:", "error"):  # CMake's own heading, "CMake Error at", says nothing
                for line in output.splitlines():
                    if sign in line.lower():
                        return line.strip()
            return f"{error.cmd[0]} ended with status {error.returncode}"
        return str(error)


def gpus_here() -> list[str]:
    """The compute capabilities of this machine's GPUs, like 90, as the CUDA driver reports them."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, number, found = ctypes.c_int(), ctypes.c_int(), set()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    for device in range(count.value):
        digits = ""
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
            digits += str(number.value)
        found.add(digits)
    return sorted(found, key=int)


PURE = os.environ.get("SIMMIM_PURE") == "1"
setup(
    ext_modules=[] if PURE else [CMakeExtension(f"simmim_kernels.{module}") for module in INSTEAD],
    cmdclass={"build_py": PureBuild} if PURE else {"build_ext": CMakeBuild},
    package_dir={"": ".", "simmim": "python/simmim"},
)
