"""The documentation: its code runs, it names what exists, and the site builds from it alone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

import simmim_kernels as sk
from simmim.cli import main
from simmim_kernels import nn
from tests.repo.lowest import constraints
from tests.repo.test_packaging import OLDER_TORCH

ROOT = Path(__file__).parents[2]
_BOUNDS = constraints()
LOWEST = {"PyTorch": _BOUNDS["torch"], **{name: _BOUNDS[name] for name in ("transformers", "timm")}}
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_every_public_name_has_its_reference():
    listed = re.findall(r"^::: simmim_kernels\.([\w.]+)$", (ROOT / "docs/api.md").read_text(), re.M)
    expected = {*sk.__all__, *(f"nn.{name}" for name in nn.__all__)}
    others = {"integrations.timm.MaskedEncoder", "integrations.report.Report"}
    assert set(listed) == expected | others
    assert len(listed) == len(set(listed))


def test_every_public_name_is_in_the_changelog():
    told = set(re.findall(r"\w+", (ROOT / "CHANGELOG.md").read_text()))
    missing = {*sk.__all__, *nn.__all__} - told
    assert not missing


def test_every_public_name_is_used_where_types_are_checked():
    used = set(re.findall(r"\w+", (ROOT / "tests/repo/typed_use.py").read_text()))
    missing = {*sk.__all__, *nn.__all__} - used
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page):
    if "transformers" in page.read_text():
        pytest.importorskip("timm"), pytest.importorskip("transformers")
    names: dict = {}
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
        exec(compile(code, f"{page.name}, block {number + 1}", "exec"), names)


def test_scans_become_images_with_their_numbers(tmp_path, monkeypatch):
    """The CT and the MR scan that come with pydicom."""
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("CT_small.dcm", "MR_small.dcm"):
        shutil.copy(get_testdata_file(name, download=False), tmp_path / "scans")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    exec(compile(code, "data.md", "exec"), {})
    out = tmp_path / "stats.json"
    assert main(["stats", "--data", "scans", "--channels", "1", "--out", str(out)]) == 0
    ct, mr = (dcmread(f"scans/{name}_small.dcm").pixel_array for name in ("CT", "MR"))
    numbers = np.concatenate([ct.ravel() - 1024, mr.ravel()])
    found = json.loads(out.read_text())
    assert found["min"] == [numbers.min()] and found["max"] == [numbers.max()]
    assert found["mean"] == [pytest.approx(numbers.mean(), rel=1e-12)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere_in_the_repository(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    """Strictly: no broken link, and no page that the navigation does not reach."""
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not included in the" not in done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        assert not re.findall(r"<(?:script|link|img)[^>]*\"https?://[^>]*>", page.read_text())
    api = (tmp_path / "api.html").read_text()
    assert all(f'id="simmim_kernels.{name}"' in api for name in sk.__all__)


def test_the_version_and_the_lower_bounds_are_those_declared():
    pages = {name: (ROOT / name).read_text() for name in ("CHANGELOG.md", "CITATION.cff")}
    assert re.search(r"^## (\S+)", pages["CHANGELOG.md"], re.M)[1] == sk.__version__
    assert re.search(r"^version: (\S+)$", pages["CITATION.cff"], re.M)[1] == sk.__version__
    table = (ROOT / "docs/platforms.md").read_text()
    rows = {name: re.search(rf"^\| {name} \| (.*?) \|", table, re.M)[1] for name in LOWEST}
    assert {name: rows[name].startswith(LOWEST[name]) for name in LOWEST} == dict.fromkeys(
        LOWEST, True
    )
    assert OLDER_TORCH.rpartition(".")[0] in rows["PyTorch"]
