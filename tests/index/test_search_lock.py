"""The lock around hnswlib: who may be inside together, and that everybody gets in."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vecmem.index.graph import Graph, SearchLock
from vecmem.index.metric import Metric
from vecmem.index.parameters import HnswParameters

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_SECONDS = 30
"""Only a failing test waits so long."""


class WatchedIndex:
    """An hnswlib index that notes who is inside it together with whom."""

    def __init__(self, index: object) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._inside: list[str] = []
        self.ef = 0
        self.violations: list[str] = []
        self.together_max = 0
        self.calls = {"search": 0, "add": 0, "delete": 0}

    @contextmanager
    def _visit(self, what: str) -> Iterator[None]:
        with self._lock:
            if self._inside and (what != "search" or set(self._inside) != {"search"}):
                self.violations.append(f"{what} beside {self._inside}")
            self._inside.append(what)
            self.together_max = max(self.together_max, len(self._inside))
            self.calls[what] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside.remove(what)

    def set_ef(self, ef: int) -> None:
        with self._lock:
            if self._inside:
                self.violations.append(f"ef changes beside {self._inside}")
            self.ef = ef
        self._index.set_ef(ef)  # type: ignore[attr-defined]

    def knn_query(self, query: np.ndarray, k: int, num_threads: int) -> object:
        with self._visit("search"):
            ef = self.ef
            found = self._index.knn_query(query, k=k, num_threads=num_threads)  # type: ignore[attr-defined]
            if self.ef != ef:
                self.violations.append(f"ef {self.ef} in a search of {ef}")
            return found

    def add_items(self, *arguments: object, **options: object) -> None:
        with self._visit("add"):
            self._index.add_items(*arguments, **options)  # type: ignore[attr-defined]

    def mark_deleted(self, label: int) -> None:
        with self._visit("delete"):
            self._index.mark_deleted(label)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._index, name)


def test_insertions_are_alone_and_searches_agree_on_ef() -> None:
    """Four searching threads with three values of ef beside one that inserts and deletes, inside hnswlib itself."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3_000, 16)).astype(np.float32)
    graph = Graph(16, Metric.EUCLIDEAN, HnswParameters(m=8, ef_construction=40))
    graph.add(vectors[:500], threads=1)
    watched = WatchedIndex(graph._index)
    graph._index = watched
    stop = threading.Event()
    short: list[int] = []

    def search(ef: int) -> None:
        own = np.random.default_rng(ef)
        while not stop.is_set():
            labels = graph.search(vectors[own.integers(3_000)], 10, ef)
            if len(labels) < 10:
                short.append(len(labels))

    threads = [threading.Thread(target=search, args=(ef,)) for ef in (20, 20, 40, 80)]
    for thread in threads:
        thread.start()
    for start in range(500, 3_000, 50):
        graph.add(vectors[start : start + 50], threads=2)
        graph.delete(np.arange(start - 500, start - 490))
    stop.set()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert watched.violations == []
    assert short == []
    assert watched.calls["add"] == 50
    assert watched.calls["delete"] == 500
    assert watched.calls["search"] > 50
    assert graph.label_count == 3_000


class Guest:
    """A thread that enters the lock and stays until it is told to leave."""

    def __init__(self, lock: SearchLock, ef: int | None) -> None:
        self.inside = threading.Event()
        self._leave = threading.Event()
        self._lock = lock
        self._ef = ef
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._lock.alone() if self._ef is None else self._lock.shared(self._ef):
            self.inside.set()
            self._leave.wait(WAIT_SECONDS)

    def enters(self) -> bool:
        return self.inside.wait(WAIT_SECONDS)

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(WAIT_SECONDS)


def queued(lock: SearchLock, ef: int | None) -> Guest:
    """A guest that has to wait: returns once it is in the queue."""
    length = len(lock._queue)
    guest = Guest(lock, ef)
    for _ in range(WAIT_SECONDS * 1_000):
        if len(lock._queue) > length:
            return guest
        guest._leave.wait(0.001)
    raise AssertionError("it did not have to wait")


@pytest.fixture
def lock() -> SearchLock:
    return SearchLock(lambda _ef: None)


def test_searches_of_one_ef_are_inside_together(lock: SearchLock) -> None:
    """Nobody waits."""
    guests = [Guest(lock, 64) for _ in range(3)]
    assert all(guest.enters() for guest in guests)
    for guest in guests:
        guest.leave()


def test_a_search_with_another_ef_is_not_starved(lock: SearchLock) -> None:
    """Searches of the ef inside that come after it wait behind it, though they would fit."""
    first = Guest(lock, 64)
    assert first.enters()
    other = queued(lock, 128)
    late = queued(lock, 64)
    first.leave()
    assert other.enters()
    assert not late.inside.is_set()
    other.leave()
    assert late.enters()
    late.leave()


def test_an_insertion_is_not_starved_and_starves_nobody(lock: SearchLock) -> None:
    """It gets in before searches that come later, and they before the next insertion."""
    first = Guest(lock, 64)
    assert first.enters()
    insertion = queued(lock, None)
    search = queued(lock, 64)
    next_insertion = queued(lock, None)
    last = queued(lock, 32)
    first.leave()
    assert insertion.enters()
    assert not search.inside.is_set()
    insertion.leave()
    assert search.enters()
    assert not next_insertion.inside.is_set()
    search.leave()
    assert next_insertion.enters()
    assert not last.inside.is_set()
    next_insertion.leave()
    assert last.enters()
    last.leave()


def test_waiting_searches_of_one_ef_get_in_together(lock: SearchLock) -> None:
    """Also those with another in between."""
    insertion = Guest(lock, None)
    assert insertion.enters()
    guests = [queued(lock, ef) for ef in (64, 128, 64)]
    insertion.leave()
    assert guests[0].enters()
    assert guests[2].enters()
    assert not guests[1].inside.is_set()
    guests[0].leave()
    assert not guests[1].inside.is_set()
    guests[2].leave()
    assert guests[1].enters()
    guests[1].leave()


def test_an_error_inside_gives_the_lock_back(lock: SearchLock) -> None:
    """Of either kind."""
    with pytest.raises(ZeroDivisionError), lock.alone():
        _ = 1 // 0
    with pytest.raises(ZeroDivisionError), lock.shared(10):
        _ = 1 // 0
    guest = Guest(lock, None)
    assert guest.enters()
    guest.leave()
