"""`vecmem cluster status --watch`: in place on a terminal, and a JSON document a line for programs, until interrupted."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from bench.server import dying_with_parent

VECMEM = str(Path(sys.executable).with_name("vecmem"))
NOBODY = "127.0.0.1:1"
SECONDS_MAX = 60.0
CURSOR_UP = b"\x1b[1A"
INTERRUPTED = 130


def watching(address: str, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [VECMEM, "--address", f"{address},{NOBODY}", "cluster", "status", "--watch", *arguments]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    return subprocess.Popen(dying_with_parent(command), env=environment, **options)  # type: ignore[call-overload]


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS_MAX) == INTERRUPTED


def test_programs_get_a_line_at_a_time(server):
    with watching(server.address, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        found = [json.loads(process.stdout.readline()) for _ in range(3)]
        interrupt(process)
    for status in found:
        assert (status["cluster"], status["shards"]) == (None, [])
        assert list(status["errors"]) == [server.address, NOBODY]
        assert status["errors"][server.address] == "is alone, and in no cluster"
        assert status["errors"][NOBODY]


def test_a_terminal_shows_one_table_that_changes(server):
    ours, its = pty.openpty()
    with watching(server.address, stdout=its, stderr=its) as process:
        os.close(its)
        shown = b""
        while CURSOR_UP not in shown or NOBODY.encode() not in shown.rpartition(CURSOR_UP)[2]:
            shown += os.read(ours, 65_536)
        interrupt(process)
    os.close(ours)
    first, _, second = shown.partition(CURSOR_UP)
    assert first.count(server.address.encode()) == 1, "it is shown once, and then gone over"
    assert server.address.encode() in second


def test_a_pipe_gets_table_after_table(server):
    with watching(server.address, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        lines = [process.stdout.readline() for _ in range(8)]
        interrupt(process)
    assert not [line for line in lines if b"\x1b" in line]
    assert sum(NOBODY.encode() in line for line in lines) >= 2
