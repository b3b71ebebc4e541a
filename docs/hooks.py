"""MkDocs hooks: pages that live outside docs/ join the site, and their links are made to fit."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTES.md", "examples/README.md")
RESULTS = ("benchmarks/results/*/*.md", "benchmarks/results/*/*.png", "examples/*.py")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages and pictures outside docs/, under their path in the repository."""
    paths = [ROOT / name for name in OUTSIDE]
    paths += [path for pattern in RESULTS for path in sorted(ROOT.glob(pattern))]
    for path in paths:
        where = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, where, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """In the repository docs/ is one folder of many; in the site its pages are the root."""
    here = PurePosixPath(page.file.src_uri)
    if here.parts[0] in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks", "examples"):
        return markdown.replace("](docs/", "](").replace("../docs/", "../")
    return markdown.replace("](../", "](" + "../" * (len(here.parts) - 1))
