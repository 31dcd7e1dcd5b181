"""Recall floors of the HNSW index, by score with ties counted, truth from the flat index, in every phase of a collection's life.

The data are the project's own slice of real vectors under cosine, and the same vectors with lengths of their own, and moved off the
origin, under dot and euclid, where lengths and places count.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.index.support import FLAT, KERNEL, MiniStore
from vecmem.index import planner
from vecmem.index.metric import Metric

DATA = Path(__file__).parents[2] / "bench" / "data"
LIMIT = 10
QUERIES = 60
METRICS = [pytest.param(metric, id=metric.name.lower()) for metric in Metric]


@pytest.fixture(autouse=True)
def graph_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collections of this size may be worth a scan: here the graph has to answer."""
    monkeypatch.setattr(planner, "_graph_cost_us", lambda *_: -1.0)


class Pair:
    """The same points in a flat index and in a graph."""

    def __init__(self, metric: Metric, vectors: np.ndarray, queries: np.ndarray) -> None:
        self.vectors = vectors
        self.queries = queries
        self.truth = MiniStore(vectors.shape[1], metric, *FLAT)
        self.store = MiniStore(vectors.shape[1], metric, *KERNEL)
        self.rng = np.random.default_rng(1)

    def upsert(self, names: list[int], vectors: np.ndarray) -> None:
        points = {f"p{name:05d}": vector for name, vector in zip(names, vectors, strict=True)}
        self.truth.upsert(points)
        self.store.upsert(points)

    def delete(self, names: list[str]) -> None:
        self.truth.delete(names)
        self.store.delete(names)

    def fill(self, count: int | None = None) -> None:
        chosen = self.vectors[:count]
        self.upsert(list(range(len(chosen))), chosen)
        self.store.settle()

    def recall(self, *, passing: set[str] | None = None, limit: int = LIMIT, ef: int = 0) -> tuple[float, set[str]]:
        """Mean recall over the queries, and the plans that were used."""
        masks: list[dict[str, object]] = [{}, {}]
        if passing is not None:
            masks = [{"allowed": side.mask(passing.__contains__)} for side in (self.truth, self.store)]
        shares, plans = [], set()
        for query in self.queries:
            wanted = self.truth.search(query, limit, **masks[0])[0].scores
            result, ids = self.store.search(query, limit, ef=ef, **masks[1])
            assert len(ids) == len(wanted)
            assert passing is None or set(ids) <= passing
            plans.add(result.plan.kind)
            worst = wanted[-1] if wanted else 0.0
            higher = self.store.metric.higher_is_nearer
            shares.append(np.mean([score >= worst if higher else score <= worst for score in result.scores] or [1.0]))
        return float(np.mean(shares)), plans


def data(metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    vectors = np.load(DATA / "package_vectors.npy").astype(np.float32)
    queries = np.load(DATA / "question_vectors.npy").astype(np.float32)[:QUERIES]
    if metric is Metric.DOT:
        vectors *= np.random.default_rng(2).uniform(0.7, 1.3, size=(len(vectors), 1)).astype(np.float32) * 1e-3
    if metric is Metric.EUCLIDEAN:
        vectors, queries = 10 * vectors + 1, 10 * queries + 1
    return vectors, queries


@pytest.fixture(scope="module", params=METRICS)
def fresh(request: pytest.FixtureRequest) -> Pair:
    """Everything, freshly built; tests leave it as it is."""
    pair = Pair(request.param, *data(request.param))
    pair.fill()
    return pair


@pytest.fixture(params=METRICS)
def half(request: pytest.FixtureRequest) -> Pair:
    """Half of it, for tests that change it."""
    pair = Pair(request.param, *data(request.param))
    pair.fill(2_500)
    return pair


def clusters(pair: Pair, count: int = 50) -> np.ndarray:
    """The nearest of `count` points for each point: clusters of a kind."""
    centres = pair.vectors[np.random.default_rng(3).choice(len(pair.vectors), count, replace=False)]
    return np.argmax(pair.vectors @ centres.T / np.linalg.norm(centres, axis=1), axis=1)


def test_after_a_fresh_build(fresh: Pair) -> None:
    """At the default effort, at less, and at more."""
    recall, plans = fresh.recall()
    assert plans == {"graph"}
    assert recall >= 0.97
    assert fresh.recall(ef=24)[0] >= 0.92
    recall, plans = fresh.recall(ef=150)
    assert plans == {"graph"}
    assert recall >= 0.985


@pytest.mark.parametrize("limit", [30, 100])
def test_long_results(fresh: Pair, limit: int) -> None:
    """The last hits are as good as the first."""
    recall, plans = fresh.recall(limit=limit)
    assert plans == {"graph"}
    assert recall >= 0.96


def test_after_a_restart(fresh: Pair, tmp_path: Path) -> None:
    """The graph that was saved answers, without a rebuild."""
    loaded = Pair(fresh.store.metric, fresh.vectors, fresh.queries)
    loaded.truth, loaded.store = fresh.truth, fresh.store.restarted(tmp_path)
    assert not loaded.store.index.has_work()
    recall, plans = loaded.recall()
    assert plans == {"graph"}
    assert recall >= 0.97


def chosen_by(kind: str, percent: float, pair: Pair) -> set[str]:
    """Points drawn at random, whole clusters, or the clusters least like the first query."""
    rng = np.random.default_rng(4)
    count = int(len(pair.vectors) * percent / 100)
    if kind == "random":
        chosen = rng.choice(len(pair.vectors), count, replace=False)
    else:
        cluster_of = clusters(pair)
        similarity = pair.vectors @ pair.queries[0]
        order = rng.permutation(50)
        if kind == "far clusters":
            order = np.argsort(
                [similarity[cluster_of == c].mean() if (cluster_of == c).any() else 0 for c in range(50)]
            )
        chosen = np.concatenate([np.flatnonzero(cluster_of == cluster) for cluster in order])[:count]
    return {f"p{name:05d}" for name in chosen.tolist()}


@pytest.mark.parametrize("percent", [50, 20, 10, 5, 1, 0.1])
@pytest.mark.parametrize("kind", ["random", "clusters", "far clusters"])
def test_with_filters(fresh: Pair, kind: str, percent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way the planner takes; where few pass, that is an exact one."""
    monkeypatch.undo()
    recall, plans = fresh.recall(passing=chosen_by(kind, percent, fresh))
    assert recall >= 0.97
    if percent <= 1:
        assert "graph" not in plans


@pytest.mark.parametrize("percent", [50, 20, 10, 5])
@pytest.mark.parametrize("kind", ["random", "clusters", "far clusters"])
def test_filtered_results_of_the_graph(fresh: Pair, kind: str, percent: float) -> None:
    """Where collections are large the graph answers filtered queries too."""
    recall, plans = fresh.recall(passing=chosen_by(kind, percent, fresh))
    assert "graph" in plans
    assert recall >= 0.97


def test_after_deletes(half: Pair) -> None:
    """Three in ten gone: first known to the row table only, then forgotten, then marked in the graph."""
    half.delete(sorted(half.store.points)[::10] + sorted(half.store.points)[3::10] + sorted(half.store.points)[7::10])
    for step in (half.store.reclaim, half.store.maintain, lambda: None):
        recall, plans = half.recall()
        assert "graph" in plans
        assert recall >= 0.96
        step()
    # Some documents have equal vectors, and a node each only where lengths were made to differ.
    assert 730 <= half.store.index.statistics().graph_deleted_row_count <= 750


def test_after_updates(half: Pair) -> None:
    """Three in ten got the vector of another document: found in the tail at once, and in the graph later."""
    names = np.arange(0, 2_500)[half.rng.permutation(2_500)[:750]].tolist()
    half.upsert(names, half.vectors[2_500:3_250])
    for _ in range(2):
        recall, plans = half.recall()
        assert "graph" in plans
        assert recall >= 0.96
        half.store.settle()
    assert half.store.index.statistics().tail_row_count == 0


def test_after_churn_that_rebuilds_the_graph(half: Pair) -> None:
    """Round after round of updates and deletes, until the deleted share forces a rebuild."""
    rebuilt = False
    for turn in range(4):
        names = half.rng.permutation(2_500)[:400].tolist()
        half.upsert(names, half.vectors[half.rng.permutation(len(half.vectors))[:400]])
        half.delete(sorted(half.store.points)[turn::25])
        half.store.reclaim()
        half.truth.reclaim()
        deleted = half.store.index.statistics().graph_deleted_row_count
        while half.store.index.has_work():
            rebuilding = half.store.index.statistics().rebuilding
            half.store.maintain(slice_rows=300)
            half.store.reclaim()
            statistics = half.store.index.statistics()
            if rebuilding and not statistics.rebuilding:
                rebuilt = True
                assert deleted >= 1_000
                assert statistics.graph_deleted_row_count == 0
        recall, plans = half.recall()
        assert "graph" in plans
        assert recall >= 0.96
    assert rebuilt


def test_under_concurrent_inserts(half: Pair) -> None:
    """One thread drains while this one writes and searches: no search waits for the graph to have everything."""
    done = threading.Event()
    failures: list[BaseException] = []

    def drain() -> None:
        try:
            while not done.is_set() or half.store.index.has_work():
                if not half.store.maintain(slice_rows=32):
                    done.wait(0.001)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=drain)
    thread.start()
    seen: set[str] = set()
    shares: list[float] = []
    try:
        for start in range(2_500, 4_000, 250):
            half.upsert(list(range(start, start + 250)), half.vectors[start : start + 250])
            recall, plans = half.recall()
            shares.append(recall)
            seen |= plans
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]
    assert min(shares) >= 0.96
    assert "graph" in seen
    assert half.recall()[0] >= 0.96
