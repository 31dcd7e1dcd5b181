"""What holds for every command: exit codes, error forms, where output goes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vecmem.cli.main import vecmem as root_command

ROOT = Path(__file__).resolve().parent.parent.parent


def all_commands(command=root_command, names=()):
    if hasattr(command, "commands"):
        for name, child in sorted(command.commands.items()):
            yield from all_commands(child, (*names, name))
    else:
        yield names


@pytest.fixture
def nobody():
    """An address at which no server listens, held so that none can come."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("names", list(all_commands()), ids=" ".join)
def test_every_command_explains_itself_and_takes_json(vecmem, names):
    result = vecmem(*names, "--help")
    assert result.code == 0
    assert "--json" in result.stdout


def test_an_absent_server_is_told_by_address_and_exit_code(vecmem, nobody):
    result = vecmem("--address", nobody, "collections", "list")
    assert result.code == 5
    assert not result.stdout
    assert result.stderr.count("\n") == 1
    assert nobody in result.stderr


def test_an_absent_server_is_told_as_json(vecmem, nobody):
    result = vecmem("count", "c", "--address", nobody, "--json")
    assert (result.code, result.stdout) == (5, "")
    assert result.error["reason"] == "UNAVAILABLE"


def test_the_address_may_come_from_the_environment(vecmem, nobody, monkeypatch):
    monkeypatch.setenv("VECMEM_ADDRESS", nobody)
    assert nobody in vecmem("info").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("query",),
        ("query", "c"),
        ("query", "c", "--vector", "[1]", "--id", "a"),
        ("query", "c", "--vector", "1"),
        ("query", "c", "--vector", '["1"]'),
        ("query", "c", "--vector", "[1"),
        ("query", "c", "--id", "a", "--filter", "{"),
        ("query", "c", "--id", "a", "--filter", '{"fild": {}}'),
        ("query", "c", "--id", "a", "--limit", "ten"),
        ("collections", "create", "c"),
        ("collections", "create", "c", "--vector", "x"),
        ("collections", "create", "c", "--vector", "x:3:manhattan"),
        ("collections", "create", "c", "--dimension", "3", "--metric", "manhattan"),
        ("collections", "update", "c"),
        ("collections", "delete", "c"),
        ("delete", "c"),
        ("delete", "c", "a", "--all"),
        ("delete", "c", "--all"),
        ("import", "/nowhere/at/all.jsonl", "--collection", "c"),
        ("verify", "/nowhere/at/all"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_before_any_server_is_asked(vecmem, arguments):
    result = vecmem(*arguments, "--json")
    assert (result.code, result.stdout) == (2, "")
    assert result.error["reason"] == "USAGE"
    assert result.error["message"]


def test_the_installed_command_and_the_module_are_the_same():
    script = subprocess.run(
        [Path(sys.executable).with_name("vecmem"), "--version"], capture_output=True, text=True, check=True
    )
    module = subprocess.run(
        [sys.executable, "-m", "vecmem.cli.main", "--version"], capture_output=True, text=True, check=True
    )
    assert script.stdout == module.stdout
    assert script.stdout.startswith("vecmem, version ")


def test_a_reader_that_goes_away_causes_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "vecmem.cli.main", "serve", "--help"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_every_exit_code_is_documented():
    from vecmem.cli import main

    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    codes = {value for name, value in vars(main).items() if name.startswith("EXIT_")}
    assert len(codes) == 7
    for code in codes | {0}:
        assert f"| {code} |" in page
