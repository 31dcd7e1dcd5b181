"""Records applied one by one: what they change, what they refuse, and what nobody sees of them before they are done."""

from __future__ import annotations

import pytest

from tests.store.support import (
    DIMENSION,
    Command,
    apply,
    create,
    delete_collection,
    delete_ids,
    dump,
    entries,
    nearest,
    upsert,
)
from vecmem import errors, limits
from vecmem.errors import UnsupportedFormatError
from vecmem.log.record import LogEntry, Record
from vecmem.store.state_machine import COMMAND_RECORD, StateMachine, refusal_error
from vecmem.store.v1 import command_pb2

MANY = [f"p{i:04d}" for i in range(1000)]


def after(*commands: Command) -> tuple[StateMachine, list[command_pb2.CommandResult]]:
    state = StateMachine()
    return state, [apply(state, entry) for entry in entries(commands)]


def upsert_many() -> Command:
    return upsert(1, dict.fromkeys(MANY[300:], b'{"new":true}'), seed=2)


def delete_many() -> Command:
    return delete_ids(1, MANY[:700])


def delete_by_filter() -> Command:
    command = Command(time_unix_ms=1)
    command.delete_points.collection_uid = 1
    command.delete_points.filter.field.path = "a"
    command.delete_points.filter.field.exists = True
    return command


def expire_many() -> Command:
    command = Command(time_unix_ms=10_000)
    command.expire_points.collection_uid = 1
    command.expire_points.ids.extend(MANY)
    return command


@pytest.mark.parametrize("make", [upsert_many, delete_many, delete_by_filter, expire_many])
def test_a_search_between_two_steps_sees_nothing_of_the_record(make: object) -> None:
    assert callable(make)
    state = StateMachine()
    first = upsert(1, dict.fromkeys(MANY[:800], b'{"a":1}'), seed=1, expires_at_unix_ms=5_000)
    log = entries([create("c"), first, make()])
    apply(state, log[0])
    apply(state, log[1])
    before = nearest(state, "c", sequence=2, now_unix_ms=4_000)
    assert len(before) == 800
    steps = 0
    for _ in state.apply(log[2]):
        steps += 1
        assert nearest(state, "c", sequence=2, now_unix_ms=4_000) == before
    assert steps >= 2
    # Even when it is done, a search that began before it goes on seeing what was.
    assert nearest(state, "c", sequence=2, now_unix_ms=4_000) == before
    assert {name for name, _ in nearest(state, "c", sequence=3, now_unix_ms=4_000)} == set(
        state.collections["c"].row_of
    )
    assert nearest(state, "c", sequence=3, now_unix_ms=4_000) != before


def test_conditions_are_decided_when_applied() -> None:
    """A condition looks at the version before the record; what fails is listed and left; the rest is written."""
    points = {"a": b'{"n":1}', "b": b'{"n":1}'}
    state, results = after(
        create("c"),
        upsert(1, points, seed=1, expected_versions={"a": 0}),
        upsert(1, points | {"c": b""}, seed=2, expected_versions={"a": 2, "b": 1, "c": 0}),
        upsert(1, points, seed=3, expected_versions={"a": 2, "b": 3}),
        upsert(1, {"c": b""}, seed=4, expected_versions={"c": 0}),
    )
    assert [(r.inserted_count, r.updated_count) for r in results[1:]] == [(2, 0), (1, 1), (0, 0), (0, 0)]
    conflicts = [[(c.id, c.expected_version, c.actual_version) for c in r.conflicts] for r in results]
    assert conflicts == [[], [], [("b", 1, 2)], [("a", 2, 3), ("b", 3, 2)], [("c", 0, 3)]]
    held = dump(state)["collections"]["c"]["points"]
    assert {name: version for name, (version, *_) in held.items()} == {"a": 3, "b": 2, "c": 3}


def test_expiry_goes_by_the_time_of_the_record() -> None:
    """At its very moment a point is gone: for conditions, counts, deletes and updates; a sweep named too early spares it."""

    def sweep(time_unix_ms: int) -> Command:
        command = Command(time_unix_ms=time_unix_ms)
        command.expire_points.collection_uid = 1
        command.expire_points.ids.append("a")
        return command

    state, results = after(
        create("c"),
        upsert(1, {"a": b'{"n":1}'}, time_unix_ms=10, expires_at_unix_ms=100),
        sweep(99),
        delete_ids(1, ["a"], time_unix_ms=100),
        upsert(1, {"a": b'{"n":2}'}, time_unix_ms=100, expires_at_unix_ms=200, expected_versions={"a": 0}),
        sweep(199),
        sweep(200),
    )
    assert [result.deleted_count for result in results] == [0, 0, 0, 0, 0, 0, 1]
    assert (results[4].inserted_count, results[4].updated_count) == (1, 0)
    assert dump(state)["collections"]["c"]["points"] == {}
    assert state.time_unix_ms == 200


@pytest.mark.parametrize(
    "command",
    [
        upsert(1, {"a": b""}),
        delete_ids(1, ["a"]),
        delete_by_filter(),
        delete_collection(1),
        expire_many(),
    ],
)
def test_a_record_for_a_collection_that_went_before_it_is_refused_and_changes_nothing(command: Command) -> None:
    """The collection was deleted, and made anew under the same name, after the request was checked."""
    state, results = after(create("c"), upsert(1, {"a": b""}), delete_collection(1), create("c"), upsert(4, {"a": b""}))
    before = dump(state)
    command.time_unix_ms = state.time_unix_ms
    result = apply(state, entries([command], after=5)[0])
    assert result.refusal.reason == "COLLECTION_NOT_FOUND"
    assert isinstance(refusal_error(result.refusal), errors.CollectionNotFoundError)
    assert (result.inserted_count, result.updated_count, result.deleted_count) == (0, 0, 0)
    assert dump(state) == before
    assert results[2].deleted_count == 1


def test_creation_is_refused_where_the_name_is_taken_or_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is checked before the log alone, so that a record replays the same under another limit."""
    state, results = after(create("a"), create("a"), create("b"), delete_collection(1), create("c"))
    assert [result.refusal.reason for result in results] == ["", "COLLECTION_EXISTS", "", "", ""]
    monkeypatch.setattr(limits, "COLLECTIONS_MAX", 2)
    refused = state.creation_refusal("d")
    assert refused is not None
    assert refused.reason == "LIMIT_EXCEEDED"
    replayed, _ = after(create("a"), create("b"), create("c"))
    assert sorted(replayed.collections) == ["a", "b", "c"]


def test_an_update_that_would_grow_a_payload_over_the_limit_changes_none_and_names_the_same_point() -> None:
    """Whatever rows the points lie in: those depend on when dead rows were reclaimed."""
    large = b'{"a":"' + b"x" * (limits.PAYLOAD_BYTES_MAX - 20) + b'"}'
    commands = [
        create("c"),
        upsert(1, {"z": b"{}", "y": b"{}"}),
        delete_ids(1, ["z"]),
        delete_ids(1, ["y"]),
        upsert(1, {"b": large, "small": b'{"n":1}'}, seed=1),
        upsert(1, {"a": large}, seed=2),
    ]
    update = Command(time_unix_ms=1)
    update.update_payloads.collection_uid = 1
    update.update_payloads.filter.all_of.SetInParent()
    update.update_payloads.merge_json = b'{"more":"' + b"y" * 100 + b'"}'
    log = entries([*commands, update])
    results = []
    for reclaims in (False, True):
        state = StateMachine()
        for entry in log[:-1]:
            apply(state, entry)
            if reclaims:
                state.collections["c"].reclaim()
        before = dump(state)
        results.append(apply(state, log[-1]))
        assert dump(state) == before
    assert results[0] == results[1]
    assert results[0].refusal.reason == "LIMIT_EXCEEDED"
    assert "'a'" in results[0].refusal.message


def test_what_it_does_not_know_is_refused_loudly() -> None:
    """A record type or a kind of command of a newer version: not passed over."""
    state = StateMachine()
    with pytest.raises(UnsupportedFormatError, match="record 1 has type 9"):
        next(state.apply(LogEntry(1, Record(9, b""), 0)))
    newer = Command(time_unix_ms=1).SerializeToString() + b"\xea\x3f\x00"  # field 1021, length-delimited, empty
    with pytest.raises(UnsupportedFormatError, match="record 1 holds a command of a kind"):
        next(state.apply(LogEntry(1, Record(COMMAND_RECORD, newer), 0)))
    assert state.collections == {}


def test_a_point_replaced_again_and_again_with_the_same_expiry_expires_once() -> None:
    """Its rows take turns, so that the same row comes up twice among those that expire."""
    state = StateMachine()
    for entry in entries([create("c"), *[upsert(1, {"a": b""}, seed=n, expires_at_unix_ms=50) for n in range(9)]]):
        apply(state, entry)
        state.collections["c"].reclaim()
    assert state.collections["c"].expired_ids(49, 10) == []
    assert state.collections["c"].expired_ids(50, 10) == ["a"]
    assert state.collections["c"].expired_ids(50, 10) == ["a"]  # reported until it is deleted
    sweep = expire_many()
    sweep.expire_points.ids.extend(["a", "a"])
    assert apply(state, entries([sweep], after=10)[0]).deleted_count == 1
    assert state.collections["c"].expired_ids(50, 10) == []


def test_points_whose_expiry_is_moved_on_leave_no_trail() -> None:
    """Sessions are written again and again with a later expiry: memory stays in proportion to the points."""
    state = StateMachine()
    ids = MANY[:50]
    far = 10**15
    commands = [upsert(1, dict.fromkeys(ids, b""), seed=1, expires_at_unix_ms=far + n) for n in range(100)]
    for entry in entries(
        [create("c"), *commands, upsert(1, {MANY[7]: b""}), upsert(1, {MANY[3]: b""}, expires_at_unix_ms=far)]
    ):
        apply(state, entry)
        state.collections["c"].reclaim()
    collection = state.collections["c"]
    assert len(collection._expiring) < 2_000
    assert collection.expired_ids(far - 1, 100) == []
    assert collection.expired_ids(far, 100) == [MANY[3]]
    assert sorted(collection.expired_ids(far + 99, 100)) == sorted(set(ids) - {MANY[7]})


def test_a_damaged_collection_makes_way_when_its_deletion_is_replayed() -> None:
    """The log behind the checkpoint may delete it and make it anew: the new one is whole."""
    state = StateMachine()
    state.damaged["c"] = (1, "bad bytes")
    commands = [upsert(1, {"lost": b""}), create("c"), delete_collection(1), create("c"), upsert(9, {"kept": b""})]
    results = [apply(state, entry) for entry in entries(commands, after=5)]
    assert [result.refusal.reason for result in results] == ["COLLECTION_DAMAGED", "COLLECTION_EXISTS", "", "", ""]
    assert state.damaged == {}
    assert list(state.collections["c"].row_of) == ["kept"]


def test_points_may_lack_vectors_and_a_replacement_takes_all_of_the_old_point_away() -> None:
    command = upsert(1, {"a": b'{"n":1}', "b": b""})
    command.upsert_points.vectors.add(name="other", point_indexes=[1], rows=bytes(4 * DIMENSION))
    state, _ = after(create("c", named=["other"]), command, upsert(1, {"b": b""}, seed=3))
    held = dump(state)["collections"]["c"]["points"]
    assert {name: sorted(vectors) for name, (*_, vectors) in held.items()} == {"a": [""], "b": [""]}
    assert nearest(state, "c", sequence=3, vector="other") == []
    assert [name for name, _ in nearest(state, "c", sequence=2, vector="other")] == ["b"]
