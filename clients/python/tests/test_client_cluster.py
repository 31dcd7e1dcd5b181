"""Both clients over real shards: calls go where they belong, reads go to replicas and never back, and the layout is told and changed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter

import pytest

from tests.cluster.support import Cluster
from tests.support.server import ServerProcess
from vecmem_client import (
    Client,
    ClusterTopology,
    CollectionNotFoundError,
    InvalidTopologyError,
    NotInClusterError,
    Point,
    RetryPolicy,
    SlotRange,
    TopologyConflictError,
    VectorConfig,
    _methods,
    keys,
    strings,
)
from vecmem_client._slots import SLOTS, slot_of

pytestmark = pytest.mark.one_shard(reason="clusters of these tests' own are the same in each run")

FIRST, SECOND = "bar", "foo"
"""Keys, and ids of points, of the first and of the second shard of two."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of one node each."""
    with ServerProcess(tmp_path_factory.mktemp("shards") / "data", arguments=["--shards", "2"]) as process:
        yield process


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    """A shard with three nodes."""
    with Cluster(tmp_path_factory.mktemp("replicated")) as cluster:
        cluster.leader()
        with Client(cluster.addresses) as client:
            while not heard_of(client.topology(), 3):
                time.sleep(0.05)
        yield cluster


def pause(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def heard_of(topology: ClusterTopology, node_count: int) -> bool:
    """Whether it is known who leads each shard, and of so many nodes."""
    nodes = [node for shard in topology.shards for node in shard.nodes]
    return len(nodes) == node_count and all(shard.primary is not None for shard in topology.shards)


def sent(client, *, with_looks: bool = False) -> Counter[tuple[str, str]]:
    """Counts what is sent from now on, by address and method; not when the client looks where the shards are, unless that is wanted."""
    transport = getattr(client, "sync_client", client)._transport
    counts: Counter[tuple[str, str]] = Counter()
    unary = transport.unary

    def counting(method, request, timeout_seconds, target, metadata):
        if with_looks or method is not _methods.GET_TOPOLOGY:
            counts[target, method.path.rpartition("/")[2]] += 1
        return unary(method, request, timeout_seconds, target, metadata)

    transport.unary = counting
    return counts


async def settled(client) -> None:
    """Have a client learn of the shards."""
    while len(client.last_positions) < 2:
        for key in (FIRST, SECOND):
            await client.run(strings.set(key, "v"))
    await client.run(strings.get(FIRST))


async def test_a_server_that_is_alone_is_asked_nothing_further(make_client, server, collection_name):
    client = make_client(server.address)
    counts = sent(client, with_looks=True)
    await client.run(strings.set(collection_name, "v"))
    assert await client.run(strings.get(collection_name)) == b"v"
    with pytest.raises(CollectionNotFoundError):
        await client.count(collection_name)
    assert counts == {(server.address, "Pipeline"): 2, (server.address, "Count"): 1}
    assert client.last_positions == (client.last_position,)


async def test_calls_go_to_the_shard_that_they_are_about(make_client, shards, collection_name):
    first, second = shards.ready["addresses"]
    client = make_client(first)
    await client.create_collection(collection_name, VectorConfig(2))
    await settled(client)
    counts = sent(client)
    await client.run(strings.set(FIRST, "1"))
    await client.run(strings.set(SECOND, "2"))
    assert await client.run(strings.get(SECOND)) == b"2"
    assert await client.pipeline([strings.get(SECOND), keys.exist([SECOND])]) == [b"2", [True]]
    assert counts == {(first, "Pipeline"): 1, (second, "Pipeline"): 3}
    counts.clear()
    await client.upsert(collection_name, [Point(SECOND, [1.0, 0.0])])
    await client.upsert(collection_name, [Point(FIRST, [0.0, 1.0])])
    assert [point.id for point in await client.get(collection_name, [SECOND])] == [SECOND]
    await client.commit(then=[strings.set(SECOND, "3")])
    await client.update_payload(collection_name, ids=[SECOND], merge={"n": 1})
    assert await client.publish(SECOND, "m") == 0
    expected = {(second, name): 1 for name in ("Upsert", "Get", "Commit", "UpdatePayload", "Publish")}
    assert counts == expected | {(first, "Upsert"): 1}
    assert await client.count(collection_name) == 2
    assert {hit.id for hit in await client.query(collection_name, [1.0, 0.0])} == {FIRST, SECOND}
    await client.delete(collection_name, ids=[SECOND])
    assert counts[second, "Delete"] == 1
    await client.delete_collection(collection_name)


async def test_what_is_made_together_is_divided_by_shards(make_client, shards):
    client = make_client(shards.ready["addresses"][0])
    await settled(client)
    counts = sent(client)
    names = [f"{{{key}}}{number}" for number in range(40) for key in (FIRST, SECOND)]
    await asyncio.gather(*(client.run(strings.set(name, name)) for name in names))
    assert await asyncio.gather(*(client.run(strings.get(name)) for name in names)) == [name.encode() for name in names]
    assert {method for _, method in counts} == {"Pipeline"}
    assert {address for address, _ in counts} == set(shards.ready["addresses"])


async def test_positions_of_all_shards_are_kept_and_demanded(make_client, shards, collection_name):
    client = make_client(shards.ready["addresses"][0])
    await client.create_collection(collection_name, VectorConfig(2))
    await client.upsert(collection_name, [Point(key, [1.0, 0.0]) for key in (FIRST, SECOND)])
    assert [position.shard for position in client.last_positions] == [0, 1]
    reader = make_client(shards.ready["addresses"][1])
    demand = client.last_positions
    assert await reader.count(collection_name, min_position=demand) == 2
    assert len(await reader.get(collection_name, [FIRST, SECOND], min_position=demand)) == 2
    assert (
        len(await asyncio.gather(*(reader.query(collection_name, [1.0, 0.0], min_position=demand) for _ in range(9))))
        == 9
    )
    await client.delete_collection(collection_name)


async def test_a_shard_that_does_not_answer_may_be_left_out(make_client, tmp_path):
    with ServerProcess(tmp_path / "data", arguments=["--shards", "2"]) as process:
        client = make_client(process.ready["addresses"][0])
        await client.create_collection("c", VectorConfig(2))
        await client.upsert("c", [Point(key, [1.0, 0.0]) for key in (FIRST, SECOND)])
        missing = []
        assert await client.count("c", allow_partial=missing) == 2
        assert missing == []
        pause(process.ready["pids"][1])
        try:
            assert await client.count("c", allow_partial=missing, timeout_seconds=2.0) == 1
            assert [failure.shard for failure in missing] == [1]
            assert missing[0].error.reason in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "MOVED"}
            hits = await client.query("c", [1.0, 0.0], allow_partial=missing, timeout_seconds=2.0)
            assert ([hit.id for hit in hits], len(missing)) == ([FIRST], 1)
            missing.clear()
            found = [point.id async for point in client.scroll("c", allow_partial=missing, timeout_seconds=2.0)]
            assert (found, [failure.shard for failure in missing]) == ([FIRST], [1])
        finally:
            resume(process.ready["pids"][1])
        assert await client.count("c", allow_partial=missing) == 2
        assert missing == []


@pytest.mark.parametrize("policy", ["replica", "any", "nearest"])
async def test_reads_go_to_other_nodes_and_never_back(make_client, replicated, policy):
    client = make_client(replicated.addresses, read_policy=policy)
    leader = replicated.leader().address
    counts = sent(client)
    for number in range(40):
        await client.run(strings.set("k", str(number)))
        assert await client.run(strings.get("k")) == str(number).encode()
        assert await client.pipeline([strings.get("k")]) == [str(number).encode()]
    reads = Counter({address: count for (address, method), count in counts.items() if method == "Pipeline"})
    assert len(reads) == 3, "of each of them something is read"
    if policy == "replica":
        assert reads[leader] == 40, "the writes"
    values = await asyncio.gather(*(client.run(strings.get("k")) for _ in range(50)))
    assert set(values) == {b"39"}


async def test_a_client_of_one_address_outlasts_the_node(make_client, tmp_path):
    with Cluster(tmp_path, nodes=3) as cluster:
        client = make_client(
            cluster.leader().address, retry=RetryPolicy(attempts_max=1_000, backoff_seconds_max=0.1), read_policy="any"
        )
        await client.run(strings.set("k", "1"))
        await client.run(strings.get("k"))
        cluster.leader().kill()
        await client.run(strings.set("k", "2"))
        assert await client.run(strings.get("k")) == b"2"


async def known_layout(client):
    while not heard_of(topology := await client.topology(), 2):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return topology


async def test_the_layout_is_told_and_changed(make_client, tmp_path):
    with ServerProcess(tmp_path / "data", arguments=["--shards", "2"]) as process:
        client = make_client(process.address)
        topology = await known_layout(client)
        assert [shard.slot_count for shard in topology.shards] == [SLOTS // 2, SLOTS // 2]
        assert [shard.primary.address for shard in topology.shards] == process.ready["addresses"]
        assert (topology.migrations, topology.shards[0].replicas) == ([], [])
        slot = slot_of(SECOND.encode())
        with pytest.raises(TopologyConflictError):
            await client.move_slots(1, 0, [slot], expected_epoch=topology.epoch + 7)
        with pytest.raises(InvalidTopologyError):
            await client.move_slots(0, 1, [slot])
        number = await client.add_shard(expected_epoch=topology.epoch)
        changed = await client.topology()
        assert [shard.number for shard in changed.shards] == [0, 1, number]
        assert changed.epoch > topology.epoch
        with pytest.raises(InvalidTopologyError):
            await client.remove_shard(1)
        await client.remove_shard(number)
        assert await client.cancel_migrations() == 0


async def test_slots_are_moved(make_client, tmp_path):
    with ServerProcess(tmp_path / "data", arguments=["--shards", "2"]) as process:
        client = make_client(process.address)
        topology = await known_layout(client)
        await settled(client)
        plan = await client.rebalance(dry_run=True)
        assert set(plan.bytes_before) == {0, 1}
        assert (await client.topology()).epoch == plan.epoch == topology.epoch
        slot = slot_of(SECOND.encode())
        await client.move_slots(1, 0, [SlotRange(slot, slot)], expected_epoch=topology.epoch)
        while (await client.topology()).migrations:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        moved = await client.topology()
        assert [shard.slot_count for shard in moved.shards] == [SLOTS // 2 + 1, SLOTS // 2 - 1]
        counts = sent(client)
        while counts[process.ready["addresses"][0], "Pipeline"] == 0:  # until it has learned where that is
            assert await client.run(strings.get(SECOND)) == b"v"


async def test_a_server_that_is_alone_has_no_layout_to_change(make_client, own_server):
    client = make_client(own_server.address)
    topology = await client.topology()
    assert (topology.cluster, len(topology.shards), topology.shards[0].slot_count) == ("", 1, SLOTS)
    for call in (client.add_shard(), client.remove_shard(0), client.move_slots(0, 1, [1]), client.rebalance()):
        with pytest.raises(NotInClusterError):
            await call
