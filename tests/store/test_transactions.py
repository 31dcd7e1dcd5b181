"""Transactions: all steps of a branch or none, decided when the record is applied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.support import DIMENSION, Command, apply, create, dump, entries
from tests.store.test_replay import KEYS, key_operations
from tests.support.keyspace import operation
from vecmem import limits
from vecmem.errors import VecmemError
from vecmem.log.record import LogEntry
from vecmem.store.keyspace.operation_keys import KEY_FIELDS, key_paths, keys_of
from vecmem.store.keyspace.operations import OPERATIONS
from vecmem.store.state_machine import StateMachine
from vecmem.store.transactions import OTHERWISE_PLACE, STEP_PLACE, fill_command
from vecmem.store.v1 import command_pb2
from vecmem.v1 import common_pb2, filter_pb2, keys_pb2, lists_pb2, pipeline_pb2, points_pb2
from vecmem.v1 import transactions_pb2 as api


class Store:
    """A state, and a log that grows."""

    def __init__(self, *commands: Command) -> None:
        self.state = StateMachine()
        self.log: list[LogEntry] = []
        for command in commands:
            self.log_and_apply(command)

    def log_and_apply(self, command: Command) -> command_pb2.CommandResult:
        running_crc = self.log[-1].running_crc if self.log else 0
        self.log += entries([command], after=len(self.log), running_crc=running_crc)
        return apply(self.state, self.log[-1])

    def run(self, *requested: pipeline_pb2.Operation, time_unix_ms: int = 10) -> command_pb2.CommandResult:
        command = Command(time_unix_ms=time_unix_ms)
        command.run_operations.operations.extend(requested)
        return self.log_and_apply(command)

    def commit(self, request: api.CommitRequest, time_unix_ms: int = 10) -> command_pb2.CommandResult:
        command = Command(time_unix_ms=time_unix_ms)
        for _ in fill_command(request, self.state.collection, command.commit_transaction):
            pass
        return self.log_and_apply(command)

    def contents(self) -> dict[str, Any]:
        found = dump(self.state)
        del found["time"]
        return found


def step(kind: str, **fields: Any) -> api.TransactionStep:
    return api.TransactionStep(operation=operation(kind, **fields))


def upsert(*ids: str, versions: dict[str, int] | None = None) -> api.TransactionStep:
    points = []
    for point_id in ids:
        vector = common_pb2.Vector(dense=common_pb2.DenseVector(values=np.ones(DIMENSION).tolist()))
        point = points_pb2.Point(id=point_id, vector=vector, payload_json=b'{"a":1}')
        if versions and point_id in versions:
            point.expected_version = versions[point_id]
        points.append(point)
    return api.TransactionStep(upsert=points_pb2.UpsertRequest(collection="a", points=points))


def refused(store: Store, request: api.CommitRequest) -> tuple[str, str]:
    """Reason and field of what a transaction is refused for when it is applied; it changes nothing."""
    before = store.contents()
    result = store.commit(request)
    assert result.HasField("refusal")
    assert store.contents() == before
    assert not store.state.committing
    return result.refusal.reason, result.refusal.metadata["field"]


def invalid(request: api.CommitRequest, store: Store | None = None) -> tuple[str, str]:
    """Reason and field of what a transaction is refused for before it is logged."""
    store = store or Store(create("a", flat=True))
    with pytest.raises(VecmemError) as caught:
        for _ in fill_command(request, store.state.collection, command_pb2.CommitTransaction()):
            pass
    return caught.value.reason, caught.value.metadata.get("field", "")


@settings(max_examples=150, deadline=None)
@given(st.lists(key_operations(10), max_size=6), st.lists(key_operations(10), min_size=1, max_size=6))
def test_steps_on_keys_are_all_done_or_none(
    before: list[pipeline_pb2.Operation], steps: list[pipeline_pb2.Operation]
) -> None:
    for one in steps:
        one.request_id = ""
    committed, piped = Store(), Store()
    for store in (committed, piped):
        for one in before:
            store.run(one)
    unchanged = committed.contents()
    request = api.CommitRequest(then=[api.TransactionStep(operation=one) for one in steps])
    result = committed.commit(request)
    expected = piped.run(*steps).operation_results
    failures = [index for index, one in enumerate(expected) if one.HasField("error")]
    if failures:
        error = expected[failures[0]].error
        kind = steps[failures[0]].WhichOneof("kind")
        assert result.refusal.reason == error.reason
        path = f"then[{failures[0]}].operation.{kind}"
        assert result.refusal.metadata["field"] == f"{path}.{error.metadata['field']}"
        assert result.refusal.message.startswith(path)
        assert committed.contents() == unchanged
    else:
        assert [one.operation for one in result.transaction.results] == list(expected)
        done, one_by_one = committed.contents(), piped.contents()
        del done["changes"], one_by_one["changes"]
        assert done == one_by_one
        noted, alone = (
            [
                (change.place, change.kind, change.name)
                for change in store.state.changes.after(len(before), 1)[0].changes()
            ]
            if store.state.changes.after(len(before), 1)
            else []
            for store in (committed, piped)
        )
        assert noted == [(place * STEP_PLACE, kind, name) for place, kind, name in alone]
    assert not committed.state.keyspace.changed


def test_keys_and_points_change_together() -> None:
    store = Store(create("a", flat=True))
    request = api.CommitRequest(
        compare=[api.Compare(point=points_pb2.PointReference(collection="a", id="{u}1"), exists=False)],
        then=[
            upsert("{u}1", "{u}2"),
            step("add_integer", key=b"{u}count", delta=2),
            step("set_string", key=b"{u}session", value=b"s"),
            step("get_string", key=b"{u}count"),
        ],
        otherwise=[
            api.TransactionStep(
                update_payload=points_pb2.UpdatePayloadRequest(
                    collection="a", ids=filter_pb2.PointIds(ids=["{u}1", "{u}9"]), merge_json=b'{"b":2}'
                )
            ),
            api.TransactionStep(delete=points_pb2.DeleteRequest(collection="a", ids=filter_pb2.PointIds(ids=["{u}2"]))),
            step("delete_keys", keys=[b"{u}count"]),
        ],
    )
    first = store.commit(request)
    assert first.transaction.succeeded
    assert [result.WhichOneof("kind") for result in first.transaction.results] == ["upsert", *["operation"] * 3]
    assert first.transaction.results[0].upsert == points_pb2.UpsertResponse(version=2, inserted_count=2)
    assert first.transaction.results[3].operation.get_string.value == b"2"
    collection = store.state.collection("a")
    assert set(collection.row_of) == {"{u}1", "{u}2"}
    assert [(change.place, change.name) for change in store.state.changes.after(1, 1)[0].changes()] == [
        (STEP_PLACE, b"{u}count"),
        (2 * STEP_PLACE, b"{u}session"),
        (0, b"{u}1"),
        (1, b"{u}2"),
    ]
    second = store.commit(request)
    assert not second.transaction.succeeded
    assert second.transaction.results[0].update_payload == points_pb2.UpdatePayloadResponse(updated_count=1, version=3)
    assert second.transaction.results[1].delete.deleted_count == 1
    assert collection.payloads.get(collection.row_of["{u}1"]) == b'{"a":1,"b":2}'
    assert set(collection.row_of) == {"{u}1"}
    assert [
        (change.place - OTHERWISE_PLACE, change.name) for change in store.state.changes.after(2, 1)[0].changes()
    ] == [
        (2 * STEP_PLACE, b"{u}count"),
        (0, b"{u}1"),
        (STEP_PLACE, b"{u}2"),
    ]
    assert not store.state.committing


def test_a_point_with_another_version_undoes_everything() -> None:
    store = Store(create("a", flat=True))
    store.commit(api.CommitRequest(then=[upsert("{u}1")]))
    store.run(operation("set_string", key=b"{u}s", value=b"1"))
    keys = step("append_string", key=b"{u}s", value=b"2")
    wrong = upsert("{u}2", "{u}1", versions={"{u}1": 7})
    assert refused(store, api.CommitRequest(then=[keys, wrong])) == ("VERSION_CONFLICT", "then[1].upsert")
    store.commit(api.CommitRequest(then=[keys, upsert("{u}2", "{u}1", versions={"{u}1": 2, "{u}2": 0})]))
    assert set(store.state.collection("a").row_of) == {"{u}1", "{u}2"}


def test_a_payload_that_grows_over_the_limit_undoes_everything() -> None:
    store = Store(create("a", flat=True))
    store.commit(api.CommitRequest(then=[upsert("{u}1", "{u}2")]))

    def update(content: bytes) -> api.TransactionStep:
        ids = filter_pb2.PointIds(ids=["{u}1"])
        return api.TransactionStep(
            update_payload=points_pb2.UpdatePayloadRequest(collection="a", ids=ids, merge_json=content)
        )

    half = b"x" * (limits.PAYLOAD_BYTES_MAX // 2)
    store.commit(api.CommitRequest(then=[update(b'{"b":"%s"}' % half)]))
    request = api.CommitRequest(then=[step("add_integer", key=b"{u}n"), update(b'{"c":"%s"}' % half)])
    assert refused(store, request) == ("LIMIT_EXCEEDED", "then[1].update_payload")


def test_a_collection_that_was_deleted_meanwhile_undoes_everything() -> None:
    store = Store(create("a", flat=True))
    command = Command(time_unix_ms=10)
    request = api.CommitRequest(then=[step("add_integer", key=b"{u}n"), upsert("{u}1")])
    for _ in fill_command(request, store.state.collection, command.commit_transaction):
        pass
    dropped = Command(time_unix_ms=10)
    dropped.delete_collection.collection_uid = 1
    store.log_and_apply(dropped)
    result = store.log_and_apply(command)
    assert (result.refusal.reason, result.refusal.metadata["field"]) == ("COLLECTION_NOT_FOUND", "then[1].upsert")
    assert not store.state.keyspace.values


def compare_key(key: bytes, **condition: Any) -> api.Compare:
    return api.Compare(key=key, **condition)


EQUAL, NOT_EQUAL, LESS, LESS_OR_EQUAL, GREATER, GREATER_OR_EQUAL = range(1, 7)


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (compare_key(b"{u}s", exists=True), True),
        (compare_key(b"{u}s", exists=False), False),
        (compare_key(b"{u}none", exists=False), True),
        (compare_key(b"{u}gone", exists=False), True),
        (compare_key(b"{u}s", version=api.CompareVersion(version=1)), True),
        (compare_key(b"{u}s", version=api.CompareVersion(comparison=GREATER, version=1)), False),
        (compare_key(b"{u}none", version=api.CompareVersion(comparison=LESS, version=1)), True),
        (compare_key(b"{u}s", type=keys_pb2.KEY_TYPE_STRING), True),
        (compare_key(b"{u}l", type=keys_pb2.KEY_TYPE_LIST), True),
        (compare_key(b"{u}l", type=keys_pb2.KEY_TYPE_STRING), False),
        (compare_key(b"{u}none", type=keys_pb2.KEY_TYPE_STRING), False),
        (compare_key(b"{u}s", value=api.CompareValue(value=b"12")), True),
        (compare_key(b"{u}s", value=api.CompareValue(comparison=NOT_EQUAL, value=b"12")), False),
        (compare_key(b"{u}s", value=api.CompareValue(comparison=LESS, value=b"2")), True),
        (compare_key(b"{u}none", value=api.CompareValue(comparison=NOT_EQUAL, value=b"12")), False),
        (compare_key(b"{u}s", integer=api.CompareInteger(comparison=LESS, value=2)), False),
        (compare_key(b"{u}s", integer=api.CompareInteger(comparison=GREATER_OR_EQUAL, value=12)), True),
        (compare_key(b"{u}none", integer=api.CompareInteger(comparison=LESS_OR_EQUAL, value=0)), True),
        (compare_key(b"{u}h", field=api.CompareField(field=b"f", value=b"v")), True),
        (compare_key(b"{u}h", field=api.CompareField(field=b"f", comparison=GREATER, value=b"v")), False),
        (compare_key(b"{u}h", field=api.CompareField(field=b"g", comparison=NOT_EQUAL, value=b"v")), False),
        (compare_key(b"{u}none", field=api.CompareField(field=b"f", value=b"v")), False),
        (api.Compare(point=points_pb2.PointReference(collection="a", id="{u}1"), exists=True), True),
        (api.Compare(point=points_pb2.PointReference(collection="a", id="{u}2"), exists=True), False),
        (
            api.Compare(
                point=points_pb2.PointReference(collection="a", id="{u}1"), version=api.CompareVersion(version=2)
            ),
            True,
        ),
        (api.Compare(point=points_pb2.PointReference(collection="a", id="{u}2"), version=api.CompareVersion()), True),
    ],
)
def test_comparisons(compare: api.Compare, holds: bool) -> None:
    store = Store(create("a", flat=True))
    store.commit(api.CommitRequest(then=[upsert("{u}1")]))
    left = lists_pb2.LIST_END_LEFT
    store.run(
        operation("set_string", key=b"{u}s", value=b"12"),
        operation("push_list_items", key=b"{u}l", items=[b"x"], end=left),
        operation("set_hash_fields", key=b"{u}h", fields=[{"field": b"f", "value": b"v"}]),
        operation("set_string", key=b"{u}gone", value=b"1", expiry={"at_unix_ms": 5}),
    )
    both = api.CommitRequest(
        compare=[compare, compare_key(b"{u}s", exists=True)],
        then=[step("set_string", key=b"{u}then", value=b"1")],
        otherwise=[step("set_string", key=b"{u}otherwise", value=b"1")],
    )
    assert store.commit(both).transaction.succeeded is holds
    assert (b"{u}then" in store.state.keyspace.values) is holds
    assert (b"{u}otherwise" in store.state.keyspace.values) is not holds


def test_comparisons_with_values_of_other_types_are_refused() -> None:
    store = Store(create("a", flat=True))
    store.run(operation("push_list_items", key=b"{u}l", items=[b"x"], end=lists_pb2.LIST_END_LEFT))
    store.run(operation("set_string", key=b"{u}s", value=b"text"))
    then = [step("add_integer", key=b"{u}n")]
    value, field, integer = api.CompareValue(), api.CompareField(), api.CompareInteger()
    for compare, reason in (
        (compare_key(b"{u}l", value=value), "WRONG_TYPE"),
        (compare_key(b"{u}l", field=field), "WRONG_TYPE"),
        (compare_key(b"{u}l", integer=integer), "WRONG_TYPE"),
        (compare_key(b"{u}s", integer=integer), "NOT_A_NUMBER"),
    ):
        request = api.CommitRequest(compare=[compare_key(b"{u}no", exists=True), compare], then=then)
        assert refused(store, request) == (reason, "compare[1].key")


def test_results_of_reads_count_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    store.run(operation("set_string", key=b"k", value=b"x" * 100))
    monkeypatch.setattr(limits, "RESULT_BYTES_MAX", 250)
    monkeypatch.setattr("vecmem.store.keyspace.operation.Moment.__init__.__defaults__", (250,))
    reads = [step("get_string", key=b"k")]
    assert not store.commit(api.CommitRequest(then=reads * 2)).HasField("refusal")
    request = api.CommitRequest(then=[step("append_string", key=b"k", value=b"y"), *reads * 3])
    assert refused(store, request)[0] == "LIMIT_EXCEEDED"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (api.CommitRequest(), ("INVALID_ARGUMENT", "then")),
        (api.CommitRequest(then=[api.TransactionStep()]), ("INVALID_ARGUMENT", "then[0].kind")),
        (
            api.CommitRequest(otherwise=[api.TransactionStep(operation=pipeline_pb2.Operation())]),
            ("INVALID_ARGUMENT", "otherwise[0].operation.kind"),
        ),
        (api.CommitRequest(then=[step("scan_keys")]), ("INVALID_ARGUMENT", "then[0].operation.scan_keys")),
        (api.CommitRequest(then=[step("set_string")]), ("INVALID_KEY", "then[0].operation.set_string.key")),
        (
            api.CommitRequest(then=[api.TransactionStep(operation=pipeline_pb2.Operation(request_id="x"))]),
            ("INVALID_ARGUMENT", "then[0].operation.request_id"),
        ),
        (
            api.CommitRequest(then=[step("take_string", key=b"k", write={"request_id": "x"})]),
            ("INVALID_ARGUMENT", "then[0].operation.take_string.write"),
        ),
        (api.CommitRequest(then=[step("take_string", key=b"k")] * 129), ("LIMIT_EXCEEDED", "then")),
        (api.CommitRequest(otherwise=[step("take_string", key=b"k")] * 129), ("LIMIT_EXCEEDED", "otherwise")),
        (api.CommitRequest(compare=[compare_key(b"k", exists=True)] * 129), ("LIMIT_EXCEEDED", "compare")),
        (api.CommitRequest(compare=[api.Compare(exists=True)], then=[upsert("p")]), ("INVALID_ARGUMENT", "compare[0].target")),
        (api.CommitRequest(compare=[api.Compare(key=b"k")], then=[upsert("p")]), ("INVALID_ARGUMENT", "compare[0].condition")),
        (api.CommitRequest(compare=[compare_key(b"k", type=99)], then=[upsert("k")]), ("INVALID_ARGUMENT", "compare[0].type")),
        (
            api.CommitRequest(compare=[compare_key(b"k", version={"comparison": 9})], then=[upsert("k")]),
            ("INVALID_ARGUMENT", "compare[0].version.comparison"),
        ),
        (
            api.CommitRequest(compare=[compare_key(b"k", field={"field": bytes(1_025)})], then=[upsert("k")]),
            ("LIMIT_EXCEEDED", "compare[0].field.field"),
        ),
        (
            api.CommitRequest(
                compare=[api.Compare(point={"collection": "a", "id": "p"}, value=api.CompareValue())], then=[upsert("p")]
            ),
            ("INVALID_ARGUMENT", "compare[0].value"),
        ),
        (
            api.CommitRequest(compare=[api.Compare(point={"collection": "a"}, exists=True)], then=[upsert("p")]),
            ("INVALID_ID", "compare[0].point.id"),
        ),
        (
            api.CommitRequest(compare=[api.Compare(point={"collection": "b", "id": "p"}, exists=True)], then=[upsert("p")]),
            ("COLLECTION_NOT_FOUND", "compare[0]"),
        ),
        (api.CommitRequest(then=[upsert("p"), upsert("q", "p")]), ("INVALID_ARGUMENT", "then[1]")),
        (
            api.CommitRequest(
                then=[api.TransactionStep(delete=points_pb2.DeleteRequest(collection="a", filter={"all_of": {}}))]
            ),
            ("INVALID_ARGUMENT", "then[0].delete.filter"),
        ),
        (
            api.CommitRequest(then=[api.TransactionStep(upsert=points_pb2.UpsertRequest(collection="a", write={}))]),
            ("INVALID_ARGUMENT", "then[0].upsert.write"),
        ),
        (
            api.CommitRequest(then=[api.TransactionStep(upsert=points_pb2.UpsertRequest(collection="a"))]),
            ("INVALID_ARGUMENT", "then[0].upsert.points"),
        ),
        (api.CommitRequest(then=[step("take_string", key=b"k"), step("take_string", key=b"l")]), ("CROSS_SLOT", "")),
        (api.CommitRequest(then=[step("take_string", key=b"{k}"), upsert("p")]), ("CROSS_SLOT", "")),
        (
            api.CommitRequest(compare=[compare_key(b"other", exists=True)], then=[step("take_string", key=b"{k}")]),
            ("CROSS_SLOT", ""),
        ),
    ],
)  # fmt: skip
def test_bad_requests(request_: api.CommitRequest, expected: tuple[str, str]) -> None:
    assert invalid(request_) == expected


def test_slots_are_named() -> None:
    request = api.CommitRequest(then=[step("take_string", key=b"k"), step("take_string", key=b"l")])
    with pytest.raises(VecmemError, match="2 hash slots: 7629, 11562") as caught:
        list(fill_command(request, StateMachine().collection, command_pb2.CommitTransaction()))
    assert caught.value.metadata["slots"] == "7629, 11562"


def test_every_operation_says_its_keys() -> None:
    """The fields that hold keys are found by their names: whoever adds an operation has to use these."""
    for kind in OPERATIONS:
        descriptor = pipeline_pb2.Operation.DESCRIPTOR.fields_by_name[kind].message_type
        paths = key_paths(descriptor)
        if kind != "scan_keys":
            assert paths, kind
        for path in paths:
            assert path[-1] in KEY_FIELDS
        unknown = [
            field.name
            for field in descriptor.fields
            if field.type == field.TYPE_BYTES
            and field.name not in KEY_FIELDS
            and ("key" in field.name or "destination" in field.name or "source" in field.name)
        ]
        assert not unknown, f"{kind} has {unknown}: is it a key?"


def test_keys_are_found_wherever_they_stand() -> None:
    values = operation("set_strings", values=[{"key": b"{k}1"}, {"key": b"{k}2"}]).set_strings
    assert keys_of(values) == [b"{k}1", b"{k}2"]
    assert keys_of(operation("rename_key", key=KEYS[0], new_key=KEYS[1]).rename_key) == KEYS[:2]
    stored = operation("store_combined_sets", keys=KEYS, destination=b"{k}d").store_combined_sets
    assert sorted(keys_of(stored)) == sorted([b"{k}d", *KEYS])
