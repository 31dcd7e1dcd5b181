"""A vecmem server as a process of its own: started on a free port, ended by its process id, whatever happens."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

ROOT: Final = Path(__file__).resolve().parent.parent
START_SECONDS_MAX: Final = 300.0
STOP_SECONDS_MAX: Final = 120.0

_LAUNCHER: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the starting process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Asks for PR_SET_PDEATHSIG (1), which execve keeps, and becomes the program. A parent that died before is noticed."""


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """A command line that ends, on Linux, with the thread that starts it, even if that is killed with SIGKILL.

    Elsewhere it is the command itself. Its first item is the absolute path of a program; the process id stays the same.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


IDLE_SECONDS_MAX: Final = 120.0
IDLE_LOOK_SECONDS: Final = 2.0
IDLE_SHARE: Final = 0.03


class ServerError(Exception):
    """The server did not start or did not stop."""


class Server:
    """A server over one data directory; it can be killed and started again."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self._data_dir = data_dir
        self.flags: tuple[str, ...] = flags
        """Taken at the next start."""
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.addresses: list[str] = []
        """Of all its processes, with --shards; else the one."""
        self.pids: list[int] = []
        """Of the same."""
        self.grpc_engine = ""
        """`native` or `grpcio`, whichever serves."""

    def start(self) -> float:
        """Start it and wait until it serves. Returns when it was started, in time.perf_counter() seconds."""
        command = [sys.executable, "-m", "vecmem.cli.main", "serve", "--json", "--listen", "127.0.0.1:0"]
        command += ["--data-dir", str(self._data_dir), *self.flags]
        # No VECMEM_* of the caller's: a benchmark measures the defaults and what its flags say.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("VECMEM_")}
        started_at = time.perf_counter()
        with open(self.log_path, "ab") as log:
            # A process group of its own: Ctrl-C is for this process, which then ends the server itself. Not a session: some
            # systems share the processor among sessions first, and priorities would mean nothing between the two.
            self._process = subprocess.Popen(
                dying_with_parent(command),
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=ROOT,
                process_group=0,
            )
        self.address = self._read_ready(self._process)
        return started_at

    def _read_ready(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_SECONDS_MAX)
        line = process.stdout.readline() if readable else b""
        if not line:
            self.kill()
            message = f"the server did not start:\n{self.last_words()}"
            raise ServerError(message)
        ready = json.loads(line)
        self.grpc_engine = str(ready["grpc_engine"])
        self.addresses = [str(address) for address in ready.get("addresses", [ready["address"]])]
        self.pids = [int(pid) for pid in ready.get("pids", [ready["pid"]])]
        return str(ready["address"])

    @property
    def log_path(self) -> Path:
        """What the server wrote to standard error."""
        return self._data_dir.with_name(self._data_dir.name + ".log")

    def last_words(self) -> str:
        """The end of what it wrote there."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")[-2_000:] if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            message = "the server does not run"
            raise ServerError(message)
        return self._process.pid

    def rss_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """Time that all its threads have run."""
        return processor_seconds(self.pid)

    def wait_until_idle(self) -> None:
        """Return when it does no work of its own accord any more, or after IDLE_SECONDS_MAX."""
        deadline = time.monotonic() + IDLE_SECONDS_MAX
        while time.monotonic() < deadline:
            before = self.processor_seconds()
            time.sleep(IDLE_LOOK_SECONDS)
            if self.processor_seconds() - before < IDLE_SHARE * IDLE_LOOK_SECONDS:
                return

    def kill(self) -> None:
        """`kill -9`, if it runs."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait until it has drained. Raises ServerError when it does not exit 0."""
        code = self._end(signal.SIGTERM)
        if code:
            message = f"the server exited {code}"
            raise ServerError(message)

    def _end(self, signal_number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            process.send_signal(signal_number)
            return process.wait(STOP_SECONDS_MAX)
        finally:
            # Whatever interrupted the wait: nothing is left running.
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


def processor_seconds(pid: int) -> float:
    """Time that all threads of a process have run."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def work_directory(parent: Path) -> Iterator[Path]:
    """A directory for one run, gone afterwards. Not in /tmp, which may be memory: fsync shall mean what it says."""
    existed = parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
        if not existed and not any(parent.iterdir()):
            parent.rmdir()
