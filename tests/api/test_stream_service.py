"""Streams over a real server: what is answered and refused, what pipelines see, what repeats do, and what a kill leaves."""

from __future__ import annotations

import pytest

from tests.support.api import connect, expect_refusal
from vecmem.v1 import (
    admin_pb2,
    common_pb2,
    keys_pb2,
    keys_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    streams_pb2,
    streams_pb2_grpc,
    strings_pb2,
    strings_pb2_grpc,
)

SECONDS_MAX = 60.0


class Streams:
    """The services of one channel, and one key."""

    def __init__(self, api, key: bytes) -> None:
        self.key = key
        self.stubs = [
            streams_pb2_grpc.StreamServiceStub(api.channel),
            keys_pb2_grpc.KeyServiceStub(api.channel),
            strings_pb2_grpc.StringServiceStub(api.channel),
            pipeline_pb2_grpc.PipelineServiceStub(api.channel),
        ]

    def call(self, method, request):
        stub = next(stub for stub in self.stubs if hasattr(stub, method))
        return getattr(stub, method)(request, timeout=SECONDS_MAX)

    def do(self, method, request_id: str = "", **fields):
        request = getattr(streams_pb2, f"{method}Request")(key=self.key, **fields)
        if request_id:
            request.write.request_id = request_id
        return self.call(method, request)

    def append(self, value: bytes = b"v", **fields) -> tuple[int, int]:
        found = self.do("AppendStreamEntry", fields=[pair(value)], **fields).id
        return found.time_unix_ms, found.sequence

    def read(self, consumer: bytes = b"ada", request_id: str = "", **fields):
        return self.do("ReadStreamGroup", group=b"g", consumer=consumer, request_id=request_id, **fields)


def pair(value: bytes) -> streams_pb2.StreamField:
    return streams_pb2.StreamField(field=b"f", value=value)


def sid(time_unix_ms: int, sequence: int = 0) -> streams_pb2.StreamId:
    return streams_pb2.StreamId(time_unix_ms=time_unix_ms, sequence=sequence)


def values(response) -> list[bytes]:
    return [entry.fields[0].value for entry in response.entries]


@pytest.fixture
def key(collection_name) -> bytes:
    """A key that no other test uses."""
    return b"{%s}" % collection_name.encode()


@pytest.fixture
def streams(api, key):
    return Streams(api, key)


def test_ids_are_the_servers_time(streams):
    ids = [streams.append() for _ in range(5)]
    assert ids == sorted(set(ids))
    assert ids[0][0] > 1_700_000_000_000, "milliseconds since the Unix epoch"
    found = streams.do("DescribeStream")
    assert (found.entry_count, found.last_id, found.first_entry_id) == (5, sid(*ids[-1]), sid(*ids[0]))
    described = streams.call("DescribeKey", keys_pb2.DescribeKeyRequest(key=streams.key))
    assert (described.type, described.size) == (keys_pb2.KEY_TYPE_STREAM, 5)
    listed = streams.call("ScanKeys", keys_pb2.ScanKeysRequest(pattern=streams.key, type=keys_pb2.KEY_TYPE_STREAM))
    assert list(listed.keys) == [streams.key]


@pytest.mark.parametrize(
    ("method", "fields", "code", "reason", "field"),
    [
        ("AppendStreamEntry", {}, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "fields"),
        (
            "AppendStreamEntry",
            {"fields": [pair(b"v")], "explicit_id": sid(4)},
            "FAILED_PRECONDITION",
            "STREAM_ID_TOO_SMALL",
            "explicit_id",
        ),
        (
            "AppendStreamEntry",
            {"fields": [pair(b"v")], "id_time_unix_ms": 4},
            "FAILED_PRECONDITION",
            "STREAM_ID_TOO_SMALL",
            "id_time_unix_ms",
        ),
        ("CreateStreamGroup", {"group": b"g"}, "ALREADY_EXISTS", "STREAM_GROUP_EXISTS", "group"),
        (
            "ReadStreamGroup",
            {"group": b"none", "consumer": b"c"},
            "NOT_FOUND",
            "STREAM_GROUP_NOT_FOUND",
            "group",
        ),
        ("DescribeStreamGroup", {"group": b"none"}, "NOT_FOUND", "STREAM_GROUP_NOT_FOUND", "group"),
        (
            "ListStreamConsumers",
            {"group": b"g", "page_token": "no"},
            "INVALID_ARGUMENT",
            "INVALID_PAGE_TOKEN",
            "page_token",
        ),
    ],
)
def test_refusals_have_their_codes_and_change_nothing(streams, method, fields, code, reason, field):
    streams.append(explicit_id=sid(5))
    streams.do("CreateStreamGroup", group=b"g")
    before = streams.do("DescribeStream"), streams.do("DescribeStreamGroup", group=b"g").group
    refusal = expect_refusal(lambda: streams.do(method, **fields))
    assert (refusal.code, refusal.reason, refusal.field) == (code, reason, field)
    after = streams.do("DescribeStream"), streams.do("DescribeStreamGroup", group=b"g").group
    assert before[1] == after[1]
    before[0].ClearField("header")
    after[0].ClearField("header")
    assert before[0] == after[0]


def test_other_types_and_missing_keys_are_refused(streams):
    refusal = expect_refusal(lambda: streams.do("CreateStreamGroup", group=b"g"))
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "KEY_NOT_FOUND")
    streams.call("SetString", strings_pb2.SetStringRequest(key=streams.key, value=b"v"))
    refusal = expect_refusal(streams.append)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "WRONG_TYPE")
    positions = [streams_pb2.StreamPosition(key=key) for key in (b"a", b"b")]
    refusal = expect_refusal(lambda: streams.call("ReadStreams", streams_pb2.ReadStreamsRequest(positions=positions)))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "CROSS_SLOT")


def test_a_pipeline_sees_its_own_writes_and_acknowledges_what_it_read(streams):
    other = streams.key + b"2"
    named = {"key": streams.key, "group": b"g"}
    results = streams.call(
        "Pipeline",
        pipeline_pb2.PipelineRequest(
            operations=[
                pipeline_pb2.Operation(create_stream_group={**named, "create_stream": True}),
                *(
                    pipeline_pb2.Operation(
                        append_stream_entry={"key": key, "fields": [pair(b"%d" % number)], "explicit_id": sid(number)}
                    )
                    for number in (1, 2)
                    for key in (streams.key, other)
                ),
                pipeline_pb2.Operation(read_stream_group={**named, "consumer": b"ada", "count": 1}),
                pipeline_pb2.Operation(acknowledge_stream_entries={**named, "ids": [sid(1), sid(2)]}),
                pipeline_pb2.Operation(append_stream_entry={"key": other, "fields": [pair(b"x")], "explicit_id": sid(1)}),
                pipeline_pb2.Operation(describe_stream_group=named),
                pipeline_pb2.Operation(read_streams={"positions": [{"key": streams.key}, {"key": other, "after": sid(1)}]}),
            ]
        ),
    ).results  # fmt: skip
    *_, read, acknowledged, refused, group, both = results
    assert values(read.read_stream_group) == [b"1"]
    assert list(acknowledged.acknowledge_stream_entries.acknowledged) == [True, False]
    assert (refused.error.code, refused.error.reason) == (9, "STREAM_ID_TOO_SMALL")
    assert refused.error.metadata["last_id"] == "2-0"
    assert (group.describe_stream_group.group.lag, group.describe_stream_group.group.pending_count) == (1, 0)
    assert [values(found) for found in both.read_streams.streams] == [[b"1", b"2"], [b"2"]]


def test_repeats_deliver_append_and_acknowledge_once(streams):
    name = streams.key.decode()
    streams.do("CreateStreamGroup", group=b"g", create_stream=True)
    first = streams.append(b"a", request_id=name + "1")
    assert streams.append(b"a", request_id=name + "1") == first
    streams.append(b"b")
    assert values(streams.read(request_id=name + "2", count=1)) == [b"a"]
    assert values(streams.read(request_id=name + "2", count=1)) == [b"a"], "the answer of the first time"
    assert values(streams.read()) == [b"b"]
    ids = [sid(*first)]
    for _ in range(2):
        found = streams.do("AcknowledgeStreamEntries", group=b"g", ids=ids, request_id=name + "3")
        assert list(found.acknowledged) == [True]
    assert list(streams.do("AcknowledgeStreamEntries", group=b"g", ids=ids).acknowledged) == [False]
    refusal = expect_refusal(lambda: streams.append(b"other", request_id=name + "1"))
    assert refusal.reason == "REQUEST_ID_REUSED"


def test_a_stream_expires_and_moves_as_any_key(streams):
    streams.do("CreateStreamGroup", group=b"g", create_stream=True)
    streams.append(b"a")
    streams.read()
    moved = Streams.__new__(Streams)
    moved.key, moved.stubs = streams.key + b"new", streams.stubs
    streams.call("RenameKey", keys_pb2.RenameKeyRequest(key=streams.key, new_key=moved.key))
    assert values(moved.read(pending_after=sid(0))) == [b"a"]
    expiry = keys_pb2.Expiry(at_unix_ms=1)
    assert streams.call("ExpireKey", keys_pb2.ExpireKeyRequest(key=moved.key, expiry=expiry)).changed
    assert expect_refusal(moved.read).reason == "STREAM_GROUP_NOT_FOUND"


def test_a_kill_leaves_entries_groups_and_what_is_pending(own_server):
    key = b"s"
    with connect(own_server.address) as api:
        streams = Streams(api, key)
        streams.do("CreateStreamGroup", group=b"g", create_stream=True)
        ids = [streams.append(b"%d" % number) for number in range(6)]
        streams.read(count=2)
        api.admin.CreateCheckpoint(admin_pb2.CreateCheckpointRequest(), timeout=SECONDS_MAX)
        streams.read(b"bob", count=2)
        streams.do("AcknowledgeStreamEntries", group=b"g", ids=[sid(*ids[0])])
        streams.do("DeleteStreamEntries", ids=[sid(*ids[2])])
        before = (
            streams.do("DescribeStream"),
            streams.do("DescribeStreamGroup", group=b"g").group,
            [(one.id, one.consumer, one.delivered_at_unix_ms, one.delivery_count)
             for one in streams.do("ListStreamPending", group=b"g").entries],
            list(streams.do("ListStreamConsumers", group=b"g").consumers),
            list(streams.do("GetStreamRange").entries),
        )  # fmt: skip
    own_server.kill()
    own_server.start()
    with connect(own_server.address) as api:
        streams = Streams(api, key)
        after = (
            streams.do("DescribeStream"),
            streams.do("DescribeStreamGroup", group=b"g").group,
            [(one.id, one.consumer, one.delivered_at_unix_ms, one.delivery_count)
             for one in streams.do("ListStreamPending", group=b"g").entries],
            list(streams.do("ListStreamConsumers", group=b"g").consumers),
            list(streams.do("GetStreamRange").entries),
        )  # fmt: skip
        for found in (before[0], after[0]):
            found.ClearField("header")
        assert after == before
        assert values(streams.read(b"bob")) == [b"4", b"5"]
        assert streams.append(b"new") > ids[-1]


def test_reads_demand_a_position(streams):
    written = streams.do("AppendStreamEntry", fields=[pair(b"v")]).header.position
    options = common_pb2.ReadOptions(min_position=written)
    assert streams.do("GetStreamRange", read=options).header.position.sequence >= written.sequence
    options.min_position.sequence += 1_000_000
    assert expect_refusal(lambda: streams.do("DescribeStream", read=options)).reason == "POSITION_AHEAD"
