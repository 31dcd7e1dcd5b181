"""A cluster of one shard: real NATS servers, and `vecmem serve` in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import grpc

from tests.support.nats import servers_in
from tests.support.server import ServerProcess
from vecmem.cluster import peers
from vecmem.v1 import common_pb2, strings_pb2, strings_pb2_grpc

LEASE_SECONDS = 1.0
SECONDS_MAX = 60.0
"""Only a failing test waits so long."""


class Cluster:
    """Nodes are made and started at once; whatever still runs at the end is ended."""

    def __init__(
        self, directory: Path, *, nodes: int = 3, nats_servers: int = 1, arguments: Sequence[str] = ()
    ) -> None:
        """`arguments`: further ones of every node."""
        self._arguments = arguments
        self._made = 0
        self.nats = servers_in(directory / "nats", nats_servers)
        self.nodes: list[ServerProcess] = []
        self._directory = directory
        self._count = nodes

    def add_node(self, *arguments: str) -> ServerProcess:
        """Start one more."""
        return self.new_node(*arguments).start()

    def new_node(self, *arguments: str, environment: Mapping[str, str] | None = None) -> ServerProcess:
        """One more, which is not started."""
        self._made += 1
        number = self._made
        settings = ["--cluster", ",".join(self.nats.urls), "--cluster-monitoring", ",".join(self.nats.monitoring_urls)]
        settings += ["--log-replicas", str(len(self.nats.servers)), "--node", f"node-{number}"]
        settings += ["--lease-seconds", str(LEASE_SECONDS)]
        node = ServerProcess(
            self._directory / f"node-{number}",
            arguments=[*settings, *self._arguments, *arguments],
            environment=environment,
        )
        self.nodes.append(node)
        return node

    @property
    def addresses(self) -> str:
        """Of all nodes, as a client takes them."""
        return ",".join(node.address for node in self.nodes)

    def leader(self) -> ServerProcess:
        """The node that leads; waits until there is one."""
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            for node in self.nodes:
                if node.running and self._leads(node):
                    return node
            time.sleep(0.02)
        raise AssertionError("no node leads")

    @staticmethod
    def _leads(node: ServerProcess) -> bool:
        with grpc.insecure_channel(node.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                get(channel, b"whoever leads answers", timeout_seconds=2.0)
            except grpc.RpcError:
                return False
        return True

    def __enter__(self) -> Self:
        self.nats.__enter__()
        try:
            for _ in range(self._count):
                self.add_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if node.running:
                node.kill()
            node.__exit__(None, None, None)
        self.nats.__exit__(None, None, None)


def get(
    channel: grpc.Channel,
    key: bytes,
    *,
    anywhere: bool = False,
    sequence: int = 0,
    timeout_seconds: float = SECONDS_MAX,
) -> tuple[bytes, int]:
    """A value, and the position that it reflects; `anywhere`: whoever is asked may answer, once it has reached a position."""
    read = common_pb2.ReadOptions()
    if anywhere:
        read.preference = common_pb2.READ_PREFERENCE_ANY
        read.min_position.sequence = sequence
    request = strings_pb2.GetStringRequest(key=key, read=read)
    stub = strings_pb2_grpc.StringServiceStub(channel)
    # Only the node that is asked answers, or says who does.
    reply = stub.GetString(request, timeout=timeout_seconds, metadata=((peers.ACCEPT_MOVED_KEY, "1"),))
    return reply.value, reply.header.position.sequence
