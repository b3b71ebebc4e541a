"""Every dependency has a lower bound, the same one wherever it is declared."""

import importlib.metadata
import re

from packaging.requirements import Requirement
from packaging.version import Version

from tests.repo import lowest


def test_every_requirement_has_one_lower_bound():
    found = lowest.constraints()
    assert found["torch"] == "2.11"
    assert found["setuptools"] == "77.0.3"  # the first to take `license = "MIT"`


def test_installed_versions_are_within_the_bounds():
    for name, version in lowest.constraints().items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert Version(installed) >= Version(version), name


def test_the_floor_of_a_requirement():
    for text, version in {"a>=1.2": "1.2", "a==3": "3", "a>=1,<2": "1"}.items():
        assert lowest.lowest(Requirement(text)) == version
    for text in ("a", "a<2"):
        try:
            lowest.lowest(Requirement(text))
        except ValueError as error:
            assert re.search("has no lower bound", str(error))
        else:
            raise AssertionError(text)
