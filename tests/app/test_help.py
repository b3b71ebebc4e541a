"""``--help``: it fits the terminal, and shows each option once, in a group."""

from __future__ import annotations

import dataclasses
import re

import pytest

from simmim.cli import _COMMANDS, main
from simmim.help import _GROUPS, page
from simmim.presets import PRESETS


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["", *_COMMANDS])
def test_help_fits_the_terminal(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        main([command, "--help"] if command else ["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert "(default: )" not in text and "None" not in text


def test_groups_of_the_help_name_options_that_there_are():
    fields = {field.name for kind, _ in _COMMANDS.values() for field in dataclasses.fields(kind)}
    assert {name for names in _GROUPS.values() for name in names.split()} <= fields


def test_help_names_options_that_the_command_has():
    named = {
        (command, option)
        for command, (kind, _) in _COMMANDS.items()
        for option in re.findall(r"--[a-z][a-z-]+", page(command, kind))
        if option.removeprefix("--no-").removeprefix("--").replace("-", "_")
        not in {field.name for field in dataclasses.fields(kind)}
    }
    # each said to be another command's
    assert named == {("pretrain", "--layer-decay"), ("stats", "--stats"), ("export", "--method")}


def test_help_shows_the_values_of_a_preset(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--preset", "vit-b", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Passes over the data." in text and f"(default: {PRESETS['vit-b'].epochs})" in text
