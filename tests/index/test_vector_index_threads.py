"""Searching threads, the maintaining thread and the writing one together, as in a server."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

import numpy as np
import pytest

from tests.index.support import FLAT, HNSWLIB, KERNEL, Kind, MiniStore, Snapshot, check, recall
from vecmem.index import fetching, hnsw, kernel, planner
from vecmem.index.metric import Metric
from vecmem.index.row_set import RowSet

if TYPE_CHECKING:
    from collections.abc import Iterator


DIMENSION = 8
WRITES = 1_500
WAIT_SECONDS = 60
"""Only a failing test waits so long."""


@pytest.fixture(autouse=True)
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs and rebuilds for small sets, and threads that take turns often."""
    monkeypatch.setattr(fetching, "GRAPH_COMPARISONS_PER_EF", 0)
    monkeypatch.setattr(planner, "_graph_cost_us", lambda *_: -1.0)
    monkeypatch.setattr(kernel, "REBUILD_ROWS_MIN", hnsw.REBUILD_ROWS_MIN)
    monkeypatch.setattr(hnsw, "REBUILD_ROWS_MIN", 40)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    yield
    sys.setswitchinterval(interval)


class Crowd:
    """Snapshots are taken by the writer, as the event loop does, and searched by threads until told to stop."""

    def __init__(self, store: MiniStore, seed: int) -> None:
        self.store = store
        self.errors: list[BaseException] = []
        self.plans: list[str] = []
        self.recalls: list[float] = []
        self.rebuilds = 0
        self._seed = seed
        self._stop = threading.Event()
        self._snapshots: list[Snapshot] = []
        self._offered = threading.Condition()
        self._threads = [threading.Thread(target=self._guard, args=(self._search, number)) for number in range(3)]
        self._threads.append(threading.Thread(target=self._guard, args=(self._maintain, 0)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._offered:
            self._offered.notify_all()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a thread hangs"
        for snapshot in self._snapshots:
            snapshot.end()

    def offer(self) -> None:
        """Hand a snapshot of this moment to the searching threads, unless they are behind."""
        if len(self._snapshots) < 4:
            snapshot = self.store.snapshot()
            with self._offered:
                self._snapshots.append(snapshot)
                self._offered.notify()

    def _guard(self, work: object, number: int) -> None:
        try:
            work(number)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.errors.append(error)

    def _search(self, number: int) -> None:
        rng = np.random.default_rng([self._seed, number])
        store = self.store
        while True:
            with self._offered:
                while not self._snapshots:
                    if self._stop.is_set():
                        return
                    self._offered.wait()
                snapshot = self._snapshots.pop(0)
            try:
                for exact in (True, False):
                    query = rng.normal(size=DIMENSION).astype(np.float32)
                    limit = int(rng.choice([1, 10, 400]))
                    # Bits of rows that the view does not see may be anything.
                    allowed = rng.random(snapshot.view.row_count) < 0.5 if rng.random() < 0.3 else None
                    chosen = None if allowed is None else RowSet.of_mask(allowed)
                    request = store.request(query, limit, ef=(0, 40, 90)[number], exact=exact, allowed=chosen)
                    result = store.index.search([request], snapshot.view)[0]
                    points = snapshot.points
                    if allowed is not None:
                        seen = np.flatnonzero(snapshot.view.visible_mask() & allowed).tolist()
                        points = {snapshot.view.ids[row]: points[snapshot.view.ids[row]] for row in seen}
                    ids = [snapshot.view.ids[row] for row in result.rows]
                    hits = list(zip(ids, result.scores, strict=True))
                    check(store.metric, points, query, limit, hits, exact=result.plan.kind != "graph")
                    self.plans.append(result.plan.kind)
                    self.recalls.append(recall(store.metric, points, query, limit, ids))
            finally:
                snapshot.end()

    def _maintain(self, _number: int) -> None:
        rng = random.Random(self._seed)
        rebuilding = False
        while not self._stop.is_set():
            if not self.store.maintain(slice_rows=rng.choice([1, 8, 64]), threads=rng.choice([1, 2])):
                self._stop.wait(0.001)
            was, rebuilding = rebuilding, self.store.index.statistics().rebuilding
            self.rebuilds += was and not rebuilding


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
@pytest.mark.parametrize(
    ("kind", "coded_rows"),
    [
        pytest.param(FLAT, 0, id="flat"),
        pytest.param(HNSWLIB, 0, id="hnswlib"),
        pytest.param(KERNEL, 1_024, id="kernel"),
        pytest.param(KERNEL, 4, id="kernel with a coded tail"),
    ],
)
def test_every_search_sees_its_snapshot(
    kind: Kind, coded_rows: int, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows die, are forgotten and reused, the tail drains, graphs are rebuilt; afterwards all is as the oracle has it."""
    monkeypatch.setattr(kernel, "CODED_ROWS_MIN", coded_rows)
    monkeypatch.setattr(kernel, "CODED_ROWS_MAX", 4 * coded_rows)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    store = MiniStore(DIMENSION, metric, *kind)

    def some(count: int) -> dict[str, np.ndarray]:
        vectors = rng.normal(size=(count, DIMENSION)).astype(np.float32)
        return dict(zip((f"p{number:04d}" for number in rng.choice(600, count, replace=False)), vectors, strict=True))

    def done(crowd: Crowd, step: int) -> bool:
        """Whether enough was written, and by then a graph was rebuilt and searched; on a busy machine that takes longer."""
        enough = kind[0] is None or (crowd.rebuilds > 0 and "graph" in crowd.plans)
        return step >= WRITES and (time.monotonic() > deadline or (enough and len(crowd.plans) > 50))

    store.upsert(some(300))
    deadline = time.monotonic() + WAIT_SECONDS
    with Crowd(store, seed) as crowd:
        for step in itertools.count():
            if done(crowd, step):
                break
            crowd.offer()
            store.upsert(some(int(rng.integers(1, 12))))
            if step % 4 == 0:
                names = sorted(store.points)
                store.delete(names[int(rng.integers(7)) :: 40])
            if step % 3 == 0:
                store.reclaim()
            if crowd.errors:
                break
    if crowd.errors:
        raise crowd.errors[0]
    assert len(crowd.plans) > 50
    assert np.mean(crowd.recalls) > 0.97
    if kind[0] is not None:
        assert "graph" in crowd.plans
        assert crowd.rebuilds > 0
    store.settle()
    statistics = store.index.statistics()
    assert statistics.vector_count == len(store.points)
    if kind[0] is not None:
        assert (statistics.graph_row_count, statistics.tail_row_count) == (len(store.points), 0)
    for query in rng.normal(size=(20, DIMENSION)).astype(np.float32):
        result, ids = store.search(query, 10, exact=True)
        check(metric, store.points, query, 10, list(zip(ids, result.scores, strict=True)), exact=True)
        assert recall(metric, store.points, query, 10, store.search(query, 10)[1]) > 0.7
