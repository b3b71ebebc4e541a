"""Lists of files: as spreadsheets and people write them, and what is wrong with some."""

from __future__ import annotations

import csv

import pandas
import pytest

from simmim.cli import main
from simmim.config.images import SourceConfig
from simmim.data.sources import CsvTable, find_source, read_paths

from .sources import PICTURES, png, write_pictures


def test_lists_as_spreadsheets_write_them(tmp_path):
    """With a mark at the beginning, other line ends, and a break inside a field."""
    paths = [tmp_path / f"{name}.png" for name in ("one", "two, and a half")]
    for path in paths:
        path.write_bytes(png(PICTURES[0]))
    table = '\ufeffnote,path\r\n"a\r\nbreak",one.png\r\n,"two, and a half.png"\r\n'
    (tmp_path / "list.csv").write_bytes(table.encode())
    (tmp_path / "list.txt").write_bytes("\ufeffone.png\r\ntwo, and a half.png\r\n".encode())
    for name in ("list.csv", "list.txt"):
        assert find_source(tmp_path / name, SourceConfig()).paths == paths


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_names_that_hold_other_signs_of_a_new_line(tmp_path, end):
    paths = [tmp_path / f"{number}{sign}.png" for number, sign in enumerate("\u2028\x85\x0c\x1e ")]
    for path in paths:
        path.write_bytes(png(PICTURES[0]))
    (tmp_path / "list.txt").write_bytes(end.join(path.name for path in paths).encode())
    assert find_source(tmp_path / "list.txt", SourceConfig()).paths == paths


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_lists_in_the_utf_16_of_powershell_and_excel(tmp_path, encoding):
    paths = [tmp_path / f"{name}.png" for name in ("one", "zw\u00f6lf")]
    for path in paths:
        path.write_bytes(png(PICTURES[0]))
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for name, text in (
        ("list.txt", "one.png\r\nzw\u00f6lf.png\r\n"),
        ("list.csv", "label,path\r\n1,one.png\r\n2,zw\u00f6lf.png\r\n"),
    ):
        (tmp_path / name).write_bytes((mark + text).encode(encoding))
        assert find_source(tmp_path / name, SourceConfig()).paths == paths


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_that_spreadsheets_write(tmp_path, separator):
    path = tmp_path / "a, b; c.png"
    path.write_bytes(png(PICTURES[0]))
    rows = (("Label", "Path"), ("0,5", path.name))
    text = "".join(separator.join(f'"{cell}"' for cell in row) + "\r\n" for row in rows)
    (tmp_path / "list.csv").write_text(text)
    assert find_source(tmp_path / "list.csv", SourceConfig()).paths == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png\nb.png\n", "list.csv begins with a.png: its first line must name the columns"),
        ("a.png,1\nb.png,0\n", "list.csv begins with a.png: its first line must name the columns"),
        ("", "list.csv is empty: its first line must name the columns"),
        ("path\n", "list.csv: it names no image"),
        ("a.png;1\nb.png;0\n", "list.csv begins with a.png: its first line must name the columns"),
        ("label,path\n1,a.png\n0\n", "its path number 2, '', is no image that is read"),
        (",a,b\n0,a.png,b.png\n", "list.csv has the columns , a, b: say with --column"),
        ("path\na.png\0\n", "is no text in UTF-8, nor in UTF-16 that begins with its mark"),
    ],
)
def test_tables_with_parts_missing(text, words, tmp_path, capsys):
    """No header, of which the first image would be gone; no rows; a row without a path; pandas' index
    without a name; another encoding."""
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(PICTURES[0]))
    (tmp_path / "list.csv").write_text(text)
    out = tmp_path / "a.json"
    assert main(["stats", "--data", str(tmp_path / "list.csv"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r"photos\a.png", "a path of Windows, write it as on this machine and with /"),
        (r"C:\photos\a.png", "a path of Windows"),
        ("D:/photos/a.png", "a path of Windows"),
        ("https://example.org/a.png", "an address, and only files of this machine are read"),
        ("photos/a.png", "paths are seen from "),
    ],
)
@pytest.mark.parametrize("name", ["list.csv", "list.txt", "list.parquet"])
def test_a_list_of_files_that_are_elsewhere(name, line, words, tmp_path, capsys):
    """It is no disk that is gone; where a single file is there, the others are left out one by one."""
    table, out = pandas.DataFrame({"path": [line, line + ".png"]}), tmp_path / "a.json"
    {
        "list.csv": lambda: table.to_csv(tmp_path / name, index=False),
        "list.txt": lambda: (tmp_path / name).write_text("\n".join(table["path"])),
        "list.parquet": lambda: table.to_parquet(tmp_path / name),
    }[name]()
    assert main(["stats", "--data", str(tmp_path / name), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"{name} names no file that is there, the first is {line}" in error
    assert words in error and error.count("\n") == 1, error
    (tmp_path / "list.txt").write_text(f"{line}\nb.png")
    (tmp_path / "b.png").write_bytes(png(PICTURES[0]))
    assert main(["stats", "--data", str(tmp_path / "list.txt"), "--out", str(out)]) == 0


def test_tables_of_paths_with_a_row_without_one(tmp_path, capsys):
    path = tmp_path / "list.parquet"
    (tmp_path / "a.png").write_bytes(png(PICTURES[0]))
    pandas.DataFrame({"path": ["a.png", None]}).to_parquet(path)
    assert main(["stats", "--data", str(path), "--out", str(tmp_path / "a.json")]) == 2
    error = capsys.readouterr().err
    assert f"{path}: its path number 2, '', is no image" in error and error.count("\n") == 1


def test_paths_beside_other_text_in_parquet_are_told_by_their_name_as_in_csv(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(PICTURES[0]))
    table = pandas.DataFrame({"species": ["cat"], "File": ["a.png"]})
    table.to_parquet(tmp_path / "list.parquet")
    assert find_source(tmp_path / "list.parquet", SourceConfig()).paths == [tmp_path / "a.png"]
    table.rename(columns={"File": "where"}).to_parquet(tmp_path / "list.parquet")
    arguments = ["stats", "--data", str(tmp_path / "list.parquet")]
    assert main([*arguments, "--out", str(tmp_path / "a.json")]) == 2
    assert "say with --column which of species, where holds the images" in capsys.readouterr().err


def test_paths_in_a_folder_of_tables_are_seen_from_it(tmp_path):
    paths = write_pictures(tmp_path / "pictures")
    (tmp_path / "tables").mkdir()
    for number in range(2):
        table = {"path": [f"../pictures/{p.name}" for p in paths[4 * number : 4 * number + 4]]}
        pandas.DataFrame(table).to_parquet(tmp_path / f"tables/{number}.parquet")
    found = find_source(tmp_path / "tables", SourceConfig()).paths
    assert [path.resolve() for path in found] == paths and all(path.exists() for path in found)


def test_folders_above_a_list_are_no_classes_of_its_pack(tmp_path):
    paths = write_pictures(tmp_path / "pictures")
    (tmp_path / "lists/own").mkdir(parents=True)
    (tmp_path / "lists/own/a.png").write_bytes(png(PICTURES[0]))
    lines = ["own/a.png", f"../pictures/{paths[0].name}", str(paths[1])]
    (tmp_path / "lists/list.txt").write_text("\n".join(lines))
    pack = tmp_path / "pack"
    assert main(["pack", "--data", str(tmp_path / "lists/list.txt"), "--out", str(pack)]) == 0
    rows = csv.DictReader((pack / "index.csv").open(newline=""))
    assert [row["label"] for row in rows] == ["own", "", ""]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_end_as_on_any_system(end, encoding, tmp_path):
    table = tmp_path / "list.csv"
    # with more of another separator than there are in the header
    table.write_bytes(
        end.join(["path,label", "a;b;c;d;e;f.png,1", '"e,f.png",2', ""]).encode(encoding)
    )
    paths = ["a;b;c;d;e;f.png", "e,f.png"]
    assert read_paths(table, "path") == paths
    assert CsvTable(table).labels("label")[0] == ["1", "2"]
