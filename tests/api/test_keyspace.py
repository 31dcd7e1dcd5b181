"""Keys, strings, counters and pipelines over a real server: what is answered, what is refused, and what a kill leaves."""

from __future__ import annotations

import threading

import grpc
import pytest

from tests.support.api import connect, expect_refusal
from tests.support.server import ServerProcess
from vecmem.v1 import (
    admin_pb2,
    collections_pb2,
    common_pb2,
    counters_pb2,
    counters_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    strings_pb2,
    strings_pb2_grpc,
)

SECONDS_MAX = 60.0


class Keys:
    """The services for keys of one channel."""

    def __init__(self, api) -> None:
        self.stubs = [
            keys_pb2_grpc.KeyServiceStub(api.channel),
            strings_pb2_grpc.StringServiceStub(api.channel),
            counters_pb2_grpc.CounterServiceStub(api.channel),
            pipeline_pb2_grpc.PipelineServiceStub(api.channel),
        ]

    def call(self, method, request):
        stub = next(stub for stub in self.stubs if hasattr(stub, method))
        return getattr(stub, method)(request, timeout=SECONDS_MAX)

    def get(self, key: bytes) -> bytes | None:
        found = self.call("GetString", strings_pb2.GetStringRequest(key=key))
        return found.value if found.HasField("value") else None

    def set(self, key: bytes, value: bytes, **rest):
        return self.call("SetString", strings_pb2.SetStringRequest(key=key, value=value, **rest))

    def add(self, key: bytes, delta: int = 1, request_id: str = "") -> counters_pb2.AddIntegerResponse:
        write = common_pb2.WriteOptions(request_id=request_id) if request_id else None
        return self.call("AddInteger", counters_pb2.AddIntegerRequest(key=key, delta=delta, write=write))

    def pipeline(self, *operations, request_id: str = "") -> list[pipeline_pb2.OperationResult]:
        request = pipeline_pb2.PipelineRequest(operations=operations)
        if request_id:
            request.write.request_id = request_id
        return list(self.call("Pipeline", request).results)


def add(key: bytes, delta: int = 1, request_id: str = "") -> pipeline_pb2.Operation:
    return pipeline_pb2.Operation(
        add_integer=counters_pb2.AddIntegerRequest(key=key, delta=delta), request_id=request_id
    )


def get(key: bytes) -> pipeline_pb2.Operation:
    return pipeline_pb2.Operation(get_string=strings_pb2.GetStringRequest(key=key))


@pytest.fixture
def keys(api):
    return Keys(api)


@pytest.fixture
def key(collection_name) -> bytes:
    """A key that no other test uses."""
    return b"{%s}" % collection_name.encode()


def test_each_reply_carries_a_position_that_reads_can_demand(keys, key):
    written = keys.set(key, b"1").header.position
    request = strings_pb2.GetStringRequest(key=key, read=common_pb2.ReadOptions(min_position=written))
    assert keys.call("GetString", request).header.position.sequence >= written.sequence
    request.read.min_position.sequence += 1_000_000
    assert expect_refusal(lambda: keys.call("GetString", request)).reason == "POSITION_AHEAD"


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason", "field"),
    [
        ("GetString", strings_pb2.GetStringRequest(), "INVALID_ARGUMENT", "INVALID_KEY", "key"),
        ("DeleteKeys", keys_pb2.DeleteKeysRequest(keys=[b"a", b"b"]), "INVALID_ARGUMENT", "CROSS_SLOT", "keys"),
        (
            "RenameKey",
            keys_pb2.RenameKeyRequest(key=b"{none}", new_key=b"{none}2"),
            "NOT_FOUND",
            "KEY_NOT_FOUND",
            "key",
        ),
        ("Pipeline", pipeline_pb2.PipelineRequest(), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "operations"),
        (
            "Pipeline",
            pipeline_pb2.PipelineRequest(operations=[get(b"k")] * 1_025),
            "INVALID_ARGUMENT",
            "LIMIT_EXCEEDED",
            "operations",
        ),
        ("ScanKeys", keys_pb2.ScanKeysRequest(page_token="no"), "INVALID_ARGUMENT", "INVALID_PAGE_TOKEN", "page_token"),
        (
            "SetString",
            strings_pb2.SetStringRequest(key=b"k", write=common_pb2.WriteOptions(request_id="r" * 129)),
            "INVALID_ARGUMENT",
            "LIMIT_EXCEEDED",
            "write.request_id",
        ),
    ],
)
def test_bad_requests_are_refused_and_log_nothing(api, keys, method, request_, code, reason, field):
    before = api.info().log_last_sequence
    refusal = expect_refusal(lambda: keys.call(method, request_))
    assert (refusal.code, refusal.reason, refusal.field) == (code, reason, field)
    logged = api.info().log_last_sequence - before
    assert logged == (1 if method == "RenameKey" else 0), "whether a key is there is decided in the order of the log"


def test_the_state_refuses_with_its_own_codes(keys, key):
    keys.set(key, b"text")
    refusal = expect_refusal(lambda: keys.add(key))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOT_A_NUMBER")
    keys.set(key, b"9223372036854775807")
    refusal = expect_refusal(lambda: keys.add(key))
    assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "OVERFLOW")
    assert keys.get(key) == b"9223372036854775807"


def test_a_pipeline_answers_each_operation_and_sees_its_own_writes(keys, key):
    other = key + b"2"
    results = keys.pipeline(get(key), add(key, 5), get(key), get(b""), add(key, -2), add(other), get(key), get(other))
    assert [result.WhichOneof("kind") for result in results] == [
        "get_string", "add_integer", "get_string", "error", "add_integer", "add_integer", "get_string", "get_string",
    ]  # fmt: skip
    assert not results[0].get_string.HasField("value")
    assert [results[place].get_string.value for place in (2, 6, 7)] == [b"5", b"3", b"1"]
    assert (results[3].error.code, results[3].error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT.value[0],
        "INVALID_KEY",
    )


def test_options_of_a_piece_are_the_pipelines(keys, key):
    with_options = add(key)
    with_options.add_integer.write.request_id = "mine"
    [result] = keys.pipeline(with_options)
    assert (result.error.reason, result.error.metadata["field"]) == ("INVALID_ARGUMENT", "write")
    assert keys.get(key) is None


def test_results_that_no_message_holds_are_refused_one_by_one(keys, key):
    """A small pipeline that would return a large value again and again."""
    keys.set(key, bytes(15 * 1024 * 1024))
    again = pipeline_pb2.Operation(
        set_string=strings_pb2.SetStringRequest(
            key=key, condition=strings_pb2.SET_CONDITION_ABSENT, return_previous=True
        )
    )
    results = keys.pipeline(*[again] * 20)
    assert [result.WhichOneof("kind") for result in results] == ["set_string"] * 2 + ["error"] * 18
    assert {result.error.reason for result in results[2:]} == {"LIMIT_EXCEEDED"}
    read = keys.pipeline(*[get(key)] * 6)
    assert [result.WhichOneof("kind") for result in read] == ["get_string"] * 4 + ["error"] * 2
    keys.call("DeleteKeys", keys_pb2.DeleteKeysRequest(keys=[key]))


def test_repeats_change_nothing(keys, key):
    name = key.decode()
    first = keys.add(key, 1, request_id=name)
    again = keys.add(key, 1, request_id=name)
    assert (again.value, again.header.position) == (first.value, first.header.position)
    refusal = expect_refusal(lambda: keys.add(key, 2, request_id=name))
    assert (refusal.reason, refusal.field) == ("REQUEST_ID_REUSED", "write.request_id")
    whole = keys.pipeline(add(key, 10), add(key, 10), request_id=name + "p")
    assert keys.pipeline(add(key, 10), add(key, 10), request_id=name + "p") == whole
    assert keys.get(key) == b"21"


def test_a_repeat_within_another_pipeline_changes_nothing(keys, key):
    """As a client does whose RPC was lost: its operations go again, in other company."""
    one, two, three = (key.decode() + suffix for suffix in "123")
    first = keys.pipeline(add(key, 1, one), add(key, 1, two))
    second = keys.pipeline(add(key, 1, two), add(key, 1, three), add(key, 7, one))
    assert second[0] == first[1]
    assert second[1].add_integer.value == 3
    assert (second[2].error.reason, second[2].error.code) == ("REQUEST_ID_REUSED", 3)
    assert keys.get(key) == b"3"


def test_large_pipelines_do_not_keep_others_waiting_for_their_end(keys, key):
    """Each operation is atomic and not the pipeline: a reader meanwhile sees whole numbers rising."""
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(int(keys.get(key) or b"0"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(5):
            keys.pipeline(*[add(key)] * 1_024)
    finally:
        stop.set()
        reader.join()
    assert seen == sorted(seen)
    assert keys.get(key) == b"5120"


def test_concurrent_increments_all_count(server, key):
    def count() -> None:
        with connect(server.address) as api:
            mine = Keys(api)
            for _ in range(50):
                mine.add(key)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with connect(server.address) as api:
        assert Keys(api).get(key) == b"400"


def test_keys_outlive_a_kill_and_a_checkpoint(own_server):
    with connect(own_server.address) as api:
        keys = Keys(api)
        keys.set(b"kept", bytes(range(256)))
        keys.set(b"gone", b"x", expiry=keys_pb2.Expiry(ttl_ms=1))
        keys.add(b"n", 5, request_id="once")
    own_server.kill()
    own_server.start()
    with connect(own_server.address) as api:
        keys = Keys(api)
        assert (keys.get(b"kept"), keys.get(b"gone")) == (bytes(range(256)), None)
        assert keys.add(b"n", 5, request_id="once").value == 5
        api.call("CreateCheckpoint", admin_checkpoint())
        keys.add(b"n", 1)
    own_server.kill()
    own_server.start()
    with connect(own_server.address) as api:
        keys = Keys(api)
        info = api.info()
        assert info.recovery.checkpoint_sequence > 0
        assert (keys.get(b"kept"), keys.get(b"n")) == (bytes(range(256)), b"6")
        assert keys.add(b"n", 5, request_id="once").value == 5


def test_damaged_keys_leave_collections_serving_and_are_named(tmp_path):
    """No checkpoint has the keys and the log is trimmed: their loss is told, not hidden."""
    with ServerProcess(tmp_path / "data", arguments=["--log-retention-bytes", "0"]) as server:
        lose_the_keys(server)
        with connect(server.address) as api:
            check_that_the_loss_is_told(api)


def lose_the_keys(server: ServerProcess) -> None:
    with connect(server.address) as api:
        keys = Keys(api)
        api.create("c", vector=vector_of_two())
        for number in range(3):
            keys.set(b"k", b"%d" % number)
            api.call("CreateCheckpoint", admin_checkpoint())
    server.kill()
    for file in server.data_dir.glob("checkpoints/*/keyspace.npz"):
        damaged = bytearray(file.read_bytes())
        damaged[-30] ^= 0xFF
        file.write_bytes(damaged)
    server.start()


def check_that_the_loss_is_told(api) -> None:
    keys = Keys(api)
    refusal = expect_refusal(lambda: keys.get(b"k"))
    assert (refusal.code, refusal.reason) == ("DATA_LOSS", "KEYSPACE_DAMAGED")
    before = api.info().log_last_sequence
    refusal = expect_refusal(lambda: keys.set(b"k", b"new"))
    assert (refusal.code, refusal.reason) == ("DATA_LOSS", "KEYSPACE_DAMAGED")
    assert expect_refusal(lambda: keys.pipeline(add(b"k"))).reason == "KEYSPACE_DAMAGED"
    assert api.info().log_last_sequence == before, "whoever mends the keys finds no writes that were refused"
    assert api.count("c") == 0
    assert any("keys are damaged" in note for note in api.info().recovery.notes)
    refusal = expect_refusal(lambda: api.call("CreateCheckpoint", admin_checkpoint()))
    assert refusal.reason == "CHECKPOINT_FAILED"


def admin_checkpoint():
    return admin_pb2.CreateCheckpointRequest()


def vector_of_two():
    return collections_pb2.VectorParams(dimension=2, metric=common_pb2.METRIC_DOT)
