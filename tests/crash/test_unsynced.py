"""The shim behind the power cuts says what was durable, and no less: see tests/crash/unsynced.c."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.harness import Machine


@pytest.mark.parametrize("another", [False, True], ids=["cut", "another process, then cut"])
def test_a_process_that_dies_while_it_notes_what_is_there_takes_nothing_along(tmp_path: Path, another: bool) -> None:
    """It has not come to its first instruction: what is there is as durable as before, now and for the next process."""
    machine = Machine(tmp_path)
    there = {machine.root / f"{number:06d}.log": bytes([number]) * 10_000 * number for number in range(1, 7)}
    for path, content in there.items():
        path.write_bytes(content)
    command = [sys.executable, "-c", "pass"]
    smaller = (25_000, 25_000)
    died = subprocess.run(
        command,
        env=machine.environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, smaller),
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == 99
    assert "unsynced: cannot write" in died.stderr
    if another:
        subprocess.run(command, env=machine.environment(), check=True)
    machine.power_cut()
    assert {path: path.read_bytes() for path in machine.root.iterdir()} == there
