"""`make wheels`: the source distribution and the wheels of this tree, in dist/.

A wheel for every CPython that is found here, for x86-64 (every instruction set, CUDA where nvcc is)
and for aarch64 where its cross-compiler is installed; and one without compiled parts for every other
platform. All are built from the source distribution, as a user's pip would. The compiler is this
machine's; the modules are linked against stubs of an older glibc, so that they load on
manylinux_2_28. Everything lies in build/wheels until it has passed its checks.

Needs g++ 12 or later, and nvcc for the CUDA module; `apt-get install g++-aarch64-linux-gnu` adds
aarch64.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1].resolve()
WORK, DIST = ROOT / "build/wheels", ROOT / "dist"
SOURCE = WORK / "source"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
COMPILERS = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}
GLIBC = "2.28"
MEGABYTE = 1_000_000
LARGEST = 20 * MEGABYTE


def call(*command: object, **options) -> str:
    """Run a command and return what it printed; its output is shown where it fails."""
    done = subprocess.run(
        list(map(str, command)),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed\n{done.stdout[-4000:]}")
    return done.stdout


def find_python(version: str) -> Path | None:
    """A CPython of `version`, like 3.12, with its headers: on the PATH, or one that pyenv has."""
    candidates = [Path(folder, f"python{version}") for folder in os.get_exec_path()]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True).stdout.strip()
        candidates += sorted(Path(root, "versions").glob(f"{version}.*/bin/python{version}"))
    probe = (
        "import pathlib, sys, sysconfig as s; v = '{}.{}'.format(*sys.version_info[:2]);"
        f"print(v == '{version}' and pathlib.Path(s.get_path('include'), 'Python.h').exists())"
    )
    for path in filter(Path.is_file, candidates):
        answer = subprocess.run([path, "-c", probe], capture_output=True, text=True)
        if answer.stdout.strip() == "True":
            return path
    return None


def make_environment(python: Path | str, name: str, only: tuple[str, ...] = ()) -> Path:
    """A virtual environment with what tools/wheels.txt lists, or `only` that; returns its Python."""
    folder = WORK / name
    if not (folder / "bin/python").exists():
        call(python, "-m", "venv", folder)
    pinned = re.findall(r"^[\w-]+==.*", (ROOT / "tools/wheels.txt").read_text(), re.MULTILINE)
    wanted = [line for line in pinned if not only or line.partition("==")[0] in only]
    call(folder / "bin/python", "-m", "pip", "install", "-q", *wanted)
    return folder / "bin/python"


def make_stubs(tools: Path, architecture: str) -> Path:
    """A folder of what the modules are linked against: an old glibc, and what that one lacks.

    Zig writes the stubs: libraries that hold the names and versions of glibc's symbols, no code.
    """
    cache, folder = WORK / f"zig-{architecture}", WORK / f"stubs-{architecture}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = f"{architecture}-linux-gnu.{GLIBC}"
    trial = folder / "trial.c"
    trial.write_text("int main(void) { return 0; }\n")
    zig = [tools, "-m", "ziglang", "cc", "-target", target, trial, "-o", folder / "trial"]
    call(*zig, env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(cache)})
    for library in next(cache.glob("o/*/libc.so.6")).parent.glob("lib*.so.*"):
        shutil.copy(library, folder / f"{library.name.partition('.')[0]}.so")
    compiler, built = COMPILERS[architecture], folder / "manylinux.o"
    call(compiler, "-O2", "-fPIC", "-c", ROOT / "tools/manylinux.cpp", "-o", built)
    call(compiler.replace("g++", "ar"), "rcsD", folder / "libmanylinux.a", built)
    return folder


def build_settings(architecture: str, stubs: Path) -> dict[str, str]:
    """The environment variables with which setup.py builds for an architecture."""
    map_prefix = f"-ffile-prefix-map={WORK}=."
    cmake = [
        f"-DCMAKE_MODULE_LINKER_FLAGS='-L{stubs} -Wl,--exclude-libs,ALL -s'",
        f"-DCMAKE_CXX_STANDARD_LIBRARIES='{stubs}/libmanylinux.a {stubs}/libld.so'",
    ]
    settings = {
        "CXX": COMPILERS[architecture],
        "CXXFLAGS": map_prefix,
        "NVCC_APPEND_FLAGS": f"-Xcompiler={map_prefix} -L{stubs} -lmanylinux -lld",
        "CMAKE_ARGS": " ".join(cmake),
        "_PYTHON_HOST_PLATFORM": f"linux-{architecture}",
    }
    if architecture == "x86_64":
        return settings | {"SIMMIM_ISAS": "all"}
    # CMake is told of no cross-compilation: it would look for this architecture's Python.
    return settings | {"SIMMIM_ISAS": "baseline", "SIMMIM_CUDA": "0"}


def build(python: Path, hook: str, folder: Path, source: Path, settings: dict[str, str]) -> Path:
    """Call `hook` of the build backend in `source`; returns the file that it leaves in `folder`."""
    for stale in [*source.glob("build/lib*"), *source.glob("build/bdist*"), folder]:
        shutil.rmtree(stale, ignore_errors=True)
    for listed in source.glob("*.egg-info/SOURCES.txt"):
        listed.unlink()  # setuptools would pack again whatever it packed before
    folder.mkdir(parents=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SIMMIM"))}
    path = os.pathsep.join([str(WORK / "tools/bin"), *os.get_exec_path()])
    script = f"from setuptools import build_meta; build_meta.{hook}({str(folder)!r})"
    call(python, "-c", script, cwd=source, env=inherited | settings | {"PATH": path})
    return next(folder.iterdir())


def read_sources(tree: Path) -> dict[str, bytes]:
    """The contents of csrc/ in a tree, by name."""
    files = (path for path in (tree / "csrc").rglob("*") if path.is_file())
    return {str(path.relative_to(tree)): path.read_bytes() for path in files}


def build_sdist(tools: Path) -> Path:
    """The source distribution in dist/, its members in order and with one time for all."""
    built = build(tools, "build_sdist", WORK / "sdist", ROOT, {})
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])

    def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        member.pax_headers = {}
        return member

    with tarfile.open(built) as archive:
        archive.extractall(WORK / "unpacked", filter="data")
    unpacked = WORK / "unpacked" / built.name.removesuffix(".tar.gz")
    target = DIST / built.name
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=epoch, fileobj=raw) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in (unpacked, *sorted(unpacked.rglob("*"))):
            name = path.relative_to(unpacked.parent)
            archive.add(path, name, recursive=False, filter=without_owner)
    if (SOURCE / "build").exists() and read_sources(SOURCE) == read_sources(unpacked):
        (SOURCE / "build").rename(unpacked / "build")  # the objects of the same sources
        for linked in (unpacked / "build").glob("cmake-*/lib"):
            shutil.rmtree(linked)
    shutil.rmtree(SOURCE, ignore_errors=True)
    unpacked.rename(SOURCE)
    return target


def build_wheel(python: Path, version: str, architecture: str, settings: dict[str, str]) -> Path:
    """A wheel in dist/ that auditwheel has found to fit manylinux_2_28."""
    digits = version.replace(".", "")
    suffix = {"SETUPTOOLS_EXT_SUFFIX": f".cpython-{digits}-{architecture}-linux-gnu.so"}
    out = WORK / f"cp{digits}-{architecture}"
    built = build(python, "build_wheel", out, SOURCE, settings | suffix)
    with zipfile.ZipFile(built) as archive:
        report = json.loads(archive.read("simmim_kernels/_build_info.json"))
    wanted = {"_cpu", "_cuda"} if shutil.which("nvcc") and architecture == "x86_64" else {"_cpu"}
    if failed := [m for m in wanted if not report[m].startswith("built")]:
        sys.exit("\n".join(f"{module} of {built.name} was {report[module]}" for module in failed))
    platform = f"manylinux_{GLIBC.replace('.', '_')}_{architecture}"
    # PyTorch brings libgomp and has loaded it; a second one would be a second team of threads.
    auditwheel = [WORK / "tools/bin/auditwheel", "repair", "--exclude", "libgomp.so.1"]
    repaired = out / "repaired"
    path = os.pathsep.join([str(WORK / "tools/bin"), *os.get_exec_path()])
    environment = os.environ | {"PATH": path}
    # It offers the other architectures' tags only by finding them itself.
    plat = platform if architecture == os.uname().machine else "auto"
    call(*auditwheel, "--plat", plat, "-w", repaired, built, env=environment)
    tagged = next(repaired.iterdir())
    newest = max(int(n) for n in re.findall(rf"manylinux_2_(\d+)_{architecture}", tagged.name))
    if newest > int(GLIBC.partition(".")[2]):
        sys.exit(f"{tagged.name} needs a newer glibc than {GLIBC}")
    return Path(shutil.move(tagged, DIST))


def build_all() -> Iterator[Path]:
    """Every file of dist/, each as soon as it is there."""
    tools = make_environment(sys.executable, "tools")
    yield build_sdist(tools)
    pure = build(tools, "build_wheel", WORK / "pure", SOURCE, {"SIMMIM_PURE": "1"})
    yield Path(shutil.move(pure, DIST))
    for architecture, compiler in COMPILERS.items():
        if shutil.which(compiler) is None:
            print(f"no wheels for {architecture}: {compiler} was not found")
            continue
        settings = build_settings(architecture, make_stubs(tools, architecture))
        for version in sys.argv[1:] or PYTHONS:
            python = find_python(version)
            if python is None:
                print(f"no wheel for CPython {version}: no interpreter with headers was found")
                continue
            environment = make_environment(python, f"python{version}", ("pybind11", "setuptools"))
            yield build_wheel(environment, version, architecture, settings)


def main() -> None:
    if "SOURCE_DATE_EPOCH" not in os.environ:
        last = subprocess.run(["git", "log", "-1", "--format=%ct"], capture_output=True, text=True)
        os.environ["SOURCE_DATE_EPOCH"] = last.stdout.strip() or "315619200"
    os.umask(0o022)
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    begin = time.monotonic()
    for path in build_all():
        size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.name}  {size / MEGABYTE:.2f} MB  {time.monotonic() - begin:.0f} s  {digest}")
        sys.stdout.flush()
        if size > LARGEST:
            sys.exit(f"{path.name} is larger than {LARGEST / MEGABYTE:.0f} MB")
    print(call(WORK / "tools/bin/twine", "check", "--strict", *sorted(DIST.iterdir())))


if __name__ == "__main__":
    main()
