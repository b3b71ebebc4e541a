"""`python -m tests.repo.lowest`: every lower bound in pyproject.toml as a constraint for pip.

`make test-lowest` installs exactly these versions, so what is declared is what was tested. pip brings
the packages `packaging` and, where Python is older than 3.11, `tomllib`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ModuleNotFoundError:
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def requirements() -> Iterator[tuple[str, Requirement]]:
    """Every requirement in pyproject.toml, with the table that it stands in."""
    declared = tomllib.loads(PYPROJECT.read_text())
    tables = {
        "build-system": declared["build-system"]["requires"],
        "dependencies": declared["project"]["dependencies"],
        **declared["project"]["optional-dependencies"],
    }
    for table, entries in tables.items():
        yield from ((table, Requirement(entry)) for entry in entries)


def lowest(requirement: Requirement) -> str:
    """The lowest version that a requirement admits; `ValueError` where it names none."""
    versions = [s.version for s in requirement.specifier if s.operator in (">=", "==", "~=")]
    if len(versions) != 1:
        raise ValueError(f"{requirement} has no lower bound; write one, like {requirement.name}>=1")
    return versions[0]


def constraints() -> dict[str, str]:
    """Name and lowest version of each package; `ValueError` where two tables disagree."""
    found: dict[str, str] = {}
    for table, requirement in requirements():
        name, version = canonicalize_name(requirement.name), lowest(requirement)
        if found.setdefault(name, version) != version:
            raise ValueError(f"[{table}] asks for {requirement}, another table for {found[name]}")
    return found


if __name__ == "__main__":
    for package, version in sorted(constraints().items()):
        print(f"{package}=={version}")
