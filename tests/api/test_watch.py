"""The change feed over a real server: in order, nothing left out, resumable, and honest with whoever is too slow."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time

import grpc
import pytest

from tests.support.api import DOT, connect, expect_refusal, params, point
from tests.support.server import ServerProcess
from vecmem.config import GRPC_ENGINES
from vecmem.slots import SLOTS, slot_of
from vecmem.v1 import (
    admin_pb2,
    collections_pb2,
    counters_pb2,
    filter_pb2,
    hashes_pb2,
    keys_pb2,
    keys_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    points_pb2,
    strings_pb2,
    transactions_pb2,
    transactions_pb2_grpc,
    watch_pb2,
    watch_pb2_grpc,
)

SECONDS_MAX = 60.0
WRITTEN, EXPIRY_SET, DELETED, EXPIRED = range(1, 5)
COLLECTION_CHANGED, COLLECTION_DELETED, COLLECTION_CREATED = 6, 7, 8
ENGINES = [engine for engine in GRPC_ENGINES if engine != "auto"]


class Feed:
    """An open feed; each step has a deadline of the whole call."""

    def __init__(self, channel, *targets, seconds_max=SECONDS_MAX, **rest) -> None:
        request = watch_pb2.WatchRequest(targets=targets, **rest)
        self.call = watch_pb2_grpc.WatchServiceStub(channel).Watch(request, timeout=seconds_max)
        self.position = next(self.call).position
        """Behind the last response."""

    def changes(self, count: int) -> list[watch_pb2.Change]:
        """The next changes, so many, over heartbeats."""
        found: list[watch_pb2.Change] = []
        while len(found) < count:
            response = next(self.call)
            found += response.changes
            self.position = response.position
        assert len(found) == count
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call.cancel()


def of_key(key: bytes) -> watch_pb2.WatchTarget:
    return watch_pb2.WatchTarget(key=key)


def of_prefix(prefix: bytes) -> watch_pb2.WatchTarget:
    return watch_pb2.WatchTarget(key_prefix=prefix)


def of_collection(name: str) -> watch_pb2.WatchTarget:
    return watch_pb2.WatchTarget(collection=name)


def run(channel, *operations: pipeline_pb2.Operation) -> int:
    """Run a pipeline; returns the sequence of its record."""
    request = pipeline_pb2.PipelineRequest(operations=operations)
    reply = pipeline_pb2_grpc.PipelineServiceStub(channel).Pipeline(request, timeout=SECONDS_MAX)
    return reply.header.position.sequence


def set_(key: bytes, value: bytes = b"v", **rest) -> pipeline_pb2.Operation:
    return pipeline_pb2.Operation(set_string=strings_pb2.SetStringRequest(key=key, value=value, **rest))


def delete(*keys: bytes) -> pipeline_pb2.Operation:
    return pipeline_pb2.Operation(delete_keys=keys_pb2.DeleteKeysRequest(keys=keys))


def add(key: bytes) -> pipeline_pb2.Operation:
    return pipeline_pb2.Operation(add_integer=counters_pb2.AddIntegerRequest(key=key, delta=1))


def brief(changes) -> list[tuple[int, bytes]]:
    return [(change.kind, change.key) for change in changes]


@pytest.fixture
def key(collection_name) -> bytes:
    """A key that no other test uses."""
    return b"{%s}" % collection_name.encode()


def test_changes_of_a_key_and_of_a_prefix(api, key):
    with Feed(api.channel, of_key(key)) as one, Feed(api.channel, of_prefix(key + b":")) as several:
        first = run(api.channel, set_(key), set_(key + b":a"), set_(key + b"b"))
        run(api.channel, set_(key, condition=strings_pb2.SET_CONDITION_ABSENT))
        second = run(
            api.channel,
            pipeline_pb2.Operation(expire_key=keys_pb2.ExpireKeyRequest(key=key, expiry={"ttl_ms": 10**9})),
            pipeline_pb2.Operation(rename_key=keys_pb2.RenameKeyRequest(key=key, new_key=key + b":c")),
        )
        third = run(api.channel, delete(key + b":a", key + b":none"))
        changes = one.changes(3)
        assert brief(changes) == [(WRITTEN, key), (EXPIRY_SET, key), (DELETED, key)]
        assert [change.sequence for change in changes] == [first, second, second]
        assert [change.key_type for change in changes] == [keys_pb2.KEY_TYPE_STRING, keys_pb2.KEY_TYPE_STRING, 0]
        assert changes[0].version == changes[1].version > changes[2].version == 0
        assert changes[0].time_unix_ms > 0
        found = several.changes(3)
        assert brief(found) == [(WRITTEN, key + b":a"), (WRITTEN, key + b":c"), (DELETED, key + b":a")]
        assert [change.sequence for change in found] == [first, second, third]


def test_what_expires_is_told_as_such(api, key):
    with Feed(api.channel, of_key(key)) as feed:
        run(api.channel, set_(key, expiry={"ttl_ms": 1}))
        assert brief(feed.changes(2)) == [(WRITTEN, key), (EXPIRED, key)]


@pytest.mark.one_shard(reason="changes of several shards are in no order")
def test_changes_of_a_collection_and_its_points(api, key, collection_name):
    api.create(collection_name, params(2, DOT))
    with Feed(api.channel, of_collection(collection_name), with_content=True) as feed:
        upserted = api.upsert(
            collection_name, [point("a", [1.0, 2.0], payload_json=b'{"n":1}'), point("b", [3.0, 4.0])]
        )
        api.call(
            "UpdatePayload",
            points_pb2.UpdatePayloadRequest(
                collection=collection_name, ids=filter_pb2.PointIds(ids=["b"]), merge_json=b'{"n":2}'
            ),
        )
        api.delete(collection_name, filter=filter_pb2.Filter(all_of={}))
        api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name=collection_name))
        changes = feed.changes(6)
        told = [(change.kind, change.point.id) for change in changes]
        assert told[:3] == [(WRITTEN, "a"), (WRITTEN, "b"), (WRITTEN, "b")]
        assert told[3:] == [(DELETED, "a"), (DELETED, "b"), (COLLECTION_DELETED, "")]
        assert {change.point.collection for change in changes[:5]} == {collection_name} == {changes[5].collection}
        assert [change.version for change in changes[:2]] == [upserted.version] * 2
        written = changes[0].written_point
        assert (written.id, written.payload_json, written.version) == ("a", b'{"n":1}', upserted.version)
        assert memoryview(written.vector.dense.packed).cast("f").tolist() == [1.0, 2.0]
        assert memoryview(changes[1].written_point.vector.dense.packed).cast("f").tolist() == [3.0, 4.0]
        assert changes[2].payload_update == points_pb2.UpdatePayloadRequest(merge_json=b'{"n":2}')
        assert changes[3].WhichOneof("content") is None


def test_a_collection_is_watched_by_its_name_through_deletion_and_restart(tmp_path):
    """Whoever was away while it was made anew learns what became of the old one, after a restart as well."""

    def told(api, *targets, **start):
        with Feed(api.channel, *targets, **start) as feed:
            return [(one.kind, one.point.collection or one.collection, one.point.id) for one in feed.changes(7)]

    expected = [
        (COLLECTION_CREATED, "a", ""),
        (WRITTEN, "a", "old"),
        (COLLECTION_CHANGED, "a", ""),
        (COLLECTION_DELETED, "a", ""),
        (COLLECTION_CREATED, "a", ""),
        (WRITTEN, "a", "new"),
        (DELETED, "a", "new"),
    ]
    arguments = ["--checkpoint-idle-seconds", "0.1", "--checkpoint-log-bytes", "1024"]
    with ServerProcess(tmp_path / "data", arguments=arguments) as process:
        with connect(process.address) as api, Feed(api.channel, of_collection("a")) as feed:
            api.create("other", params(2, DOT))
            api.upsert("other", [point("p", [1.0, 2.0])])
            api.create("a", params(2, DOT))
            api.upsert("a", [point("old", [1.0, 2.0])])
            api.call("UpdateCollection", collections_pb2.UpdateCollectionRequest(name="a", description="d" * 2_000))
            for name in ("a", "other"):
                api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name=name))
            api.create("a", params(2, DOT))
            api.upsert("a", [point("new", [1.0, 2.0])])
            api.delete("a", "new")
            assert [
                (one.kind, one.point.collection or one.collection, one.point.id) for one in feed.changes(7)
            ] == expected
            assert told(api, of_collection("a"), earliest=True) == expected
            assert told(api, of_collection("a"), after={"sequence": 2}) == expected
            while api.info().checkpoint_sequence < 9:
                time.sleep(0.05)
        process.kill()
        process.start()
        with connect(process.address) as api:
            assert told(api, of_collection("a"), earliest=True) == expected


def test_what_a_transaction_did_comes_with_its_content(api, key, collection_name):
    api.create(collection_name, params(2, DOT))
    tag = key.decode()
    steps = [
        transactions_pb2.TransactionStep(operation=set_(key, b"1")),
        transactions_pb2.TransactionStep(
            upsert=points_pb2.UpsertRequest(collection=collection_name, points=[point(tag + "p", [1.0, 2.0])])
        ),
        transactions_pb2.TransactionStep(operation=add(key)),
    ]
    with Feed(api.channel, of_key(key), of_collection(collection_name), with_content=True) as feed:
        commit = transactions_pb2_grpc.TransactionServiceStub(api.channel).Commit
        absent = transactions_pb2.Compare(key=key, exists=False)
        request = transactions_pb2.CommitRequest(compare=[absent], then=steps, otherwise=steps[2:])
        assert commit(request, timeout=SECONDS_MAX).succeeded
        assert not commit(request, timeout=SECONDS_MAX).succeeded
        changes = feed.changes(4)
        assert changes[0].operation == steps[0].operation
        assert changes[1].operation == changes[3].operation == steps[2].operation
        assert changes[2].written_point.id == tag + "p"
        assert len({change.sequence for change in changes[:3]}) == 1


@pytest.mark.one_shard(reason="a position is one in each shard")
def test_a_feed_goes_on_where_another_one_ended(api, key):
    """Also in the middle of a record: every place in the feed is one to go on from."""
    with Feed(api.channel, of_prefix(key)) as feed:
        start = feed.position
        sequences = [run(api.channel, *(set_(key + b"%d" % place) for place in range(3))) for _ in range(3)]
        everything = feed.changes(9)
        end = feed.position
    places = [(change.sequence, change.change_count) for change in everything]
    assert places == [(one, count) for one in sequences for count in (1, 2, 3)]
    for behind, change_count in itertools.product(sequences, [1, 2, 0]):
        after = watch_pb2.ChangePosition(sequence=behind, change_count=change_count)
        told_before = 3 * sequences.index(behind) + (change_count or 3)
        with Feed(api.channel, of_prefix(key), after=after) as resumed:
            rest = everything[told_before:]
            assert resumed.position == after
            assert resumed.changes(len(rest)) == rest
    with Feed(api.channel, of_prefix(key), after=start) as again:
        assert again.changes(9) == everything
    with Feed(api.channel, of_prefix(key), after=end) as nothing_more:
        run(api.channel, set_(key + b"last"))
        assert brief(nothing_more.changes(1)) == [(WRITTEN, key + b"last")]


def test_large_records_come_in_parts(api, key):
    values = [set_(key + b"%04d" % number) for number in range(1_024)]
    with Feed(api.channel, of_prefix(key)) as feed:
        run(api.channel, *values)
        sizes, positions = [], []
        while sum(sizes) < 1_024:
            response = next(feed.call)
            sizes.append(len(response.changes))
            positions.append(response.position)
    assert sizes == [1_000, 24]
    assert [position.change_count for position in positions] == [1_000, 0]
    with Feed(api.channel, of_prefix(key), after=positions[0]) as rest:
        assert [change.key for change in rest.changes(24)] == [key + b"%04d" % number for number in range(1_000, 1_024)]


def test_a_feed_says_first_where_it_begins_though_a_shard_is_late(tmp_path):
    """What another shard has told by then comes behind that, and is not lost on whoever takes the first response for a beginning."""
    keys = [key for key in (b"k%d" % number for number in range(100)) if slot_of(key) < SLOTS // 2]
    with ServerProcess(tmp_path / "data", arguments=["--shards", "2"]) as server, connect(server.address) as api:
        with Feed(api.channel, of_prefix(b"")) as feed:
            position = feed.position
        run(api.channel, *(set_(key) for key in keys))
        late = server.ready["pids"][1]
        os.kill(late, signal.SIGSTOP)
        try:
            request = watch_pb2.WatchRequest(targets=[of_prefix(b"")], after=position)
            call = watch_pb2_grpc.WatchServiceStub(api.channel).Watch(request, timeout=SECONDS_MAX)
            time.sleep(1.0)  # the other one has told by then
        finally:
            os.kill(late, signal.SIGCONT)
        assert not next(call).changes
        told: list[bytes] = []
        while len(told) < len(keys):
            told += [change.key for change in next(call).changes]
        assert told == keys
        call.cancel()


def test_heartbeats_tell_how_far_the_log_was_looked_through(api, key):
    with Feed(api.channel, of_key(key), heartbeat_ms=100) as feed:
        other = run(api.channel, set_(key + b"other"))
        while True:
            beat = next(feed.call)
            assert not beat.changes
            if beat.position.sequence >= other:
                break
        run(api.channel, set_(key))
        assert brief(feed.changes(1)) == [(WRITTEN, key)]


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_lost_or_told_twice_through_kills(tmp_path, engine):
    """A consumer that goes on from its last position sees every change exactly once, in order, while the server is killed."""
    values = random.Random(7)
    keys = [b"{k}%d" % number for number in range(5)]
    seen: list[tuple[int, bytes, int]] = []
    ended = threading.Event()
    process = ServerProcess(tmp_path / "data", arguments=["--grpc-engine", engine])

    def consume() -> None:
        after = watch_pb2.ChangePosition()
        while not ended.is_set():
            try:
                with connect(process.address) as api:
                    # Sequence 0 stands for the beginning.
                    start = {"after": after} if after.sequence else {"earliest": True}
                    with Feed(api.channel, of_prefix(b"{k}"), heartbeat_ms=100, **start) as feed:
                        while True:
                            response = next(feed.call)
                            seen.extend((change.sequence, change.key, change.version) for change in response.changes)
                            after = response.position
                            if ended.is_set() and after.sequence >= last:
                                return
            except grpc.RpcError as error:
                codes.add(error.code())

    codes: set[grpc.StatusCode] = set()
    written: list[tuple[int, bytes]] = []
    last = 0
    with process:
        consumer = threading.Thread(target=consume)
        consumer.start()
        for _ in range(3):
            with connect(process.address) as api:
                for _ in range(40):
                    chosen = values.choices(keys, k=values.randint(1, 4))
                    last = run(api.channel, *(add(one) for one in chosen))
                    written += [(last, one) for one in chosen]
            process.kill()
            process.start()
        with connect(process.address) as api:
            last = run(api.channel, add(keys[0]))
            written.append((last, keys[0]))
        ended.set()
        # The consumer ends with the first response behind the last record; heartbeats see to that.
        consumer.join(SECONDS_MAX)
        assert not consumer.is_alive()
    assert codes == {grpc.StatusCode.UNAVAILABLE}
    assert [(sequence, one) for sequence, one, _ in seen] == written
    versions = [version for _, _, version in seen]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_ends_does_not_wait_for_feeds(tmp_path, engine):
    with ServerProcess(tmp_path / "data", arguments=["--grpc-engine", engine, "--grace-seconds", "600"]) as process:
        with connect(process.address) as api, Feed(api.channel, of_prefix(b"")) as feed:
            process.stop()
            refusal = expect_refusal(lambda: list(feed.call))
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        process.start()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slow_consumer_holds_back_its_own_feed_only_and_is_told_in_the_end(tmp_path, engine):
    """It reads nothing while more changes than are retained come in: everybody else goes on, and then it hears of it."""
    with (
        ServerProcess(tmp_path / "data", arguments=["--grpc-engine", engine]) as process,
        connect(process.address) as api,
        connect(process.address) as slow,
    ):
        name = b"x" * 1_000
        with Feed(slow.channel, of_prefix(b"{k}")) as feed, Feed(api.channel, of_key(b"{k}last")) as other:
            start = feed.position
            for _ in range(80):
                run(api.channel, *(set_(b"{k}%04d" % number + name) for number in range(1_000)))
            run(api.channel, set_(b"{k}last"))
            assert brief(other.changes(1)) == [(WRITTEN, b"{k}last")]
            told = 0

            def read() -> None:
                nonlocal told
                for response in feed.call:
                    told += len(response.changes)

            refusal = expect_refusal(read)
            assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "CHANGES_NOT_RETAINED")
            assert 0 < told < 80_000
            first = int(refusal.metadata["first_sequence"])
            late = expect_refusal(lambda: Feed(api.channel, of_prefix(b"{k}"), after=start))
            assert (late.reason, late.metadata["first_sequence"]) == ("CHANGES_NOT_RETAINED", str(first))
        with Feed(api.channel, of_prefix(b"{k}"), earliest=True) as retained:
            assert retained.changes(1_000)[0].sequence == first


def test_the_newest_changes_outlive_a_checkpoint_and_a_restart(own_server, tmp_path):
    with connect(own_server.address) as api:
        run(api.channel, set_(b"{k}a"), set_(b"{k}b"))
        api.call("CreateCheckpoint", admin_pb2.CreateCheckpointRequest())
        run(api.channel, delete(b"{k}a"))
    own_server.kill()
    own_server.start()
    with (
        connect(own_server.address) as api,
        Feed(api.channel, of_prefix(b""), earliest=True, with_content=True) as feed,
    ):
        changes = feed.changes(3)
        assert brief(changes) == [(WRITTEN, b"{k}a"), (WRITTEN, b"{k}b"), (DELETED, b"{k}a")]
        assert changes[1].operation == set_(b"{k}b")
        assert changes[2].operation == delete(b"{k}a")


@pytest.mark.parametrize(
    ("request_", "code", "reason", "field"),
    [
        ({}, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "targets"),
        ({"targets": [of_prefix(b"")] * 1_025}, "INVALID_ARGUMENT", "LIMIT_EXCEEDED", "targets"),
        ({"targets": [watch_pb2.WatchTarget()]}, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "targets[0].kind"),
        ({"targets": [of_key(b"")]}, "INVALID_ARGUMENT", "INVALID_KEY", "targets[0].key"),
        ({"targets": [of_prefix(bytes(1_025))]}, "INVALID_ARGUMENT", "LIMIT_EXCEEDED", "targets[0].key_prefix"),
        ({"targets": [of_collection(".x")]}, "INVALID_ARGUMENT", "INVALID_ID", "targets[0].collection"),
        ({"targets": [of_prefix(b"")], "heartbeat_ms": 99}, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "heartbeat_ms"),
        ({"targets": [of_prefix(b"")], "after": {"sequence": 2**63}}, "OUT_OF_RANGE", "POSITION_AHEAD", ""),
    ],
)
def test_bad_requests(api, request_, code, reason, field):
    before = api.everything()
    call = watch_pb2_grpc.WatchServiceStub(api.channel).Watch(watch_pb2.WatchRequest(**request_), timeout=SECONDS_MAX)
    refusal = expect_refusal(lambda: next(call))
    assert (refusal.code, refusal.reason, refusal.field) == (code, reason, field)
    assert api.everything() == before


def test_hashes_and_their_fields(api, key):
    """A field that expires changes no key until the last one does."""
    with Feed(api.channel, of_key(key)) as feed:
        fields = [hashes_pb2.HashField(field=b"f", value=b"v")]
        request = hashes_pb2.SetHashFieldsRequest(key=key, fields=fields, expiry={"ttl_ms": 1})
        run(api.channel, pipeline_pb2.Operation(set_hash_fields=request))
        assert brief(feed.changes(2)) == [(WRITTEN, key), (EXPIRED, key)]
    described = keys_pb2_grpc.KeyServiceStub(api.channel).DescribeKey(
        keys_pb2.DescribeKeyRequest(key=key), timeout=SECONDS_MAX
    )
    assert not described.version
