"""The window of the newest changes: what records did, kept as long as there is room, and the same whatever way it is computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.support import Command, apply, create, entries
from vecmem import limits
from vecmem.store.changes import POINT, Change, ChangeKind, ChangeWindow, Noted, RecordChanges
from vecmem.store.state_machine import StateMachine
from vecmem.v1 import keys_pb2, lists_pb2, strings_pb2

NAMES = st.binary(max_size=20)


def record(sequence: int, *names: bytes) -> RecordChanges:
    noted = Noted()
    for place, name in enumerate(names):
        noted.add(place, ChangeKind.WRITTEN, 1, sequence, name)
    return RecordChanges(sequence, sequence * 10, bytes(noted.packed))


def told(state: StateMachine, sequence: int) -> list[tuple[int, int, int, bytes]]:
    """Place, kind, holder and name of what one record changed."""
    return [
        (change.place, change.kind, change.holder, change.name)
        for found in state.changes.after(sequence - 1, 1)
        if found.sequence == sequence
        for change in found.changes()
    ]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(ChangeKind), st.integers(0, 2**64 - 1), NAMES)))
def test_changes_come_back_as_they_were_noted(changes: list[tuple[int, ChangeKind, int, bytes]]) -> None:
    noted = Noted()
    for place, kind, number, name in changes:
        noted.add(place, kind, POINT, number, name)
    assert list(RecordChanges(1, 2, bytes(noted.packed)).changes()) == [
        Change(place, kind, POINT, number, name) for place, kind, number, name in changes
    ]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60)), min_size=1, max_size=60), st.integers(0, 3_000))
def test_the_window_keeps_the_newest(steps: list[tuple[int, int]], after: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHANGES_BYTES_MAX", 2_000)
        window = ChangeWindow()
        everything: list[RecordChanges] = []
        sequence = 0
        for gap, size in steps:
            sequence += gap
            everything.append(record(sequence, b"x" * size))
            window.add(everything[-1])
            kept = window.after(window.complete_after, 1_000)
            assert kept == everything[len(everything) - len(kept) :]
            assert kept
            assert len(window) == len(kept)
            assert window.complete_after == (everything[-len(kept) - 1].sequence if len(kept) < len(everything) else 0)
            assert sum(160 + len(one.packed) for one in kept) <= 2_000
        after = max(after, window.complete_after)
        assert window.after(after, 7) == [one for one in everything if one.sequence > after][:7]
        loaded = ChangeWindow.load(b"".join(window.dump()))
        assert list(loaded.dump()) == list(window.dump())
        assert loaded.complete_after == window.complete_after


def test_records_that_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHANGES_BYTES_MAX", 100 * 200)
    window = ChangeWindow()
    for sequence in range(1, 10_001):
        window.add(record(sequence, b"k"))
    assert len(window._records) < 5_000
    assert [one.sequence for one in window.after(9_990, 100)] == list(range(9_991, 10_001))


def test_a_record_larger_than_the_window_is_kept_until_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHANGES_BYTES_MAX", 1_000)
    window = ChangeWindow()
    window.add(record(4, *[b"k"] * 100))
    assert [one.sequence for one in window.after(0, 10)] == [4]
    window.add(record(5, b"k"))
    assert [one.sequence for one in window.after(4, 10)] == [5]
    assert window.complete_after == 4


@pytest.mark.parametrize(
    "content", [b"", b"1234567", bytes(8) + b"x", bytes(8) + bytes(16) + b"\x05\x00\x00\x00" + b"abcd"]
)
def test_damage_is_found(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"window|record"):
        ChangeWindow.load(content)


def test_what_records_do_to_keys_is_noted() -> None:
    state = StateMachine()

    def run(time_unix_ms: int, **operations: object) -> Command:
        command = Command(time_unix_ms=time_unix_ms)
        for kind, request in operations.items():
            getattr(command.run_operations.operations.add(), kind).CopyFrom(request)
        return command

    expiring = strings_pb2.SetStringRequest(key=b"{k}a", value=b"1")
    expiring.expiry.at_unix_ms = 50
    only_if_absent = strings_pb2.SetStringRequest(key=b"{k}a", value=b"2", condition=strings_pb2.SET_CONDITION_ABSENT)
    popped = lists_pb2.PopListItemsRequest(key=b"{k}l", end=lists_pb2.LIST_END_LEFT)
    commands = [
        run(1, set_string=expiring),
        run(2, set_string=only_if_absent),
        run(3, push_list_items=lists_pb2.PushListItemsRequest(key=b"{k}l", items=[b"x"], end=lists_pb2.LIST_END_LEFT)),
        run(4, pop_list_items=popped, rename_key=keys_pb2.RenameKeyRequest(key=b"{k}a", new_key=b"{k}b")),
        run(5, persist_key=keys_pb2.PersistKeyRequest(key=b"{k}b")),
        run(6, expire_key=keys_pb2.ExpireKeyRequest(key=b"{k}b", expiry=keys_pb2.Expiry(at_unix_ms=8))),
    ]
    swept = Command(time_unix_ms=9)
    swept.expire_keys.keys.append(b"{k}b")
    for entry in entries([*commands, swept]):
        apply(state, entry)
    string, list_ = keys_pb2.KEY_TYPE_STRING, keys_pb2.KEY_TYPE_LIST
    assert [told(state, sequence) for sequence in range(1, 8)] == [
        [(0, ChangeKind.WRITTEN, string, b"{k}a")],
        [],
        [(0, ChangeKind.WRITTEN, list_, b"{k}l")],
        [
            (0, ChangeKind.DELETED, 0, b"{k}l"),
            (1, ChangeKind.DELETED, 0, b"{k}a"),
            (1, ChangeKind.WRITTEN, string, b"{k}b"),
        ],
        [(0, ChangeKind.EXPIRY_SET, string, b"{k}b")],
        [(0, ChangeKind.EXPIRY_SET, string, b"{k}b")],
        [(0, ChangeKind.EXPIRED, 0, b"{k}b")],
    ]


def test_what_records_do_to_points_is_noted_in_order_of_ids() -> None:
    state = StateMachine()
    write = Command(time_unix_ms=1)
    write.upsert_points.collection_uid = 1
    for number in (3, 1, 2):
        point = write.upsert_points.points.add(id=f"p{number}", payload_json=b'{"a":1}')
        if number == 1:
            point.expected_version = 7
    by_filter = Command(time_unix_ms=2)
    by_filter.delete_points.collection_uid = 1
    by_filter.delete_points.filter.all_of.SetInParent()
    dropped = Command(time_unix_ms=3)
    dropped.delete_collection.collection_uid = 1
    for entry in entries([create("a", flat=True), write, by_filter, dropped]):
        apply(state, entry)
    assert [told(state, sequence) for sequence in range(1, 5)] == [
        [(0, ChangeKind.COLLECTION_CREATED, POINT, b"a")],
        [(0, ChangeKind.WRITTEN, POINT, b"p3"), (2, ChangeKind.WRITTEN, POINT, b"p2")],
        [(0, ChangeKind.DELETED, POINT, b"p2"), (0, ChangeKind.DELETED, POINT, b"p3")],
        [(0, ChangeKind.COLLECTION_DELETED, POINT, b"a")],
    ]
