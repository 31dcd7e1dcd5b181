"""Watchers get every record that touches what they watch, in order, once, however they fall behind."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmem import limits
from vecmem.errors import ChangesNotRetainedError
from vecmem.store import watching
from vecmem.store.changes import POINT, Change, ChangeKind, ChangeWindow, Noted, RecordChanges
from vecmem.store.watching import ChangeHub, Watched, Watcher

KEYS = [b"a", b"ab", b"abc", b"b", b"ba"]


def record(sequence: int, *changes: tuple[int, int, bytes]) -> RecordChanges:
    noted = Noted()
    for holder, number, name in changes:
        noted.add(0, ChangeKind.WRITTEN, holder, number, name)
    return RecordChanges(sequence, 0, bytes(noted.packed))


def collection_name(change: Change) -> str:
    """The name of the collection of a point."""
    return f"c{change.number}"


def seen(watcher: Watcher) -> list[tuple[int, bytes]]:
    """What a watcher is told now."""
    return [
        (one.sequence, change.name)
        for one in watcher.records()
        for change in one.changes()
        if watcher.watched.has(change, collection_name(change))
    ]


changes = st.one_of(
    st.tuples(st.just(1), st.integers(1, 9), st.sampled_from(KEYS)),
    st.tuples(st.just(POINT), st.integers(1, 2), st.sampled_from([b"p", b"q", b""])),
)
watched = st.builds(
    Watched,
    keys=st.frozensets(st.sampled_from(KEYS)),
    prefixes=st.lists(st.sampled_from([b"", b"a", b"ab", b"c"]), max_size=2, unique=True).map(tuple),
    collections=st.frozensets(st.sampled_from(["c1", "c2"])),
)


@settings(max_examples=300)
@given(
    st.lists(st.lists(changes, max_size=4), max_size=30),
    st.lists(watched, min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 3, 1_000]),
    st.sampled_from([50, 1_000]),
    st.sampled_from([0, 20, 1_000]),
)
def test_everything_of_interest_comes_once_and_in_order(
    history: list[list[tuple[int, int, bytes]]],
    interests: list[Watched],
    values: random.Random,
    pending_max: int,
    pending_bytes_max: int,
    indexed_max: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "PENDING_RECORDS_MAX", pending_max)
        patch.setattr(watching, "PENDING_BYTES_MAX", pending_bytes_max)
        patch.setattr(watching, "CATCH_UP_RECORDS", 2)
        patch.setattr(watching, "INDEXED_BYTES_MAX", indexed_max)
        window = ChangeWindow()
        hub = ChangeHub(window, collection_name)
        watchers: list[tuple[int, Watcher, list[tuple[int, bytes]]]] = []
        records: list[RecordChanges] = []
        for sequence, made in enumerate(history, start=1):
            if made:
                records.append(record(sequence, *made))
                window.add(records[-1])
                hub.told(records[-1])
            if interests and values.random() < 0.5:
                start = values.randrange(sequence + 1)
                watchers.append((start, hub.watch(interests.pop(), start), []))
            for _, watcher, told in watchers:
                if values.random() < 0.3:
                    told.extend(seen(watcher))
        for start, watcher, told in watchers:
            while watcher.behind or watcher.pending:
                told.extend(seen(watcher))
            assert told == [
                (one.sequence, change.name)
                for one in records
                if one.sequence > start
                for change in one.changes()
                if watcher.watched.has(change, collection_name(change))
            ]
            hub.forget(watcher)
        assert len(hub) == 0
        assert not hub._by_key
        assert not hub._by_prefix
        assert not hub._by_collection


def test_what_is_of_no_interest_wakes_nobody() -> None:
    window = ChangeWindow()
    hub = ChangeHub(window, collection_name)
    mine, others = hub.watch(Watched(keys=frozenset([b"a"])), 0), hub.watch(Watched(prefixes=(b"b",)), 0)
    assert mine.records() == others.records() == []
    for sequence, key in enumerate([b"b", b"a", b"bc", b"c"], start=1):
        window.add(record(sequence, (1, 1, key)))
        hub.told(window.after(sequence - 1, 1)[0])
    assert mine.arrived.is_set()
    assert [one.sequence for one in mine.pending] == [2]
    assert [one.sequence for one in others.pending] == [1, 3]


def test_a_record_comes_once_however_many_of_its_changes_are_of_interest() -> None:
    window = ChangeWindow()
    hub = ChangeHub(window, collection_name)
    watcher = hub.watch(Watched(keys=frozenset([b"a"]), prefixes=(b"", b"a"), collections=frozenset(["c7"])), 0)
    assert watcher.records() == []
    several = record(1, (1, 1, b"a"), (1, 1, b"ab"), (POINT, 7, b"p"), (POINT, 8, b"p"))
    window.add(several)
    hub.told(several)
    assert seen(watcher) == [(1, b"a"), (1, b"ab"), (1, b"p")]
    assert seen(watcher) == []


def test_who_is_too_slow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHANGES_BYTES_MAX", 1_000)
    monkeypatch.setattr(watching, "PENDING_RECORDS_MAX", 3)
    window = ChangeWindow()
    hub = ChangeHub(window, collection_name)
    watcher = hub.watch(Watched(prefixes=(b"",)), 0)
    assert watcher.records() == []
    for sequence in range(1, 100):
        window.add(record(sequence, (1, 1, b"k")))
        hub.told(window.after(sequence - 1, 1)[0])
    with pytest.raises(ChangesNotRetainedError) as told:
        watcher.records()
    first = int(told.value.metadata["first_sequence"])
    assert first == window.complete_after + 1
    late = hub.watch(Watched(prefixes=(b"",)), first - 1)
    assert seen(late) == [(sequence, b"k") for sequence in range(first, 100)]


def test_what_was_of_no_interest_need_not_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHANGES_BYTES_MAX", 2_000)
    monkeypatch.setattr(watching, "PENDING_RECORDS_MAX", 3)
    window = ChangeWindow()
    hub = ChangeHub(window, collection_name)
    watcher = hub.watch(Watched(keys=frozenset([b"k"])), 0)
    assert watcher.records() == []
    for sequence in range(1, 106):
        window.add(record(sequence, (1, 1, b"other" if sequence <= 100 else b"k")))
        hub.told(window.after(sequence - 1, 1)[0])
    assert window.complete_after > 0
    assert watcher.behind
    assert seen(watcher) == [(sequence, b"k") for sequence in range(101, 106)]


def test_points_are_not_keys() -> None:
    everything, collection = Watched(prefixes=(b"",)), Watched(collections=frozenset(["c3"]))
    point, key = Change(0, 1, POINT, 3, b"k"), Change(0, 1, 1, 3, b"k")
    assert everything.has(key, None)
    assert not everything.has(point, "c3")
    assert collection.has(point, "c3")
    assert not collection.has(point, "c4")
    assert not collection.has(point, None)
    assert not collection.has(key, None)
