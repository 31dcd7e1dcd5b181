"""Records of operations on keys: request ids, what reads between writes, and records that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.support import Command, apply, dump, entries
from tests.support.keyspace import do, operation, refusal
from vecmem import limits
from vecmem.errors import UnsupportedFormatError
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.state_machine import StateMachine
from vecmem.v1 import pipeline_pb2


def command(*operations: pipeline_pb2.Operation, time_unix_ms: int = 1, request_id: str = "") -> Command:
    built = Command(time_unix_ms=time_unix_ms, request_id=request_id, request_fingerprint=7)
    built.run_operations.operations.extend(operations)
    return built


def add(key: bytes = b"n", request_id: str = "") -> pipeline_pb2.Operation:
    built = operation("add_integer", key=key, delta=1)
    built.request_id = request_id
    return built


def test_an_operation_that_comes_again_gives_its_first_result_in_whatever_company() -> None:
    state = StateMachine()
    log = entries([command(add(request_id="a"), add(request_id="b")), command(add(), add(request_id="b"))])
    first, second = (apply(state, entry) for entry in log)
    assert [result.add_integer.value for result in first.operation_results] == [1, 2]
    assert [result.add_integer.value for result in second.operation_results] == [3, 2]
    late = command(add(request_id="b"), time_unix_ms=2 + limits.DEDUPLICATION_WINDOW_MS)
    [entry] = entries([late], after=2, running_crc=log[-1].running_crc)
    assert apply(state, entry).operation_results[0].add_integer.value == 4


def test_a_record_in_which_a_request_id_comes_twice_does_it_once() -> None:
    state = StateMachine()
    [entry] = entries([command(add(request_id="a"), add(request_id="a"))])
    assert [result.add_integer.value for result in apply(state, entry).operation_results] == [1, 1]


def test_what_is_done_with_a_repeated_result_changes_nothing_that_is_remembered() -> None:
    """The server adds a header to what it answers."""
    state = StateMachine()
    for entry in entries([command(add(), request_id="r")] * 2):
        result = apply(state, entry)
        before = dump(state)
        result.operation_results[0].add_integer.header.server_time_unix_ms = 5
        assert dump(state) == before


def test_reads_run_in_their_places_between_writes() -> None:
    state = StateMachine()
    seen: list[tuple[int, int, bytes | None]] = []

    def observer(place: int, time_unix_ms: int) -> Iterator[None]:
        seen.append((place, time_unix_ms, state.keyspace.string(b"n", time_unix_ms)))
        yield

    [entry] = entries([command(add(), add(), add(), time_unix_ms=9)])
    for _ in state.apply(entry, observer):
        pass
    assert seen == [(0, 9, None), (1, 9, b"1"), (2, 9, b"2")]


def test_a_record_of_a_newer_version_is_refused_by_name_before_any_of_it_is_done() -> None:
    state = StateMachine()
    [entry] = entries([command(add(), pipeline_pb2.Operation())])
    with pytest.raises(UnsupportedFormatError, match="record 1"):
        apply(state, entry)
    assert state.keyspace.values == {}


def test_damaged_keys_refuse_records_and_let_others_be() -> None:
    state = StateMachine()
    state.keyspace_damage = "lost"
    expire = Command(time_unix_ms=1)
    expire.expire_keys.keys.append(b"k")
    results = [apply(state, entry) for entry in entries([command(add()), expire])]
    assert {result.refusal.reason for result in results} == {"KEYSPACE_DAMAGED"}


def test_no_operation_combines_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in one piece, in every replay as well; a set that is named twice counts twice."""
    monkeypatch.setattr(limits, "COMBINED_MEMBERS_MAX", 5)
    keyspace = Keyspace()
    do(keyspace, "add_set_members", key=b"{k}s", members=[b"a", b"b", b"c"])
    do(keyspace, "add_sorted_set_members", key=b"{k}z", members=[{"member": b"a", "score": 1}, {"member": b"b"}])
    union = {"keys": [b"{k}s", b"{k}z"], "combination": 1}
    assert do(keyspace, "combine_sorted_sets", **union).member_count == 3
    twice = {"keys": [b"{k}s", b"{k}s"], "combination": 1}
    for kind, fields in (
        ("combine_sets", twice),
        ("store_combined_sets", {**twice, "destination": b"{k}d"}),
        ("count_set_intersection", {"keys": twice["keys"]}),
        ("combine_sorted_sets", {**union, "keys": [b"{k}s", b"{k}z", b"{k}z"]}),
        ("store_combined_sorted_sets", {**twice, "destination": b"{k}d"}),
    ):
        assert refusal(keyspace, kind, **fields) == ("LIMIT_EXCEEDED", "keys")
