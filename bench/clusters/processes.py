"""NATS servers and nodes of one cluster on this machine, as processes that end with the benchmark.

Nodes keep their addresses over restarts, so that clients that know them find them again.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from bench.server import Server, dying_with_parent
from vecmem.cluster.nats_server import HOST, NatsServer, NatsServers, free_ports, plan_servers, wait_until_ready
from vecmem.cluster.peers import ACCEPT_MOVED_KEY
from vecmem.log.jetstream_stream import Stream
from vecmem.log.nats_connection import API_PREFIX, NatsConnection, NoReplyError
from vecmem.v1 import cluster_pb2, cluster_pb2_grpc, common_pb2, strings_pb2, strings_pb2_grpc
from vecmem_client import Client, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Self

CLUSTER_NAME: Final = "vecmem"
POLL_SECONDS: Final = 0.02
LOOK_SECONDS: Final = 0.2
WAIT_SECONDS_MAX: Final = 120.0
CALL_SECONDS_MAX: Final = 60.0
LEADER_SECONDS_MAX: Final = 2.0
RETRY: Final = RetryPolicy(attempts_max=100_000, backoff_seconds_first=0.02, backoff_seconds_max=0.05)
"""Of callers that are to notice at once when there are writes again."""
MOVED_ACCEPTED: Final = ((ACCEPT_MOVED_KEY, "1"),)
"""Metadata of a call that only the node that is asked answers."""


class LocalCluster:
    """Started at the beginning of its block; at the end nothing of it is left running."""

    def __init__(
        self, directory: Path, *flags: str, nats_servers: int = 3, shards: int = 1, nodes_per_shard: int = 1
    ) -> None:
        """`flags`: of every node."""
        self.nats = NatsServers(plan_servers(directory / "nats", count=nats_servers), launcher=dying_with_parent)
        self.shards = shards
        common = ["--cluster", ",".join(self.nats.urls), "--cluster-name", CLUSTER_NAME]
        common += ["--cluster-monitoring", ",".join(self.nats.monitoring_urls)]
        common += ["--log-replicas", str(nats_servers), "--shards", str(shards), *flags]
        self._directory = directory
        self._flags = common
        self._count = shards * nodes_per_shard
        self.addresses: list[str] = []
        self.nodes: list[Server] = []

    @property
    def target(self) -> str:
        """All nodes, as a client takes them."""
        return ",".join(self.addresses)

    def client(self, retry: RetryPolicy | None = RETRY) -> Client:
        """A client that knows all nodes."""
        return Client(self.target, retry=retry, timeout_seconds=CALL_SECONDS_MAX)

    def leader(self) -> int:
        """Which node leads the first shard; waits until one does. Raises TimeoutError."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while time.monotonic() < deadline:
            for number in range(0, len(self.nodes), self.shards):
                if _leads(self.addresses[number]):
                    return number
            time.sleep(POLL_SECONDS)
        raise TimeoutError("no node leads")

    def wait_until_led(self) -> None:
        """Return when every shard has a node that leads, and all nodes know of it. Raises TimeoutError."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        waiting = list(self.addresses)
        while waiting:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{waiting} do not know of a node that leads in each of {self.shards} shards")
            waiting = [address for address in waiting if not self._knows_all(address)]
            time.sleep(POLL_SECONDS)

    def _knows_all(self, address: str) -> bool:
        with own_channel(address) as channel:
            try:
                found = topology_of(channel)
            except grpc.RpcError:
                return False
        return len(found.nodes) == len(self.nodes) and len({node.shard for node in found.nodes if node.leads}) == (
            self.shards
        )

    @contextmanager
    def connection(self) -> Iterator[NatsConnection]:
        """A connection to NATS of its own."""
        connection = NatsConnection(self.nats.urls)
        try:
            yield connection
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self.nats.start()
        try:
            # Not before the servers have theirs: what is only planned is free, and would be found twice.
            self.addresses = [f"{HOST}:{port}" for port in free_ports(self._count)]
            for number, address in enumerate(self.addresses):
                own = ["--node", f"node-{number}", "--shard", str(number % self.shards), "--listen", address]
                self.nodes.append(Server(self._directory / f"node-{number}", *self._flags, *own))
            for node in self.nodes:
                node.start()
            self.wait_until_led()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        self.nats.kill()


def _leads(address: str) -> bool:
    with own_channel(address) as channel:
        stub = strings_pb2_grpc.StringServiceStub(channel)
        request = strings_pb2.GetStringRequest(key=b"whoever leads answers")
        try:
            stub.GetString(request, timeout=LEADER_SECONDS_MAX, metadata=MOVED_ACCEPTED)
        except grpc.RpcError:
            return False
    return True


def own_channel(address: str) -> grpc.Channel:
    """A connection that no other channel of this process shares, so that none waits for another one's failures."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def topology_of(channel: grpc.Channel) -> cluster_pb2.GetTopologyResponse:
    """What a node says of its cluster. Raises grpc.RpcError."""
    stub = cluster_pb2_grpc.ClusterServiceStub(channel)
    found: cluster_pb2.GetTopologyResponse = stub.GetTopology(cluster_pb2.GetTopologyRequest(), timeout=10.0)
    return found


def any_member() -> common_pb2.ReadOptions:
    """Of a read that whoever is asked may answer."""
    return common_pb2.ReadOptions(preference=common_pb2.READ_PREFERENCE_ANY)


def stream_name(shard: int = 0) -> str:
    """Of a shard's log."""
    return f"vecmem-{CLUSTER_NAME}-{shard}"


def stream_info(connection: NatsConnection, name: str) -> dict[str, Any]:
    """What JetStream says of a stream; tried until it answers. Raises TimeoutError."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            answer = connection.call(connection.request, f"{API_PREFIX}STREAM.INFO.{name}", b"{}", seconds=10.0)
            found: dict[str, Any] = json.loads(answer.data)
            if "error" not in found:
                return found
        except NoReplyError:
            pass
        time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"JetStream says nothing of {name}")


def wait_until_whole(connection: NatsConnection, name: str, servers: Sequence[NatsServer]) -> str:
    """Return when every server serves and each replica of a stream has all of it: the name of the server that leads it."""
    wait_until_ready(servers)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        cluster = stream_info(connection, name).get("cluster", {})
        replicas = cluster.get("replicas", [])
        if cluster.get("leader") and all(each.get("current") and not each.get("offline") for each in replicas):
            return str(cluster["leader"])
        time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"the replicas of {name} are not all current")


def bare_stream(connection: NatsConnection, name: str, replicas: int) -> Stream:
    """A stream like that of a log, which nobody else uses."""
    stream = Stream(connection, name)

    async def make() -> None:
        await stream.open(replicas, create=True)

    connection.call(make, seconds=30.0)
    return stream


def client_messages(nats: NatsServers) -> int:
    """How many messages clients have sent to the servers, on connections that are still open."""
    return sum(
        int(connection["in_msgs"])
        for server in nats.servers
        for connection in server.page("/connz?limit=10000")["connections"]
    )
