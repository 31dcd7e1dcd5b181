"""What is there is found, and what is counted is counted once, through any node, while the slots of it go back and forth."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from tests.cluster.test_moving_slots import load, stub_of, topology_of, wait_for_moves
from tests.support.api import Api, connect, expect_refusal, packed, params, point
from tests.support.server import ServerProcess
from vecmem.slots import SLOTS, slot_of
from vecmem.v1 import (
    cluster_pb2,
    collections_pb2,
    common_pb2,
    filter_pb2,
    keys_pb2,
    pipeline_pb2,
    pipeline_pb2_grpc,
    points_pb2,
    strings_pb2,
    strings_pb2_grpc,
)

SECONDS_MAX = 60.0
MOVED_SLOTS = 2_000
MOVES = 4
ROWS = 40


@pytest.fixture
def two_ways(tmp_path: Path) -> Iterator[list[Api]]:
    """The nodes of two shards."""
    with (
        ServerProcess(tmp_path / "data", arguments=["--shards", "2"]) as process,
        contextlib.ExitStack() as stack,
        connect(process.address) as first,
    ):
        nodes: Sequence[cluster_pb2.NodeInfo] = ()
        while len(nodes) < 2:  # the second one is heard of soon
            nodes = stub_of(first).GetTopology(cluster_pb2.GetTopologyRequest(), timeout=SECONDS_MAX).nodes
        yield [stack.enter_context(connect(node.address)) for node in nodes]


def move(api: Api, source: int, target: int, last: int) -> None:
    """At a pace of its own, so that it does not give way to the readers."""
    request = cluster_pb2.MoveSlotsRequest(
        source=source,
        target=target,
        slots=[cluster_pb2.SlotRange(first=0, last=last)],
        bytes_per_second_max=10**9,
    )
    stub_of(api).MoveSlots(request, timeout=SECONDS_MAX)
    wait_for_moves(api)


def pipelines(api: Api) -> pipeline_pb2_grpc.PipelineServiceStub:
    return pipeline_pb2_grpc.PipelineServiceStub(api.channel)


def pipelined(*operations: pipeline_pb2.Operation, request_id: str = "") -> pipeline_pb2.PipelineRequest:
    request = pipeline_pb2.PipelineRequest(operations=operations)
    request.write.request_id = request_id
    return request


def append(key: bytes, value: bytes) -> pipeline_pb2.Operation:
    return pipeline_pb2.Operation(append_string=strings_pb2.AppendStringRequest(key=key, value=value))


def get(key: bytes) -> pipeline_pb2.Operation:
    return pipeline_pb2.Operation(get_string=strings_pb2.GetStringRequest(key=key))


def equal_to(path: str, text: str) -> filter_pb2.Filter:
    return filter_pb2.Filter(field=filter_pb2.FieldCondition(path=path, match=filter_pb2.MatchValue(keyword=text)))


def test_what_moves_is_found_and_counted_through_every_node(two_ways: list[Api]) -> None:
    load(two_ways[0], "c")
    keys = [key for key in (b"k%d" % n for n in range(2_000)) if slot_of(key) < MOVED_SLOTS]
    ids = [name for name in (f"p{n}" for n in range(600)) if slot_of(name.encode()) < MOVED_SLOTS]
    assert len(keys) > 100
    assert len(ids) > 20
    pipelines(two_ways[0]).Pipeline(pipelined(*(append(key, b"here") for key in keys)), timeout=SECONDS_MAX)
    done = threading.Event()
    failures: list[BaseException] = []

    def read(api: Api) -> None:
        strings = strings_pb2_grpc.StringServiceStub(api.channel)
        for place in range(1_000_000):
            if done.is_set():
                return
            key, some = keys[place % len(keys)], keys[place % 50 :: 50]
            assert strings.GetString(strings_pb2.GetStringRequest(key=key), timeout=SECONDS_MAX).value == b"here"
            reply = pipelines(api).Pipeline(pipelined(*map(get, some)), timeout=SECONDS_MAX)
            assert [result.get_string.value for result in reply.results] == [b"here"] * len(some)
            assert [one.id for one in api.get("c", ids[place % len(ids)])] == [ids[place % len(ids)]]
            assert [one.id for one in api.get("c", *ids)] == ids

    def count(api: Api) -> None:
        vectors = [packed([0.0, float(n), 0.0, 0.0]) for n in range(ROWS)]
        while not done.is_set():
            tag = uuid.uuid4().hex
            api.upsert(
                "c",
                [point(f"{tag}{n}", row, payload_json=b'{"tag":"%s"}' % tag.encode()) for n, row in enumerate(vectors)],
            )
            update = points_pb2.UpdatePayloadRequest(
                collection="c", filter=equal_to("tag", tag), merge_json=b'{"seen":true}'
            )
            assert api.call("UpdatePayload", update).updated_count == ROWS
            assert api.delete("c", filter=equal_to("tag", tag)).deleted_count == ROWS

    def watched(work: Callable[[Api], None], api: Api) -> None:
        try:
            work(api)
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=watched, args=(read, api)) for api in two_ways]
    threads.append(threading.Thread(target=watched, args=(count, two_ways[1])))
    for thread in threads:
        thread.start()
    for number in range(MOVES):
        move(two_ways[0], number % 2, 1 - number % 2, MOVED_SLOTS - 1)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_a_batch_whose_slots_part_goes_on_in_parts(two_ways: list[Api]) -> None:
    """Also at a node that does not know yet that they have."""
    name = "c"
    load(two_ways[0], name)
    ids = [name for name in (f"p{n}" for n in range(600)) if slot_of(name.encode()) < MOVED_SLOTS]
    move(two_ways[0], 0, 1, MOVED_SLOTS // 2)
    for api in reversed(two_ways):
        points = [point(one, packed([1.0, 2.0, 3.0, 4.0])) for one in ids]
        assert api.upsert(name, points).updated_count == len(ids)
        assert len(api.get(name, *ids)) == len(ids)
        assert api.delete(name, *ids).deleted_count == len(ids)
        assert api.upsert(name, points).inserted_count == len(ids)


def test_pipelines_are_told_apart_by_all_of_their_request_ids(two_ways: list[Api]) -> None:
    operations = [append(b"k%d" % n, b"x") for n in range(4)]
    for end in "ab":
        for api in two_ways:
            reply = pipelines(api).Pipeline(pipelined(*operations, request_id="r" * 100 + end), timeout=SECONDS_MAX)
            assert not any(result.HasField("error") for result in reply.results)
    reply = pipelines(two_ways[0]).Pipeline(pipelined(*(get(b"k%d" % n) for n in range(4))), timeout=SECONDS_MAX)
    assert [result.get_string.value for result in reply.results] == [b"xx"] * 4
    too_long = pipelined(*operations, request_id="r" * 129)
    refused = expect_refusal(lambda: pipelines(two_ways[0]).Pipeline(too_long, timeout=SECONDS_MAX))
    assert (refused.reason, refused.field) == ("LIMIT_EXCEEDED", "write.request_id")


def test_a_pipeline_that_is_repeated_when_its_shard_is_not_the_only_one_any_more(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", arguments=["--shards", "2"]) as process, connect(process.address) as api:
        stub_of(api).Rebalance(cluster_pb2.RebalanceRequest(leaving_shards=[1]), timeout=SECONDS_MAX)
        wait_for_moves(api)
        request = pipelined(*(append(b"k%d" % n, b"x") for n in range(20)), request_id="once")
        pipelines(api).Pipeline(request, timeout=SECONDS_MAX)
        move(api, 0, 1, SLOTS // 2)
        reply = pipelines(api).Pipeline(request, timeout=SECONDS_MAX)
        assert [result.append_string.size_bytes for result in reply.results] == [1] * 20
        reply = pipelines(api).Pipeline(pipelined(*(get(b"k%d" % n) for n in range(20))), timeout=SECONDS_MAX)
        assert [result.get_string.value for result in reply.results] == [b"x"] * 20


def test_a_walk_that_fails_is_told_in_its_place(two_ways: list[Api]) -> None:
    scan = pipeline_pb2.Operation(scan_keys=keys_pb2.ScanKeysRequest(page_token="nonsense"))
    reply = pipelines(two_ways[0]).Pipeline(pipelined(scan), timeout=SECONDS_MAX)
    assert [result.error.reason for result in reply.results] == ["INVALID_PAGE_TOKEN"]


def test_collections_change_while_a_shard_has_no_slots_and_it_catches_up(two_ways: list[Api]) -> None:
    api, other = two_ways
    for name in ("kept", "dropped"):
        api.create(name, params(4, common_pb2.METRIC_DOT))
    nobody = stub_of(api).AddShard(cluster_pb2.AddShardRequest(), timeout=SECONDS_MAX).shard
    api.create("with-a-shard-that-has-no-nodes", params(4, common_pb2.METRIC_DOT))
    stub_of(api).RemoveShard(cluster_pb2.RemoveShardRequest(shard=nobody), timeout=SECONDS_MAX)
    stub_of(api).Rebalance(cluster_pb2.RebalanceRequest(leaving_shards=[1]), timeout=SECONDS_MAX)
    wait_for_moves(api)
    api.call(
        "UpdateCollection",
        collections_pb2.UpdateCollectionRequest(name="kept", description="changed meanwhile"),
    )
    api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name="dropped"))
    api.create("made", params(2, common_pb2.METRIC_COSINE))
    move(api, 0, 1, SLOTS // 2)
    for name in ("kept", "made"):
        points = [point(f"p{n}", packed([1.0, 0.5][:2] if name == "made" else [1.0, 0.5, 0.0, 0.0])) for n in range(50)]
        assert other.upsert(name, points).inserted_count == len(points)
        assert api.count(name) == len(points)
    listed = other.call("ListCollections", collections_pb2.ListCollectionsRequest()).collections
    assert {one.name: one.config.description for one in listed} == {
        "kept": "changed meanwhile",
        "made": "",
        "with-a-shard-that-has-no-nodes": "",
    }
    with pytest.raises(grpc.RpcError):
        other.count("dropped")
    # The shard that came back answers with what it knows itself.
    stub_of(api).Rebalance(cluster_pb2.RebalanceRequest(leaving_shards=[0]), timeout=SECONDS_MAX)
    wait_for_moves(api)
    assert [len(shard.slots) for shard in topology_of(api).shards] == [0, 1]
    listed = other.call("ListCollections", collections_pb2.ListCollectionsRequest()).collections
    assert {one.name: one.config.description for one in listed}["kept"] == "changed meanwhile"
    assert "dropped" not in {one.name for one in listed}
