"""Nodes on this machine, each `vecmem serve` in a process of its own, that end with the process that started them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from vecmem.errors import UnavailableError

STOP_SECONDS_MAX: Final = 60.0
_LAUNCHER: Final = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, of Linux; it outlasts exec
except (OSError, AttributeError):
    pass
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class LocalNode:
    """One that has said that it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready

    @property
    def address(self) -> str:
        """Where it serves."""
        return str(self.ready["address"])


@contextlib.contextmanager
def local_nodes(commands: Sequence[tuple[Path, Sequence[str]]]) -> Iterator[list[LocalNode]]:
    """Start nodes, each with a file for its log and the flags of `vecmem serve`; in the block all are ready, behind it all have ended.

    Raises UnavailableError for one that does not start.
    """
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_process(log, flags)) for log, flags in commands]
        nodes = []
        for process, (log, _) in zip(processes, commands, strict=True):
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise UnavailableError(f"a node did not start; {log} says why:\n{_last_words(log)}")
            nodes.append(LocalNode(process, json.loads(line)))
        yield nodes
        # All are told before one is waited for.
        for process in processes:
            process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _process(log: Path, flags: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("vecmem")), "--json", "serve", *flags]
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
    with log.open("ab") as output:
        process = subprocess.Popen([*launcher, *command], stdout=subprocess.PIPE, stderr=output, process_group=0)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _last_words(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:] if log.exists() else ""
