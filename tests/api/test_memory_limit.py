"""The memory limit over a real server: what is refused, what is not, and what is evicted."""

from __future__ import annotations

import grpc
import pytest

from tests.support.api import DOT, connect, expect_refusal, params, point
from tests.support.keyspace import operation
from tests.support.server import ServerProcess
from vecmem.v1 import (
    collections_pb2,
    filter_pb2,
    keys_pb2,
    keys_pb2_grpc,
    lists_pb2,
    lists_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    points_pb2,
    strings_pb2,
    strings_pb2_grpc,
    transactions_pb2,
    transactions_pb2_grpc,
)

SECONDS_MAX = 60.0
SETUP = [
    operation("push_list_items", key=b"list", items=[b"a", b"b", b"c"], end=1),
    operation("set_hash_fields", key=b"hash", fields=[{"field": b"f", "value": b"v"}]),
    operation("add_set_members", key=b"set", members=[b"a", b"b"]),
    operation("add_sorted_set_members", key=b"scores", members=[{"score": 1, "member": b"a"}]),
    operation("append_stream_entry", key=b"stream", fields=[{"field": b"f", "value": b"v"}]),
    operation("set_json", key=b"json", path="$", value_json=b'{"a":1,"b":[1]}'),
    operation("enqueue_messages", key=b"queue", messages=[{"body": b"m"}]),
    operation("acquire_lock", key=b"lock", owner=b"me", lease_ms=10**6),
    operation("begin_idempotent", key=b"once", fingerprint=b"f", lease_ms=10**6, retention_ms=10**6),
]
GROWING = [
    operation("add_integer", key=b"new", delta=1),
    operation("append_string", key=b"new", value=b"x"),
    operation("set_bit", key=b"new", offset=1, bit=True),
    operation("set_hash_fields", key=b"hash", fields=[{"field": b"g", "value": b"v"}]),
    operation("add_set_members", key=b"set", members=[b"c"]),
    operation("push_list_items", key=b"list", items=[b"d"], end=1),
    operation("add_sorted_set_members", key=b"scores", members=[{"score": 2, "member": b"b"}]),
    operation("add_geo_members", key=b"places", members=[{"member": b"m", "position": {}}]),
    operation("add_hyper_log_log_items", key=b"visitors", items=[b"a"]),
    operation("append_stream_entry", key=b"stream", fields=[{"field": b"f", "value": b"v"}]),
    operation("set_json", key=b"json", path="$.c", value_json=b"1"),
    operation("enqueue_messages", key=b"queue", messages=[{"body": b"m"}]),
    operation("acquire_lock", key=b"lock2", owner=b"me", lease_ms=10**6),
    operation(
        "acquire_permits", key=b"rate", cost=1, token_bucket={"capacity": 1, "refill_permits": 1, "interval_ms": 1}
    ),
    operation("begin_idempotent", key=b"once2", fingerprint=b"f", lease_ms=10**6, retention_ms=10**6),
]
GOING_ON = [
    operation("pop_list_items", key=b"list", end=1),
    operation("trim_list", key=b"list", start=0, stop=0),
    operation("remove_set_members", key=b"set", members=[b"a"]),
    operation("pop_set_members", key=b"set", count=1),
    operation("delete_hash_fields", key=b"hash", fields=[b"f"]),
    operation("pop_sorted_set_members", key=b"scores", end=1, count=1),
    operation("trim_stream", key=b"stream", trim={"max_length": 1}),
    operation("delete_json", key=b"json", path="$.b"),
    operation("receive_messages", key=b"queue", count=1, visibility_timeout_ms=1_000),
    operation("take_string", key=b"key00002"),
    operation("expire_key", key=b"key00003", expiry={"ttl_ms": 10**6}),
    operation("persist_key", key=b"key00003"),
    operation("delete_keys", keys=[b"key00004"]),
]
LIMIT_BYTES = 3_000_000
FULL = ("RESOURCE_EXHAUSTED", "MEMORY_LIMIT_EXCEEDED")


def served(path, policy):
    arguments = ["--memory-limit-bytes", str(LIMIT_BYTES), "--eviction-policy", policy]
    return ServerProcess(path / "data", arguments=arguments)


def set_(key: bytes, size: int = 1_000, **rest) -> pipeline_pb2.Operation:
    request = strings_pb2.SetStringRequest(key=key, value=b"x" * size, **rest)
    return pipeline_pb2.Operation(set_string=request)


def run(api, *operations, request_id: str = "") -> list[pipeline_pb2.OperationResult]:
    request = pipeline_pb2.PipelineRequest(operations=operations)
    if request_id:
        request.write.request_id = request_id
    return list(pipeline_pb2_grpc.PipelineServiceStub(api.channel).Pipeline(request, timeout=SECONDS_MAX).results)


def refusal_of(call) -> tuple[str, str]:
    refusal = expect_refusal(call)
    return refusal.code, refusal.reason


@pytest.fixture
def full(tmp_path):
    """A server without eviction whose memory is full."""
    with served(tmp_path, "none") as process, connect(process.address) as api:
        api.create("c", params(2, DOT))
        api.upsert("c", [point("p", [1.0, 2.0], payload_json=b'{"a":1}')])
        assert not any(result.HasField("error") for result in run(api, *SETUP))
        number = 0
        while True:
            results = run(api, *(set_(b"key%05d" % (number + place)) for place in range(500)), request_id=f"r{number}")
            if results[0].HasField("error"):
                break
            number += 500
        assert 1_000 <= number <= 4_000
        yield api, number


def test_what_grows_is_refused(full):
    api, _ = full
    strings = strings_pb2_grpc.StringServiceStub(api.channel)
    before = api.info().log_last_sequence
    assert refusal_of(lambda: strings.SetString(set_(b"new").set_string, timeout=SECONDS_MAX)) == FULL
    assert refusal_of(lambda: api.upsert("c", [point("q", [1.0, 2.0])])) == FULL
    assert refusal_of(lambda: api.create("d", params(2, DOT))) == FULL
    update = points_pb2.UpdatePayloadRequest(collection="c", ids=filter_pb2.PointIds(ids=["p"]), merge_json=b'{"b":2}')
    assert refusal_of(lambda: api.call("UpdatePayload", update)) == FULL
    stream = [points_pb2.UpsertStreamRequest(collection="c", points=[point("q", [1.0, 2.0])])]
    assert refusal_of(lambda: list(api.points.UpsertStream(iter(stream), timeout=SECONDS_MAX))) == FULL
    commit = transactions_pb2_grpc.TransactionServiceStub(api.channel).Commit
    request = transactions_pb2.CommitRequest(then=[transactions_pb2.TransactionStep(operation=set_(b"new"))])
    assert refusal_of(lambda: commit(request, timeout=SECONDS_MAX)) == FULL
    batch = points_pb2.UpsertBatchRequest(
        requests=[points_pb2.UpsertRequest(collection="c", points=[point("q", [1.0, 2.0])])]
    )
    [outcome] = api.points.UpsertBatch(batch, timeout=SECONDS_MAX).outcomes
    assert outcome.error.reason == "MEMORY_LIMIT_EXCEEDED"
    assert api.info().log_last_sequence == before


def test_operations_of_all_structures_are_refused_where_they_grow_and_go_on_where_they_do_not(full):
    api, _ = full
    [held] = run(api, operation("describe_lock", key=b"lock"))
    lock = {"key": b"lock", "owner": b"me", "fencing_token": held.describe_lock.holder.fencing_token}
    going_on = [*GOING_ON, operation("renew_lock", **lock, lease_ms=10**6), operation("release_lock", **lock)]
    results = run(api, *GROWING, *going_on)
    for asked, result in zip(GROWING, results, strict=False):
        assert result.error.reason == "MEMORY_LIMIT_EXCEEDED", asked
        assert set(result.error.metadata) == {"used_bytes", "limit_bytes"}
    for asked, result in zip(going_on, results[len(GROWING) :], strict=True):
        assert result.WhichOneof("kind") == asked.WhichOneof("kind"), result


def test_parts_of_payloads_can_be_removed(full):
    api, _ = full
    update = points_pb2.UpdatePayloadRequest(
        collection="c", ids=filter_pb2.PointIds(ids=["p"]), remove={"paths": ["a"]}
    )
    commit = transactions_pb2_grpc.TransactionServiceStub(api.channel).Commit
    step = transactions_pb2.TransactionStep(update_payload=update)
    reply = commit(transactions_pb2.CommitRequest(then=[step]), timeout=SECONDS_MAX)
    assert reply.results[0].update_payload.updated_count == 1
    assert api.call("UpdatePayload", update).updated_count == 1
    replaced = points_pb2.UpdatePayloadRequest(
        collection="c", ids=filter_pb2.PointIds(ids=["p"]), replace_json=b'{"b":2}'
    )
    step = transactions_pb2.TransactionStep(update_payload=replaced)
    request = transactions_pb2.CommitRequest(then=[step])
    assert refusal_of(lambda: commit(request, timeout=SECONDS_MAX)) == FULL


def test_bad_requests_are_told_as_such(full):
    api, _ = full
    strings = strings_pb2_grpc.StringServiceStub(api.channel)
    refusal = expect_refusal(lambda: strings.SetString(set_(b"").set_string, timeout=SECONDS_MAX))
    assert refusal.reason == "INVALID_KEY"
    assert refusal_of(lambda: api.upsert("c", [point("q", [1.0])])) == ("INVALID_ARGUMENT", "DIMENSION_MISMATCH")


def test_what_was_done_before_is_answered(full):
    api, _ = full
    results = run(api, *(set_(b"key%05d" % place) for place in range(500)), request_id="r0")
    assert all(result.set_string.written for result in results)


def test_reads_and_what_takes_away_go_on(full):
    api, number = full
    keys = keys_pb2_grpc.KeyServiceStub(api.channel)
    lists = lists_pb2_grpc.ListServiceStub(api.channel)
    assert api.query("c", [1.0, 2.0])[0].point.id == "p"
    results = run(
        api,
        pipeline_pb2.Operation(get_string=strings_pb2.GetStringRequest(key=b"key00000")),
        set_(b"new"),
        pipeline_pb2.Operation(expire_key=keys_pb2.ExpireKeyRequest(key=b"key00001", expiry={"ttl_ms": 10**9})),
        pipeline_pb2.Operation(rename_key=keys_pb2.RenameKeyRequest(key=b"{key}", new_key=b"{key}2")),
    )
    assert len(results[0].get_string.value) == 1_000
    assert results[1].error.reason == "MEMORY_LIMIT_EXCEEDED"
    assert results[1].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert results[2].expire_key.changed
    assert results[3].error.reason == "KEY_NOT_FOUND"
    pop = lists_pb2.PopListItemsRequest(key=b"list", end=lists_pb2.LIST_END_LEFT)
    assert len(lists.PopListItems(pop, timeout=SECONDS_MAX).items) == 1
    info = api.info()
    assert info.data_memory_bytes > info.memory_limit_bytes == LIMIT_BYTES
    assert (info.eviction_policy, info.evicted_key_count) == ("none", 0)
    for place in range(number - 600, number):
        keys.DeleteKeys(keys_pb2.DeleteKeysRequest(keys=[b"key%05d" % place]), timeout=SECONDS_MAX)
    assert run(api, set_(b"now there is room"))[0].set_string.written
    api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name="c"))


@pytest.mark.parametrize("policy", ["volatile-ttl", "volatile-lru", "lru"])
def test_keys_are_evicted_and_stay_evicted(tmp_path, policy):
    with served(tmp_path, policy) as process:
        with connect(process.address) as api:
            for number in range(0, 10_000, 500):
                operations = (set_(b"key%05d" % (number + place), expiry={"ttl_ms": 10**9}) for place in range(500))
                assert all(result.set_string.written for result in run(api, *operations))
            info = api.info()
            # One pipeline more than there was room for is let in.
            assert info.data_memory_bytes < LIMIT_BYTES + 500 * 1_400
            assert info.evicted_key_count + info.key_count == 10_000
            scan = keys_pb2.ScanKeysRequest(page_size=10_000)
            left = keys_pb2_grpc.KeyServiceStub(api.channel).ScanKeys(scan, timeout=SECONDS_MAX).keys
        process.kill()
        process.start()
        with connect(process.address) as api:
            again = keys_pb2_grpc.KeyServiceStub(api.channel).ScanKeys(scan, timeout=SECONDS_MAX).keys
            assert list(again) == list(left)
            assert api.info().key_count == info.key_count


def test_a_kill_during_evictions_loses_no_acknowledged_key_that_was_not_evicted(tmp_path):
    with served(tmp_path, "lru") as process:
        for round_ in range(3):
            with connect(process.address) as api:
                for number in range(0, 4_000, 500):
                    run(api, *(set_(b"key%d-%05d" % (round_, number + place)) for place in range(500)))
                # The newest pipeline's keys had room made for them: none of them has gone.
                wanted = [b"key%d-%05d" % (round_, 3_500 + place) for place in range(500)]
            process.kill()
            process.start()
            with connect(process.address) as api:
                there = run(api, *(pipeline_pb2.Operation(check_keys={"keys": [key]}) for key in wanted))
                assert all(result.check_keys.existing == [True] for result in there)


def test_an_option_that_is_unknown_is_refused(tmp_path):
    process = served(tmp_path, "random")
    with pytest.raises(RuntimeError, match=r"eviction.policy"):
        process.start()
