"""What befalls a cluster: faults by name, each a context manager that does harm when it is entered and makes good when it is left.

Nodes are told apart by what they do at that moment: the primary leads, a replica does not. Every fault leaves the cluster whole, so that it has to recover.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.cluster.faults.cluster_workload import Notes
from tests.cluster.faults.fault_cluster import LEASE_SECONDS, NATS_SERVERS, FaultCluster, Group, Node, wait_until
from tests.cluster.faults.links import BACK, THERE, Link
from vecmem.cluster.nats_server import NatsServer

CLOCK_JUMP_MS_MAX: Final = 240_000
"""So that from one node to another it is less than the time for which repeated requests are known."""
PAUSE_LEASES: Final = (1.5, 3.5)
"""For how many leases something lasts: long enough for others to take over, and for a while after that."""
LONG_LEASES: Final = 45.0
"""Longer than a log takes to settle what became of an append."""
SLOW_SECONDS: Final = (0.02, 0.15)


@dataclass
class Scene:
    """Where faults happen: one group, and the NATS servers that all groups share. What one fault has taken, no other one takes meanwhile."""

    cluster: FaultCluster
    group: Group
    notes: Notes
    rng: random.Random
    taken: set[str] = field(default_factory=set)

    def primary(self) -> Node:
        """The node that has acknowledged last, if it is not taken."""
        place = self.notes.last_leader()
        nodes = [*self.group.nodes[place:], *self.group.nodes[:place]]
        return self._take(next(node for node in nodes if node.name not in self.taken))

    def replica(self) -> Node:
        """One of the others, as long as there is one that is not taken."""
        place = self.notes.last_leader()
        free = [node for node in self.group.nodes if node.name not in self.taken]
        return self._take(self.rng.choice([node for node in free if node is not self.group.nodes[place]] or free))

    def server(self) -> int:
        """Place of a NATS server."""
        places = [place for place in range(NATS_SERVERS) if f"nats-{place + 1}" not in self.taken]
        place = self.rng.choice(places)
        self.taken.add(f"nats-{place + 1}")
        return place

    def stream_leader(self) -> int:
        """Place of the NATS server that leads the group's stream, if it is not taken."""
        servers = self.cluster.nats.servers
        for server in servers:
            try:
                name = stream_leader_of(server, self.group.stream)
            except OSError:
                continue
            for place, one in enumerate(servers):
                if one.plan.name == name and name not in self.taken:
                    self.taken.add(name)
                    return place
        return self.server()

    def _take(self, node: Node) -> Node:
        self.taken.add(node.name)
        return node


def stream_leader_of(server: NatsServer, stream: str) -> str:
    """Name of the server that leads a stream, by another one's word; empty: there is none. Raises OSError."""
    page = server.page("/jsz?streams=1&config=0")
    for account in page.get("account_details") or ():
        for one in account.get("stream_detail") or ():
            if one["name"] == stream:
                return str((one.get("cluster") or {}).get("leader", ""))
    return ""


Fault = Callable[[Scene], AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {}


def fault(function: Callable[[Scene], Iterator[None]]) -> Fault:
    """Make a fault of a generator function, and list it by its name."""
    made = contextmanager(function)
    FAULTS[function.__name__] = made
    return made


# -- processes -----------------------------------------------------------------------------------------------------------


@contextmanager
def killed(node: Node) -> Iterator[None]:
    node.process.kill()
    yield
    node.process.start()


@contextmanager
def paused(process: Node | NatsServer) -> Iterator[None]:
    target = process.process if isinstance(process, Node) else process
    target.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        target.send_signal(signal.SIGCONT)


@contextmanager
def server_killed(*servers: NatsServer) -> Iterator[None]:
    for server in servers:
        server.kill()
    yield
    for server in servers:
        server.launch()
    for server in servers:
        server.wait_until_ready()


@fault
def kill_primary(scene: Scene) -> Iterator[None]:
    with killed(scene.primary()):
        yield


@fault
def kill_replica(scene: Scene) -> Iterator[None]:
    with killed(scene.replica()):
        yield


@fault
def cut_power_of_a_node(scene: Scene) -> Iterator[None]:
    """It dies, and all that it had not synced is gone."""
    node = scene.primary() if scene.rng.random() < 0.5 else scene.replica()
    node.process.kill()
    node.machine.power_cut()
    yield
    node.process.start()


@fault
def replace_replica(scene: Scene) -> Iterator[None]:
    """By a new one of the same name, which has nothing and reads the log from its beginning."""
    node = scene.replica()
    node.process.kill()
    node.replace()
    yield
    node.process.start()


@fault
def kill_server(scene: Scene) -> Iterator[None]:
    with server_killed(scene.cluster.nats.servers[scene.stream_leader()]):
        yield


@fault
def kill_all_servers(scene: Scene) -> Iterator[None]:
    scene.taken.update(server.plan.name for server in scene.cluster.nats.servers)
    with server_killed(*scene.cluster.nats.servers):
        yield


@fault
def stop_primary(scene: Scene) -> Iterator[None]:
    """In an orderly manner, in which it hands over the lead."""
    node = scene.primary()
    node.process.stop()
    yield
    node.process.start()


@fault
def pause_primary(scene: Scene) -> Iterator[None]:
    with paused(scene.primary()):
        yield


@fault
def pause_replica(scene: Scene) -> Iterator[None]:
    with paused(scene.replica()):
        yield


@fault
def pause_server(scene: Scene) -> Iterator[None]:
    with paused(scene.cluster.nats.servers[scene.stream_leader()]):
        yield


@fault
def clocks_jump(scene: Scene) -> Iterator[None]:
    """All wall clocks, each another way; those that go back make good, the others stay so until the next time."""
    for node in scene.group.nodes:
        node.set_clock(scene.rng.randint(-CLOCK_JUMP_MS_MAX, CLOCK_JUMP_MS_MAX))
    yield
    for node in scene.rng.sample(scene.group.nodes, 2):
        node.set_clock(0)


@fault
def fill_disk(scene: Scene) -> Iterator[None]:
    """Of a node, which leads or follows. It cannot keep what it applies, so it ends; with room again it starts anew."""
    node = scene.primary() if scene.rng.random() < 0.5 else scene.replica()
    node.machine.command("enospc")
    yield
    wait_until(lambda: node.process.ended, f"the end of {node.name}, whose disk is full")
    node.machine.command("")
    node.process.start()


# -- the network ---------------------------------------------------------------------------------------------------------


@contextmanager
def held(scene: Scene, links: Sequence[Link], *directions: str) -> Iterator[None]:
    for link in links:
        link.hold(*directions)
    try:
        yield
    finally:
        cut = scene.rng.random() < 0.5
        for link in links:
            link.release(cut=cut)


@fault
def cut_off_primary(scene: Scene) -> Iterator[None]:
    """From all NATS servers; clients still reach it."""
    with held(scene, scene.primary().links):
        yield


@fault
def cut_off_replica(scene: Scene) -> Iterator[None]:
    with held(scene, scene.replica().links):
        yield


@fault
def deafen_primary(scene: Scene) -> Iterator[None]:
    """What it appends arrives, and it hears nothing of that; or the other way round."""
    with held(scene, scene.primary().links, scene.rng.choice([THERE, BACK])):
        yield


@fault
def part_nodes_from_a_server(scene: Scene) -> Iterator[None]:
    """Some nodes lose the way to one server, and have to go by another one."""
    server = scene.stream_leader()
    nodes = scene.rng.sample(scene.group.nodes, scene.rng.randint(1, len(scene.group.nodes)))
    with held(scene, [node.links[server] for node in nodes]):
        yield


@fault
def isolate_server(scene: Scene) -> Iterator[None]:
    """A NATS server from the others, while nodes still reach it: it thinks for a while that it leads."""
    with held(scene, scene.cluster.routes_of(scene.stream_leader())):
        yield


@fault
def part_two_servers(scene: Scene) -> Iterator[None]:
    """From each other, while both reach the third."""
    one, other = scene.rng.sample(range(NATS_SERVERS), 2)
    routes = scene.cluster.routes
    with held(scene, [routes[one, other], routes[other, one]]):
        yield


@fault
def part_clients_from_primary(scene: Scene) -> Iterator[None]:
    with held(scene, [scene.primary().clients_link], *scene.rng.choice([(), (THERE,), (BACK,)])):
        yield


@fault
def slow_links(scene: Scene) -> Iterator[None]:
    """All links of a node and of a NATS server."""
    links = [*scene.primary().links, *scene.cluster.routes_of(scene.server())]
    for link in links:
        link.slow(scene.rng.uniform(*SLOW_SECONDS))
    yield
    for link in links:
        link.slow(0.0)


PROCESS_FAULTS: Final = (
    "kill_primary",
    "kill_replica",
    "kill_server",
    "kill_all_servers",
    "cut_power_of_a_node",
    "replace_replica",
    "stop_primary",
    "pause_primary",
    "pause_replica",
    "pause_server",
    "fill_disk",
)
LINK_FAULTS: Final = (
    "clocks_jump",
    "cut_off_primary",
    "cut_off_replica",
    "deafen_primary",
    "part_nodes_from_a_server",
    "isolate_server",
    "part_two_servers",
    "part_clients_from_primary",
    "slow_links",
)


ALONE: Final = frozenset({"kill_all_servers", "fill_disk"})
"""These leave nothing for others, or wait for something that others may prevent."""


ORDER: Final = [
    *(name for name in PROCESS_FAULTS if "server" not in name),
    *(name for name in PROCESS_FAULTS if "server" in name),
    *LINK_FAULTS,
]


class Nemesis:
    """Picks faults by a seed, each of them before any comes again, and holds them for longer than a lease."""

    def __init__(
        self, cluster: FaultCluster, group: Group, notes: Notes, rng: random.Random, faults: Sequence[str]
    ) -> None:
        self._cluster, self._group, self._notes, self._rng = cluster, group, notes, rng
        self._faults = faults
        self._order: list[str] = []

    def strike(self, *, together: int = 1, is_long: bool = False) -> None:
        """Let one fault, or several at once where they go together, happen and pass."""
        scene = Scene(self._cluster, self._group, self._notes, self._rng)
        with ExitStack() as stack:
            # What is done last is undone first: a node that is started again needs servers, and these each other.
            for name in sorted(self._choose(together), key=ORDER.index):
                print(f"{time.monotonic():.1f} {name}")
                stack.enter_context(FAULTS[name](scene))
            time.sleep(LEASE_SECONDS * (LONG_LEASES if is_long else self._rng.uniform(*PAUSE_LEASES)))

    def _choose(self, together: int) -> list[str]:
        names: list[str] = []
        while len(names) < together and not ALONE & set(names):
            self._order = self._order or self._rng.sample(self._faults, len(self._faults))
            if names and self._order[-1] in ALONE:
                break
            names.append(self._order.pop())
        return list(dict.fromkeys(names))
