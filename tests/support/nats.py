"""Real NATS servers on loopback, ended by their own process ids, and streams that no other test uses."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import nats
import pytest

from bench.server import dying_with_parent
from vecmem.cluster.nats_server import NatsServers, plan_servers
from vecmem.log.jetstream import JetStreamSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def servers_in(directory: Path, count: int, **plan: Any) -> NatsServers:
    """Servers that end with the test run even if that is killed; not started yet."""
    return NatsServers(plan_servers(directory, count=count, **plan), launcher=dying_with_parent)


def settings_for(nats_servers: NatsServers, /, **settings: Any) -> JetStreamSettings:
    """How to reach a log of its own name on servers."""
    found = {
        "servers": nats_servers.urls,
        "stream": f"test-{os.urandom(8).hex()}",
        "replicas": len(nats_servers.servers),
        "monitoring_urls": nats_servers.monitoring_urls,
    }
    return JetStreamSettings(**(found | settings))


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    """A server alone, for all tests that leave it running."""
    with servers_in(tmp_path_factory.mktemp("nats"), 1) as servers:
        yield servers


@pytest.fixture
def own_nats_server(tmp_path: Path) -> Iterator[NatsServers]:
    """A server alone, for one test, to be killed and restarted at will."""
    with servers_in(tmp_path / "nats", 1) as servers:
        yield servers


@pytest.fixture(scope="module")
def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    """Three servers for the tests of a module; each test leaves all of them running."""
    with servers_in(tmp_path_factory.mktemp("nats"), 3) as servers:
        yield servers


def ask_jetstream(servers: NatsServers, name: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to JetStream's API by a client of its own. An answer that is an error fails the test."""
    answer = send(servers, "$JS.API." + name, json.dumps(request or {}).encode())
    assert "error" not in answer, answer
    return answer


def send(servers: NatsServers, subject: str, data: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Send one message by a client of its own, and return the answer."""

    async def request() -> dict[str, Any]:
        client = await nats.connect(list(servers.urls))
        try:
            return dict(json.loads((await client.request(subject, data, timeout=10, headers=headers)).data))
        finally:
            await client.close()

    return asyncio.run(request())


def message_count(servers: NatsServers, stream: str) -> int:
    """How many messages a stream holds."""
    return int(ask_jetstream(servers, f"STREAM.INFO.{stream}")["state"]["messages"])
