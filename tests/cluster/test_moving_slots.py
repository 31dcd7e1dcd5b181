"""Slots move between real processes while clients write: nothing is lost, nobody is refused."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support import Cluster
from tests.support.api import Api, connect, expect_refusal, packed, params, point
from tests.support.server import ServerProcess
from vecmem.slots import SLOTS, slot_of
from vecmem.v1 import admin_pb2, cluster_pb2, cluster_pb2_grpc, common_pb2, strings_pb2, strings_pb2_grpc
from vecmem_client import Client, RetryPolicy, strings

SECONDS_MAX = 60.0
POINTS = 600
HALF = SLOTS // 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """Two shards."""
    with ServerProcess(tmp_path / "data", arguments=["--shards", "2"]) as process:
        yield process


def stub_of(api: Api) -> cluster_pb2_grpc.ClusterServiceStub:
    return cluster_pb2_grpc.ClusterServiceStub(api.channel)


def topology_of(api: Api) -> cluster_pb2.Topology:
    return stub_of(api).GetTopology(cluster_pb2.GetTopologyRequest(), timeout=SECONDS_MAX).topology


def wait_for_moves(api: Api) -> cluster_pb2.Topology:
    deadline = time.monotonic() + SECONDS_MAX
    while (topology := topology_of(api)).migrations:
        assert time.monotonic() < deadline, topology
        time.sleep(0.1)
    return topology


def load(api: Api, name: str) -> None:
    api.create(name, params(4, common_pb2.METRIC_DOT))
    api.upsert(
        name, [point(f"p{n}", packed([float(n), 1.0, 0.0, 0.0]), payload_json=b'{"n":%d}' % n) for n in range(POINTS)]
    )


def ids_found(api: Api, name: str) -> list[str]:
    return [hit.point.id for hit in api.query(name, [1.0, 0.0, 0.0, 0.0], limit=POINTS)]


def test_slots_move_under_load_and_nothing_is_lost(server: ServerProcess) -> None:
    with connect(server.address) as api:
        load(api, "c")
        everything = ids_found(api, "c")
        assert len(everything) == POINTS
        stub = strings_pb2_grpc.StringServiceStub(api.channel)
        stop = threading.Event()
        written: dict[bytes, bytes] = {}
        failures: list[BaseException] = []

        def write() -> None:
            number = 0
            try:
                while not stop.is_set():
                    key, value = b"k%d" % (number % 200), b"v%d" % number
                    stub.SetString(strings_pb2.SetStringRequest(key=key, value=value), timeout=SECONDS_MAX)
                    written[key] = value
                    assert ids_found(api, "c") == everything
                    assert api.count("c") == POINTS
                    number += 1
            except BaseException as error:  # noqa: BLE001 - told below
                failures.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        moved = [cluster_pb2.SlotRange(first=0, last=999)]
        request = cluster_pb2.MoveSlotsRequest(source=0, target=1, slots=moved)
        stub_of(api).MoveSlots(request, timeout=SECONDS_MAX)
        topology = wait_for_moves(api)
        assert [(slots.first, slots.last) for slots in topology.shards[1].slots] == [(0, 999), (HALF, SLOTS - 1)]
        stop.set()
        writer.join()
        assert not failures, failures
        assert written
        for key, value in written.items():
            assert stub.GetString(strings_pb2.GetStringRequest(key=key), timeout=SECONDS_MAX).value == value
        assert ids_found(api, "c") == everything
        assert {one.id for one in api.get("c", *everything)} == set(everything)
        api.upsert("c", [point("p1", packed([5_000.0, 0.0, 0.0, 0.0]))])
        assert ids_found(api, "c")[0] == "p1"
    # What moved is there again after a crash of everything.
    for pid in server.ready["pids"]:
        os.kill(pid, signal.SIGKILL)
    server.wait(SECONDS_MAX)
    with ServerProcess(server.data_dir, arguments=["--shards", "2"]) as again, connect(again.address) as api:
        assert len(ids_found(api, "c")) == POINTS
        stub = strings_pb2_grpc.StringServiceStub(api.channel)
        for key, value in written.items():
            assert stub.GetString(strings_pb2.GetStringRequest(key=key), timeout=SECONDS_MAX).value == value


def test_a_client_goes_at_once_where_a_slot_has_moved(server: ServerProcess) -> None:
    """It is told who has it; there is nothing to wait for."""
    never = RetryPolicy(backoff_seconds_first=1_000, backoff_seconds_max=1_000)
    moved = range(HALF - 1_000, HALF)
    keys = [f"k{number}" for number in range(2_000) if slot_of(b"k%d" % number) in moved]
    addresses = ",".join(server.ready["addresses"])
    with Client(addresses, retry=never, timeout_seconds=SECONDS_MAX) as client, connect(server.address) as api:
        routing = client._routing
        while routing.known is None or routing._wanted:  # it asks for the slot map until that is complete
            for key in keys:
                client.run(strings.set(key, key))
        slots = [cluster_pb2.SlotRange(first=moved[0], last=moved[-1])]
        request = cluster_pb2.MoveSlotsRequest(source=0, target=1, slots=slots)
        stub_of(api).MoveSlots(request, timeout=SECONDS_MAX)
        wait_for_moves(api)
        assert routing.known.shard_of[moved[0]] == 0, "it has not looked"
        assert [client.run(strings.get(key)) for key in keys] == [key.encode() for key in keys]


def test_bad_moves_change_nothing(server: ServerProcess) -> None:
    with connect(server.address) as api:
        before = topology_of(api)
        stub = stub_of(api)

        def move(**fields: object) -> cluster_pb2.MoveSlotsRequest:
            return cluster_pb2.MoveSlotsRequest(**fields)

        one = [cluster_pb2.SlotRange(first=5, last=5)]
        for request, reason in (
            (move(source=1, target=0, slots=one), "INVALID_TOPOLOGY"),
            (move(source=0, target=0, slots=one), "INVALID_TOPOLOGY"),
            (move(source=0, target=7, slots=one), "INVALID_TOPOLOGY"),
            (move(source=0, target=1), "INVALID_TOPOLOGY"),
            (move(source=0, target=1, slots=[cluster_pb2.SlotRange(first=9, last=SLOTS)]), "INVALID_TOPOLOGY"),
            (move(source=0, target=1, slots=[*one, *one]), "INVALID_TOPOLOGY"),
            (move(source=0, target=1, slots=one, expected_epoch=before.epoch + 1), "TOPOLOGY_CONFLICT"),
        ):
            assert expect_refusal(lambda request=request: stub.MoveSlots(request, timeout=SECONDS_MAX)).reason == reason
        refused = expect_refusal(lambda: stub.RemoveShard(cluster_pb2.RemoveShardRequest(shard=1), timeout=SECONDS_MAX))
        assert refused.reason == "INVALID_TOPOLOGY"
        assert topology_of(api) == before


def test_a_plan_is_made_before_anything_moves(server: ServerProcess) -> None:
    with connect(server.address) as api:
        load(api, "c")
        stub = stub_of(api)
        before = topology_of(api)
        plan = stub.Rebalance(cluster_pb2.RebalanceRequest(dry_run=True, leaving_shards=[1]), timeout=SECONDS_MAX)
        assert [(move.source, move.target, move.total_slot_count) for move in plan.migrations] == [(1, 0, SLOTS - HALF)]
        assert plan.bytes_before[1] > 0
        assert topology_of(api) == before
        stub.Rebalance(cluster_pb2.RebalanceRequest(leaving_shards=[1]), timeout=SECONDS_MAX)
        topology = wait_for_moves(api)
        assert [len(shard.slots) for shard in topology.shards] == [1, 0]
        assert len(ids_found(api, "c")) == POINTS
        api.create("later", params(4, common_pb2.METRIC_DOT))
        stub.RemoveShard(cluster_pb2.RemoveShardRequest(shard=1), timeout=SECONDS_MAX)
        assert [shard.number for shard in topology_of(api).shards] == [0]


def test_a_node_tells_the_topology_also_when_it_is_alone(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as alone, connect(alone.address) as api:
        topology = topology_of(api)
        assert (topology.cluster, len(topology.shards)) == ("", 1)
        refused = expect_refusal(lambda: stub_of(api).AddShard(cluster_pb2.AddShardRequest(), timeout=SECONDS_MAX))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "NOT_IN_CLUSTER")


def test_of_two_nodes_of_one_name_the_later_one_ends(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=1) as cluster:
        cluster.leader()
        other = cluster.add_node("--node", "node-1")
        assert other.wait(SECONDS_MAX) == 2
        assert "has the name 'node-1' as well" in other.last_words()
        cluster.leader()


def test_a_cluster_of_another_name_or_without_the_shard_is_refused(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=1) as cluster:
        cluster.leader()
        with pytest.raises(RuntimeError, match="has no shard 3, only 0"):
            cluster.add_node("--shard", "3")


def test_a_move_over_replicated_logs_goes_on_when_its_primaries_die(tmp_path: Path) -> None:
    """Two shards of two nodes each: first the source's primary dies in the middle, then the target's."""
    with Cluster(tmp_path, nodes=0) as cluster:
        nodes = {cluster.add_node("--shard", str(n % 2), "--shards", "2"): n % 2 for n in range(4)}

        def leader_of(shard: int) -> ServerProcess:
            deadline = time.monotonic() + SECONDS_MAX
            while time.monotonic() < deadline:
                alive = [node for node, own in nodes.items() if own == shard and node.running]
                for node in alive:
                    with connect(node.address) as api:
                        if api.info().member.leads:
                            return node
                time.sleep(0.05)
            raise AssertionError(f"nobody leads shard {shard}")

        leader_of(0)
        leader_of(1)
        asked = next(iter(nodes))
        with connect(asked.address) as api:
            load(api, "c")
            everything = ids_found(api, "c")
            assert len(everything) == POINTS
            stub_of(api).MoveSlots(
                cluster_pb2.MoveSlotsRequest(
                    source=0,
                    target=1,
                    slots=[cluster_pb2.SlotRange(first=0, last=HALF - 1)],
                    bytes_per_second_max=20_000,
                ),
                timeout=SECONDS_MAX,
            )
            for shard in (0, 1):
                time.sleep(1.0)
                victim = leader_of(shard)
                if victim is asked:
                    with connect(victim.address) as there:
                        there.admin.HandOver(admin_pb2.HandOverRequest(), timeout=SECONDS_MAX)
                    victim = leader_of(shard)
                if victim is not asked:
                    victim.kill()
                leader_of(shard)
            topology = wait_for_moves(api)
            assert [len(shard.slots) for shard in topology.shards] == [0, 1]
            assert ids_found(api, "c") == everything
            assert {one.id for one in api.get("c", *everything)} == set(everything)
