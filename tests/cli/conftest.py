"""The command, run in this process against a real server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from vecmem.cli.main import main


@dataclass
class Result:
    """What a run of the command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.stdout)

    @property
    def error(self) -> Any:
        """The error object on standard error."""
        return json.loads(self.stderr)["error"]


@pytest.fixture
def vecmem(capsys, monkeypatch):
    """Run the command without a server in particular."""
    monkeypatch.delenv("VECMEM_ADDRESS", raising=False)

    def run(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def ask(vecmem, server):
    """Run the command against the server; a failure fails the test. Returns the JSON document."""

    def run(*arguments: object) -> Any:
        result = vecmem("--address", server.address, *arguments, "--json")
        assert result.code == 0, result.stderr
        return result.document

    return run


@pytest.fixture
def refused(vecmem, server):
    """Run the command against the server, expecting it to fail. Returns the result; standard output stays empty."""

    def run(*arguments: object) -> Result:
        result = vecmem("--address", server.address, *arguments, "--json")
        assert result.code != 0
        assert not result.stdout
        return result

    return run
