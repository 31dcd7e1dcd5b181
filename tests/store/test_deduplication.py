"""Request ids: a repeat returns the first result and changes nothing, for as long as the window promises and no longer."""

from __future__ import annotations

import pytest

from tests.store.support import apply, create, dump, entries, upsert
from vecmem import limits
from vecmem.store.deduplication import DeduplicationWindow
from vecmem.store.state_machine import StateMachine
from vecmem.store.v1 import command_pb2

WINDOW = limits.DEDUPLICATION_WINDOW_MS


def remember(window: DeduplicationWindow, request_id: str, time_unix_ms: int, sequence: int = 1) -> None:
    window.remember(remembered(request_id, time_unix_ms, command_pb2.CommandResult(sequence=sequence)))


def remembered(request_id: str, time_unix_ms: int, result: command_pb2.CommandResult) -> command_pb2.DeduplicationEntry:
    return command_pb2.DeduplicationEntry(
        request_id=request_id,
        time_unix_ms=time_unix_ms,
        request_fingerprint=7,
        sequence=result.sequence,
        result=result,
    )


def test_a_repeat_returns_the_first_result_and_another_request_is_refused() -> None:
    state = StateMachine()
    first = upsert(1, {"a": b""}, seed=1, request_id="r", time_unix_ms=1_000)
    repeat = upsert(1, {"a": b""}, seed=1, request_id="r", time_unix_ms=1_000 + WINDOW)
    other = upsert(1, {"b": b""}, seed=2, request_id="r", time_unix_ms=1_000 + WINDOW)
    late = upsert(1, {"a": b""}, seed=1, request_id="r", time_unix_ms=1_001 + WINDOW)
    log = entries([create("c"), first, repeat, other, late])
    results = [apply(state, entry) for entry in log]
    assert results[1].inserted_count == 1
    assert results[2] == results[1]
    assert results[3].refusal.reason == "REQUEST_ID_REUSED"
    # Out of the window it is a new request, and is remembered anew.
    assert (results[4].sequence, results[4].updated_count) == (5, 1)
    assert state.deduplication.find("r", 1_001 + WINDOW) is not None
    assert list(dump(state)["collections"]["c"]["points"]) == ["a"]


def test_a_refusal_is_remembered_as_well() -> None:
    """Else a retry could succeed after the caller was told that the request had failed."""
    state = StateMachine()
    refused = upsert(2, {"a": b""}, seed=1, request_id="r")
    log = entries([create("c"), refused, create("d"), refused])
    results = [apply(state, entry) for entry in log]
    assert results[1].refusal.reason == "COLLECTION_NOT_FOUND"
    assert results[3] == results[1]


def test_results_leave_by_age_and_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEDUPLICATION_ENTRIES_MAX", 3)
    window = DeduplicationWindow()
    for number in range(4):
        remember(window, f"r{number}", 1_000 + number)
    assert [entry.request_id for entry in window.entries()] == ["r1", "r2", "r3"]
    assert window.find("r0", 1_000) is None
    remember(window, "r4", 1_002 + WINDOW)
    assert [entry.request_id for entry in window.entries()] == ["r2", "r3", "r4"]
    assert window.find("r2", 1_002 + WINDOW) is not None
    assert window.find("r2", 1_003 + WINDOW) is None
    remember(window, "r5", 1_004 + 2 * WINDOW)
    assert [entry.request_id for entry in window.entries()] == ["r5"]


def test_a_request_id_seen_again_moves_to_the_end() -> None:
    window = DeduplicationWindow()
    for sequence, request_id in enumerate(["a", "b", "a"], start=1):
        remember(window, request_id, sequence, sequence)
    assert [(entry.request_id, entry.sequence) for entry in window.entries()] == [("b", 2), ("a", 3)]
    assert list(DeduplicationWindow(window.entries()).entries()) == list(window.entries())


def test_results_leave_by_size_and_a_restart_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that lists thousands of conflicts is large; the newest stays however large it is."""
    monkeypatch.setattr(limits, "DEDUPLICATION_BYTES_MAX", 2_000)
    window = DeduplicationWindow()
    conflicts = [command_pb2.Conflict(id="p" * 50, expected_version=1)] * 12
    for number in range(4):
        window.remember(
            remembered(f"r{number}", 1_000, command_pb2.CommandResult(sequence=number, conflicts=conflicts))
        )
    assert [entry.request_id for entry in window.entries()] == ["r2", "r3"]
    restarted = DeduplicationWindow(list(window.entries()))
    for each in (window, restarted):
        remember(each, "r4", 1_001)
        assert [entry.request_id for entry in each.entries()] == ["r2", "r3", "r4"]
        each.remember(remembered("r5", 1_002, command_pb2.CommandResult(sequence=5, conflicts=conflicts * 5)))
        assert [entry.request_id for entry in each.entries()] == ["r5"]
