"""An environment in build/aarch64 that runs aarch64 Python on this machine, for tests of that wheel.

Debian's CPython for arm64 and QEMU's user-mode emulator are unpacked there from packages that a
private state of apt downloads: nothing is installed, and no root rights are needed. PyTorch comes
from PyPI for aarch64, in the release that this environment has, with all that it requires (3.2 GB,
NVIDIA's libraries the most of it: PyPI has no smaller one). What has been downloaded is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1].resolve()
WORK = ROOT / "build/aarch64"
MIRROR, KEYRING = "http://deb.debian.org/debian", "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBIAN, PYTHON = "bookworm", "3.11"  # the release of Debian that has this CPython
GLIBC = range(17, 37)  # of the manylinux platforms that this release of Debian runs
PACKAGES = ("numpy", "pytest", "hypothesis", "pillow")
# An Armv8.0 core, the least that the wheel claims to need; PyTorch asks Linux which one it has.
CORE, MIDR = "cortex-a72", "0x00000000410fd083"
CPUINFO = """\
processor\t: {}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


class Unavailable(RuntimeError):
    """What cannot be had here, and why."""


def _call(*command: object, **options) -> str:
    name = Path(str(command[0])).name
    if shutil.which(str(command[0])) is None:
        raise Unavailable(f"{name} was not found")
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, **options)
    if done.returncode:
        raise Unavailable(f"{name} failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def _download_packages() -> list[Path]:
    """The Debian packages of CPython with its libraries, and of QEMU for this machine."""
    apt = WORK / "apt"
    host = _call("dpkg", "--print-architecture").strip()
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()  # the packages of a machine that has none
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {DEBIAN} main\n")
    (apt / "apt.conf").write_text(
        f'APT::Architecture "arm64"; APT::Architectures {{ "arm64"; "{host}"; }};\n'
        'APT::Sandbox::User ""; APT::Keep-Downloaded-Packages "true"; Acquire::Languages "none";\n'
        f'Dir::State "{apt}"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";\n'
        f'Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "-";\n'
    )
    settings = {"env": os.environ | {"APT_CONFIG": str(apt / "apt.conf")}}
    _call("apt-get", "update", "--error-on=any", **settings)
    names = (f"python{PYTHON}", "libstdc++6", "libgomp1", f"qemu-user-static:{host}")
    options = ("-y", "--download-only", "--no-install-recommends")
    _call("apt-get", "install", *options, *names, **settings)
    return sorted((apt / "cache/archives").glob("*.deb"))


def _unpack_packages(root: Path) -> None:
    for package in _download_packages():
        if not package.name.startswith("qemu"):
            _call("dpkg-deb", "-x", package, root)
            continue
        # It holds an emulator, of some MB, for every processor there is.
        unpacked = WORK / "qemu"
        _call("dpkg-deb", "-x", package, unpacked)
        shutil.move(unpacked / "usr/bin/qemu-aarch64-static", root / "qemu-aarch64")
        shutil.rmtree(unpacked)


def _describe_core(root: Path) -> None:
    """Write what Linux on such a core says of it; the emulator opens files under `root` first.

    Those of this machine describe another processor, and PyTorch crashes when it reads them.
    """
    cores = range(os.cpu_count() or 1)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(map(CPUINFO.format, cores)))
    for core in cores:
        folder = root / f"sys/devices/system/cpu/cpu{core}/regs/identification"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "midr_el1").write_text(f"{MIDR}\n")


def _install_libraries(site: Path) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC]
    target = ("--implementation=cp", f"--python-version={PYTHON}", "--only-binary=:all:")
    torch = f"torch=={version('torch').partition('+')[0]}"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--target", site)
    _call(*pip, *target, *platforms, "--platform=manylinux2014_aarch64", torch, *PACKAGES)


def _prepare(folder: Path, fill) -> Path:
    """`folder`, which `fill` fills where it is not there; one that was left half full is not."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(folder)
    return folder


def prepare() -> tuple[list[str], dict[str, str]]:
    """The command that is aarch64 Python, and its environment variables; raises `Unavailable`."""
    root = _prepare(WORK / f"python{PYTHON}", _unpack_packages)
    _describe_core(root)
    release = version("torch").partition("+")[0]
    site = _prepare(WORK / f"torch-{release}", _install_libraries)
    command = [str(root / "qemu-aarch64"), str(root / f"usr/bin/python{PYTHON}")]
    settings = {"QEMU_LD_PREFIX": str(root), "QEMU_CPU": CORE, "PYTHONPATH": str(site)}
    return command, settings | {"OMP_NUM_THREADS": "1"}


def install_wheel(dist: Path) -> Path:
    """A folder that holds the contents of the wheel in `dist` for aarch64 and this CPython."""
    found = list(dist.glob(f"*-cp{PYTHON.replace('.', '')}-*_aarch64.whl"))
    if len(found) != 1:
        raise Unavailable(f"{dist} has no wheel for CPython {PYTHON} on aarch64")
    site = WORK / "wheel"
    shutil.rmtree(site, ignore_errors=True)
    with zipfile.ZipFile(found[0]) as archive:
        archive.extractall(site)
    return site
