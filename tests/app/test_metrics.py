"""``metrics.csv`` after somebody opened it: every record is kept, and the run goes on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from simmim.training.metrics import COLUMNS, MetricsFile, read_metrics
from simmim.training.pretrain import Trainer

from .test_endings import UPDATES, config_of

VALUES = {"lr": 1.25e-05, "grad_norm": 1234.5, "images_per_second": 88.25}


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def metrics(tmp_path) -> Path:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, 0)
    for update in (5, 10, 1000):
        file.write(update=update, epoch=update // 10, split="train", loss=0.25, **VALUES)
    file.write(update=1000, epoch=100, split="val", loss=0.5)
    file.close()
    return path


def write(path: Path, rows: list[list[str]], encoding: str = "utf-8", **options) -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, **options).writerows(rows)


TOUCHED = {
    "CRLF": lambda path, rows: write(path, rows, lineterminator="\r\n"),
    "CR": lambda path, rows: write(path, rows, lineterminator="\r"),
    "quoted": lambda path, rows: write(path, rows, quoting=csv.QUOTE_ALL),
    "BOM": lambda path, rows: write(path, rows, encoding="utf-8-sig"),
    "decimals": lambda path, rows: write(
        path, [[c + ".0" if c.isdigit() else c for c in row] for row in rows]
    ),
    "exponents": lambda path, rows: write(
        path, [["1.00E+03" if c == "1000" else c for c in row] for row in rows]
    ),
    "empty lines": lambda path, rows: write(path, [rows[0], [], *rows[1:], ["", ""], []]),
    "other order": lambda path, rows: write(path, [row[::-1] for row in rows]),
    "no last line end": lambda path, rows: path.write_text(
        "\n".join(",".join(row) for row in rows)
    ),
    "no empty cells": lambda path, rows: write(
        path, [row[: 1 + max(i for i, c in enumerate(row) if c)] for row in rows]
    ),
}


@pytest.mark.parametrize("how", TOUCHED)
def test_the_records_are_what_they_were(metrics, how):
    before = read_metrics(metrics)
    TOUCHED[how](metrics, rows_of(metrics))
    assert numbers(read_metrics(metrics)) == numbers(before)
    again = MetricsFile(metrics, 10)
    again.write(update=15, epoch=1, split="train", loss=0.125)
    again.close()
    assert again.set_aside is None
    assert [row["update"] for row in read_metrics(metrics)] == ["5", "10", "15"]
    assert rows_of(metrics)[0] == list(COLUMNS)


def numbers(rows: list[dict[str, str]]) -> list[list[object]]:
    def number(cell: str) -> object:
        try:
            return float(cell)
        except ValueError:
            return cell

    return [[number(row[name]) for name in COLUMNS] for row in rows]


def test_added_columns_stay(metrics):
    rows = rows_of(metrics)
    write(metrics, [["note", *rows[0]], *([f"n{i}", *row] for i, row in enumerate(rows[1:]))])
    again = MetricsFile(metrics, 10)
    again.write(update=15, epoch=1, split="train", loss=0.125)
    again.close()
    assert again.set_aside is None
    assert [(r["update"], r["note"]) for r in read_metrics(metrics)] == [
        ("5", "n0"),
        ("10", "n1"),
        ("15", ""),
    ]


@pytest.mark.parametrize(
    "content",
    [
        *(b"\x00\x01\xff", b"a,b\n1,2\n", b"PK\x03\x04 a spreadsheet"),
        b'update,split,loss\n"1,val,2\n',
        b"update;split;loss\n5;train;0,25\n",
        "update\tsplit\tloss\n5\ttrain\t0.25\n".encode("utf-16"),
    ],
    ids=["bytes", "another table", "a workbook", "an open quote", "semicolons", "UTF-16"],
)
def test_what_is_no_record_is_kept_beside(tmp_path, content):
    path = tmp_path / "metrics.csv"
    for _ in range(2):
        path.write_bytes(content)
        file = MetricsFile(path, 5)
        file.close()
        assert file.set_aside.read_bytes() == content
    assert len(list(tmp_path.glob("*.old.csv"))) == 2
    assert read_metrics(path) == []


def test_a_row_that_is_no_record_among_others(metrics):
    with metrics.open("a") as file:
        file.write("mean,,,0.375\n")
    again = MetricsFile(metrics, 1000)
    again.close()
    assert "mean" in again.set_aside.read_text()
    assert len(read_metrics(metrics)) == 4


@pytest.mark.slow
def test_resuming_with_a_touched_file_and_without_one(photographs, tmp_path):
    out = tmp_path / "run"
    Trainer(config_of(photographs, out, epochs=1)).fit()
    TOUCHED["quoted"](out / "metrics.csv", rows_of(out / "metrics.csv"))
    Trainer(config_of(photographs, out, resume=True)).fit()
    updates = [int(r["update"]) for r in read_metrics(out / "metrics.csv") if r["split"] == "train"]
    assert updates == [3, 6, 9, UPDATES]
    (out / "metrics.csv").unlink()
    Trainer(config_of(photographs, out, epochs=3, resume=True)).fit()
    updates = [int(r["update"]) for r in read_metrics(out / "metrics.csv") if r["split"] == "train"]
    assert updates == [15, 18]
