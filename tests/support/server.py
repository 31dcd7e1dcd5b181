"""A real server in a process of its own, ended by its own process id.

    with ServerProcess(tmp_path / "data") as server:
        client = Client(server.address)

`start` returns once the server has said that it is ready. A restart, after `kill` or `stop`, keeps the data
directory and the address, so that a connected client finds it again. On Linux the server ends with the thread that
started it, so that a killed test run leaves none behind.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0


class ServerProcess:
    """One `vecmem serve`. `arguments` are further command-line arguments; `environment` replaces the inherited one."""

    def __init__(
        self, data_dir: Path, *, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir.parent / f"{data_dir.name}.stderr"
        self.address = "127.0.0.1:0"
        """HOST:PORT, known after the first start."""
        self.ready: dict[str, Any] = {}
        """The event with which the server last said that it is ready."""
        self._arguments = list(arguments)
        self.environment = environment
        """Of the next start."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Id of the running process. Raises RuntimeError when there is none."""
        return self._running_process().pid

    def command(self) -> list[str]:
        """Return the command line."""
        listen = ["serve", "--data-dir", str(self.data_dir), "--listen", self.address, "--json"]
        return [str(Path(sys.executable).with_name("vecmem")), *listen, *self._arguments]

    def start(self) -> Self:
        """Start the server and wait until it is ready. Raises RuntimeError, with its last words, when it does not come up."""
        if self.running:
            raise RuntimeError("the server runs already")
        self._close()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
            )
        self.ready = self._wait_until_ready()
        self.address = self.ready["address"]
        return self

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would."""
        process = self._running_process()
        process.kill()
        process.wait()
        self._close()

    def stop(self) -> None:
        """End the process with SIGTERM. Raises RuntimeError unless it exits with 0 in time."""
        process = self._running_process()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the server did not stop within {STOP_SECONDS_MAX:g} s:\n{self.last_words()}") from None
        self._close()
        if process.returncode != 0:
            raise RuntimeError(f"the server exited with {process.returncode}:\n{self.last_words()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, for instance SIGSTOP to make the server hang."""
        self._running_process().send_signal(number)

    def wait(self, timeout_seconds: float) -> int:
        """Wait for the process to end by itself and return its exit code."""
        process = self._running_process()
        code = process.wait(timeout_seconds)
        self._close()
        return code

    def last_words(self) -> str:
        """Return the end of what the server has written to standard error."""
        return self.log_path.read_text(errors="replace")[-4_000:] if self.log_path.exists() else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.running:
            self._close()  # it has ended by itself
        elif kind is None:
            self.stop()
        else:  # the test has failed already: leave nothing behind and do not hide why
            self.kill()

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process

    def _close(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def _wait_until_ready(self) -> dict[str, Any]:
        process = self._running_process()
        assert process.stdout is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            line = process.stdout.readline()
            if not line:
                code = process.wait()
                self._close()
                raise RuntimeError(f"the server exited with {code} before it was ready:\n{self.last_words()}")
            event = json.loads(line)
            if event.get("event") == "ready":
                return dict(event)
        self.kill()
        raise RuntimeError(f"the server was not ready within {START_SECONDS_MAX:g} s:\n{self.last_words()}")
