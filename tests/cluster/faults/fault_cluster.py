"""A real cluster all of whose links, clocks and disks a test has in its hands.

    with FaultCluster(directory) as cluster:
        cluster.groups[0].nodes[1].process.send_signal(signal.SIGSTOP)
        cluster.cut_off(cluster.groups[0].nodes[0].links)

Groups are shards: the nodes of one follow one log. Every node reaches every NATS server by a link of its own, NATS servers reach each other by links, and
clients reach each node by one. The servers tell nobody of addresses that would lead around the links.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from bench.server import dying_with_parent
from tests.cluster.faults.links import HOST, Link, Network
from tests.crash.harness import Machine
from tests.support.server import ServerProcess
from vecmem.cluster.nats_server import NatsServers, plan_servers
from vecmem.log.jetstream import JetStreamLog, JetStreamSettings
from vecmem.slots import SLOTS

ENTRY = Path(__file__).with_name("node_entry.py")
CLUSTER_NAME = "faults"
LEASE_SECONDS = 1.0
NATS_SERVERS = 3
READY_SECONDS_MAX = 120.0
"""Only a failing test waits so long."""
NOBODY = f"{HOST}:1"


class NodeProcess(ServerProcess):
    """One node, by way of node_entry."""

    def command(self) -> list[str]:
        _, *arguments = super().command()
        return dying_with_parent([sys.executable, str(ENTRY), *arguments])

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return not self.running


@dataclass
class Node:
    """One node of a shard."""

    name: str
    shard: int
    process: NodeProcess
    links: list[Link]
    """To the NATS servers, in their order."""
    clients_link: Link
    """From clients."""
    clock_file: Path
    machine: Machine
    """Whose disk it is on."""

    def replace(self) -> None:
        """Take away all that it has kept. It does not run."""
        shutil.rmtree(self.process.data_dir)

    def set_clock(self, wrong_by_ms: int) -> None:
        """Make its wall clock jump."""
        new = self.clock_file.with_suffix(".new")
        new.write_text(str(wrong_by_ms))
        new.replace(self.clock_file)


@dataclass
class Group:
    """One shard."""

    shard: int
    slots: range
    nodes: list[Node] = field(default_factory=list)

    @property
    def stream(self) -> str:
        return f"vecmem-{CLUSTER_NAME}-{self.shard}"

    @property
    def addresses(self) -> list[str]:
        """Where clients reach the nodes."""
        return [f"{HOST}:{node.clients_link.port}" for node in self.nodes]

    def node_at(self, address: str) -> int | None:
        """Place of the node that serves at an address that it gave itself."""
        return next((place for place, node in enumerate(self.nodes) if node.process.address == address), None)


class FaultCluster:
    """Started as a context manager; whatever still runs at the end is ended."""

    def __init__(
        self, directory: Path, *, nodes_of_groups: Sequence[int] = (3,), defect: str = "", arguments: Sequence[str] = ()
    ) -> None:
        bounds = [shard * SLOTS // len(nodes_of_groups) for shard in range(len(nodes_of_groups) + 1)]
        self.groups = [Group(shard, range(*ends)) for shard, ends in enumerate(itertools.pairwise(bounds))]
        self.routes: dict[tuple[int, int], Link] = {}
        """From one NATS server to another, by their places."""
        self.nats: NatsServers
        self._nodes_of_groups = nodes_of_groups
        self._directory = directory
        self._defect = defect
        self._arguments = arguments
        self._network = Network()
        self._stack = ExitStack()

    @property
    def nodes(self) -> list[Node]:
        """Of all groups."""
        return [node for group in self.groups for node in group.nodes]

    def routes_of(self, server: int) -> list[Link]:
        """Both ways between a NATS server and the others."""
        return [link for ends, link in self.routes.items() if server in ends]

    def read_log(self, group: Group) -> JetStreamLog:
        """The one log of a group, past all links."""
        return JetStreamLog.open(
            JetStreamSettings(
                servers=self.nats.urls,
                stream=group.stream,
                monitoring_urls=self.nats.monitoring_urls,
                replicas=NATS_SERVERS,
            )
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._network)
            self._start_nats()
            stack.enter_context(self.nats)
            stack.callback(self._end_nodes)
            for group, count in zip(self.groups, self._nodes_of_groups, strict=True):
                for _ in range(count):
                    self._start_node(group)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def _start_nats(self) -> None:
        plans = plan_servers(self._directory / "nats", count=NATS_SERVERS, cluster_name=CLUSTER_NAME)
        for ends in ((one, other) for one in range(NATS_SERVERS) for other in range(NATS_SERVERS) if one != other):
            port = plans[ends[1]].cluster_port
            self.routes[ends] = self._network.link(f"nats-{ends[0] + 1} to nats-{ends[1] + 1}", lambda port=port: port)
        plans = [
            replace(plan, routes=tuple(link.port for ends, link in self.routes.items() if ends[0] == place))
            for place, plan in enumerate(plans)
        ]
        flags = ["--no_advertise", "--cluster_advertise", NOBODY]
        self.nats = NatsServers(plans, launcher=lambda command: dying_with_parent([*command, *flags]))

    def _start_node(self, group: Group) -> None:
        name = f"node-{group.shard}-{len(group.nodes) + 1}"
        directory = self._directory / name
        directory.mkdir()
        machine = Machine(directory)
        clock_file = directory / "clock"
        clock_file.write_text("0")
        links = [
            self._network.link(f"{name} to {server.plan.name}", lambda port=server.plan.client_port: port)
            for server in self.nats.servers
        ]
        settings = ["--cluster", ",".join(f"nats://{HOST}:{link.port}" for link in links), "--node", name]
        settings += ["--cluster-monitoring", ",".join(self.nats.monitoring_urls), "--cluster-name", CLUSTER_NAME]
        settings += ["--log-replicas", str(NATS_SERVERS), "--lease-seconds", str(LEASE_SECONDS)]
        if len(self.groups) > 1:
            settings += ["--shard", str(group.shard), "--shards", str(len(self.groups))]
        process = NodeProcess(
            machine.root / "data",
            arguments=[*settings, *self._arguments],
            environment=machine.environment(FAULTS_CLOCK=str(clock_file), FAULTS_DEFECT=self._defect),
        )
        clients_link = self._network.link(f"clients to {name}", lambda: int(process.address.rpartition(":")[2]))
        group.nodes.append(Node(name, group.shard, process, links, clients_link, clock_file, machine))
        process.start()

    def _end_nodes(self) -> None:
        for node in self.nodes:
            if node.process.running:
                node.process.kill()
            node.process.__exit__(None)


def wait_until(holds: object, what: str, seconds_max: float = READY_SECONDS_MAX) -> None:
    """Return when a function returns something true. Raises AssertionError."""
    assert callable(holds)
    deadline = time.monotonic() + seconds_max
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)
