"""A real redis-server, to compare with what it answers: in a process of its own, ended by its own process id.

    from tests.support.redis_server import redis_client  # noqa: F401 - a fixture

    def test_something(redis_client): ...

It keeps nothing on disk. Where Debian's redis-server is not installed, tests that use it are skipped with that reason.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from bench.server import dying_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0


@pytest.fixture(scope="session")
def redis_client() -> Iterator[redis.Redis]:
    """A client of a server for all tests of this process; each begins with `flushall`."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: redis-server)")
    # A path of a socket has at most 107 bytes: pytest's directories are too long.
    with tempfile.TemporaryDirectory(prefix="vecmem-redis-") as directory:
        socket_path = Path(directory) / "redis.sock"
        log_path = Path(directory) / "redis.log"
        nothing_kept = ["--save", "", "--appendonly", "no", "--dir", directory, "--logfile", str(log_path)]
        command = [program, "--port", "0", "--unixsocket", str(socket_path), *nothing_kept]
        process = subprocess.Popen(dying_with_parent(command))
        client = redis.Redis(unix_socket_path=str(socket_path))
        try:
            _wait_until_ready(process, client, log_path)
            yield client
        finally:
            client.close()
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], client: redis.Redis, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            if process.poll() is not None or time.monotonic() > deadline:
                log = log_path.read_text(encoding="utf-8") if log_path.exists() else ""
                pytest.fail(f"redis-server did not start (exit code {process.poll()}): {log}")
            time.sleep(0.02)
        else:
            return
