"""Values that nodes agree on: compare-and-set over an SQLite file and over JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.nats import ask_jetstream, servers_in
from vecmem.cluster.coordination import Coordination, FileCoordination, change
from vecmem.cluster.jetstream_coordination import JetStreamCoordination
from vecmem.cluster.nats_server import NatsServers
from vecmem.errors import TopologyConflictError, UnavailableError


@pytest_asyncio.fixture(params=["file", "jetstream"])
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Coordination, Coordination]]:
    """Two nodes' views of the same values."""
    if request.param == "file":
        path = tmp_path / "coordination.sqlite"
        yield FileCoordination(path), FileCoordination(path)
        return
    with servers_in(tmp_path / "nats", 1) as servers:
        first, second = (JetStreamCoordination(servers.urls, "test", 1) for _ in range(2))
        yield first, second
        await first.close()
        await second.close()


async def test_only_who_has_seen_the_newest_value_changes_it(two: tuple[Coordination, Coordination]) -> None:
    first, second = two
    assert await first.get("a") is None
    await first.put("a", b"1", 0)
    with pytest.raises(TopologyConflictError):
        await second.put("a", b"2", 0)
    entry = await second.get("a")
    assert entry is not None
    assert entry.value == b"1"
    await second.put("a", b"2", entry.revision)
    with pytest.raises(TopologyConflictError):
        await first.put("a", b"3", entry.revision)
    found = await first.get("a")
    assert found is not None
    assert found.value == b"2"
    assert await first.keys("") == ["a"]


async def test_a_value_that_was_removed_and_made_anew_is_another_one(two: tuple[Coordination, Coordination]) -> None:
    first, second = two
    revision = await first.put("collection.61", b"1", 0)
    with pytest.raises(TopologyConflictError):
        await second.delete("collection.61", revision + 1)
    await second.delete("collection.61", revision)
    assert await first.get("collection.61") is None
    assert await first.keys("collection.") == []
    await second.put("collection.61", b"2", 0)
    with pytest.raises(TopologyConflictError):
        await first.put("collection.61", b"3", revision)
    assert await first.keys("collection.") == ["collection.61"]
    assert await first.keys("topology") == []


async def test_changes_of_many_at_once_are_all_made(two: tuple[Coordination, Coordination]) -> None:
    async def add(coordination: Coordination) -> None:
        for _ in range(10):
            await change(coordination, "n", lambda value: str(int(value or b"0") + 1).encode(), attempts=100)

    await asyncio.gather(*(add(coordination) for coordination in (*two, *two)))
    found = await two[0].get("n")
    assert found is not None
    assert found.value == b"40"


async def test_announcements_are_seen_by_the_others(two: tuple[Coordination, Coordination]) -> None:
    first, second = two
    assert await second.announced() == {}
    await first.announce("node-1", b"here")
    await first.announce("node-1", b"still here")
    await second.announce("node-2", b"here")
    assert await second.announced() == {"node-1": b"still here", "node-2": b"here"}


async def test_looking_leaves_nothing_behind_in_jetstream(own_nats_server: NatsServers) -> None:
    """Nodes look twice a second, for ever."""
    coordination = JetStreamCoordination(own_nats_server.urls, "test", 1)
    await coordination.put("topology", b"1", 0)
    await coordination.announce("node", b"here")
    for _ in range(3):
        assert await coordination.announced() == {"node": b"here"}
        assert await coordination.keys("") == ["topology"]
    await coordination.close()
    for bucket in ("topology", "nodes"):
        info = await asyncio.to_thread(ask_jetstream, own_nats_server, f"STREAM.INFO.KV_test-{bucket}")
        assert info["state"]["consumer_count"] == 0


async def test_without_servers_nothing_is_claimed_to_be_known() -> None:
    coordination = JetStreamCoordination(["nats://127.0.0.1:1"], "test", 1)
    with pytest.raises(UnavailableError):
        await coordination.get("a")
