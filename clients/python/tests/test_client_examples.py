"""Examples that say what they print run against a real server, twice, and print that."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SAYS = "It prints:\n\n"
DESCRIPTIONS = {
    path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for path in sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))
}
EXAMPLES = [path for path, description in DESCRIPTIONS.items() if SAYS in description]
SECONDS_MAX = 120.0


def test_there_are_examples():
    assert {"idempotency", "lock", "rate_limiter", "session_store"} <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(server, path):
    _, _, expected = DESCRIPTIONS[path].partition(SAYS)
    for _ in range(2):
        command = [sys.executable, "-W", "error", str(path), server.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.rstrip() == textwrap.dedent(expected).rstrip()
