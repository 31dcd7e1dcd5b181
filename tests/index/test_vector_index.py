"""One suite over the flat index, that over hnswlib and the kernel's: whatever happens around it, a search sees exactly its snapshot."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.index.support import FLAT, HNSWLIB, KERNEL, Kind, MiniStore, Snapshot, check, recall
from vecmem import errors
from vecmem.index import fetching, hnsw, kernel, planner
from vecmem.index.hnsw import HnswIndex
from vecmem.index.metric import Metric
from vecmem.index.parameters import HnswParameters, VectorParameters

if TYPE_CHECKING:
    from pathlib import Path

DIMENSION = 8
KINDS = [pytest.param(FLAT, id="flat"), pytest.param(HNSWLIB, id="hnswlib"), pytest.param(KERNEL, id="kernel")]
GRAPHS = KINDS[1:]
METRICS = [pytest.param(metric, id=metric.name.lower()) for metric in Metric]


@pytest.fixture(autouse=True)
def graph_for_small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graph wherever it can be taken: collections of this size are worth a scan only."""
    monkeypatch.setattr(fetching, "GRAPH_COMPARISONS_PER_EF", 0)
    monkeypatch.setattr(planner, "_graph_cost_us", lambda *_: -1.0)
    monkeypatch.setattr(hnsw, "REBUILD_ROWS_MIN", 20)
    monkeypatch.setattr(kernel, "REBUILD_ROWS_MIN", 20)


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    centres = rng.normal(size=(8, DIMENSION))
    return (centres[rng.integers(0, 8, count)] + 0.4 * rng.normal(size=(count, DIMENSION))).astype(np.float32)


def named(vectors: np.ndarray, start: int = 0) -> dict[str, np.ndarray]:
    return {f"p{index:05d}": vector for index, vector in enumerate(vectors, start)}


def filled(metric: Metric, kind: Kind, count: int = 300, seed: int = 1) -> MiniStore:
    store = MiniStore(DIMENSION, metric, *kind)
    store.upsert(named(clustered(np.random.default_rng(seed), count)))
    return store


def verify(
    store: MiniStore, query: np.ndarray, limit: int, snapshot: Snapshot | None = None, **options: object
) -> float:
    """Search and check against the oracle; returns the recall."""
    taken = snapshot or store.snapshot()
    try:
        result = store.index.search([store.request(query, limit, **options)], taken.view)[0]
        hits = [(taken.view.ids[row], score) for row, score in zip(result.rows, result.scores, strict=True)]
        check(store.metric, taken.points, query, limit, hits, exact=result.plan.kind != "graph")
        return recall(store.metric, taken.points, query, limit, [point_id for point_id, _ in hits])
    finally:
        if snapshot is None:
            taken.end()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
class TestAllKinds:
    def test_points_are_found_the_moment_they_are_published(self, kind: Kind, metric: Metric) -> None:
        """Before any maintenance, in the middle of it, and after."""
        rng = np.random.default_rng(2)
        store = MiniStore(DIMENSION, metric, *kind)
        for start in range(0, 120, 20):
            store.upsert(named(clustered(rng, 20), start))
            for point_id in list(store.points)[-20:]:
                # Under euclid and cosine a point is its own nearest; under dot it need not be, so all are asked for.
                limit = len(store.points) if metric is Metric.DOT else 1
                assert point_id in store.search(store.points[point_id], limit)[1]
            store.maintain(slice_rows=15)
        store.settle()
        assert recall_of_all(store) > 0.99

    def test_empty_collection(self, kind: Kind, metric: Metric) -> None:
        """No rows, no hits, and nothing to do."""
        store = MiniStore(DIMENSION, metric, *kind)
        assert store.search(np.ones(DIMENSION), 10)[0].rows == []
        assert not store.index.has_work()
        assert not store.maintain()

    def test_all_points_deleted(self, kind: Kind, metric: Metric) -> None:
        """At every stage between the deletion and a clean graph."""
        store = filled(metric, kind, 60)
        store.settle()
        store.delete(list(store.points))
        query = np.ones(DIMENSION, dtype=np.float32)
        for step in (store.reclaim, store.maintain, store.settle, store.maintain):
            verify(store, query, 5)
            step()
        verify(store, query, 5)
        store.upsert(named(clustered(np.random.default_rng(5), 30)))
        verify(store, query, 5)
        store.settle()
        assert verify(store, query, 5) == 1.0

    @pytest.mark.parametrize("limit", [59, 60, 61, 10_000])
    def test_limits_about_the_size_of_the_collection(self, kind: Kind, metric: Metric, limit: int) -> None:
        """A limit above the number of points returns all of them."""
        store = filled(metric, kind, 60)
        query = np.ones(DIMENSION, dtype=np.float32)
        verify(store, query, limit)
        store.settle()
        verify(store, query, limit)
        verify(store, query, limit, exact=True)

    def test_equal_vectors_come_in_order_of_ids(self, kind: Kind, metric: Metric) -> None:
        """Forty equal vectors in shuffled rows: an exact search gives the smallest ids, in order."""
        rng = np.random.default_rng(3)
        vectors = clustered(rng, 100)
        vectors[30:70] = vectors[30]
        if metric is Metric.DOT:
            vectors[30:70] *= 20
        names = [f"p{index:03d}" for index in rng.permutation(100)]
        store = MiniStore(DIMENSION, metric, *kind)
        store.upsert(dict(zip(names, vectors, strict=True)))
        store.settle()
        result, ids = store.search(vectors[30], 15, exact=True)
        assert ids == sorted(names[30:70])[:15]
        assert len(set(result.scores)) == 1
        ids = store.search(vectors[30], 15)[1]
        assert ids == sorted(ids)

    @pytest.mark.parametrize("share", [0.0, 0.005, 0.1, 0.5, 1.0])
    def test_filters(self, kind: Kind, metric: Metric, share: float) -> None:
        """Hits pass the filter, and there are as many as pass."""
        store = filled(metric, kind)
        for _ in range(3):
            passing = {name for name in store.points if np.random.default_rng(int(name[1:])).random() < share}
            mask = store.mask(passing.__contains__)
            for query in clustered(np.random.default_rng(4), 5):
                result, ids = store.search(query, 7, allowed=mask)
                check(
                    metric,
                    {name: store.points[name] for name in passing},
                    query,
                    7,
                    list(zip(ids, result.scores, strict=True)),
                    exact=result.plan.kind != "graph",
                )
            store.maintain(slice_rows=150)

    def test_points_without_this_vector(self, kind: Kind, metric: Metric) -> None:
        """They are in the collection, and never among the hits, before or after the others."""
        store = MiniStore(DIMENSION, metric, *kind)
        store.upsert_without_vector(["a", "b"])
        store.upsert(named(clustered(np.random.default_rng(6), 50)))
        store.upsert_without_vector(["c", "d"])
        for _ in range(2):
            verify(store, np.ones(DIMENSION), 60)
            verify(store, np.ones(DIMENSION), 10)
            verify(store, np.ones(DIMENSION), 10, exact=True)
            store.settle()
        store.delete(["a", "c", "p00003"])
        store.settle()
        verify(store, np.ones(DIMENSION), 60)

    def test_a_snapshot_stays_what_it_was(self, kind: Kind, metric: Metric) -> None:
        """Through updates, deletes, reclaims, draining and rebuilds, and nothing of it is lost to a graph search."""
        store = filled(metric, kind, 200)
        for _ in range(3):
            store.maintain(slice_rows=50)
        snapshots = []
        for turn in range(4):
            snapshots.append(store.snapshot())
            rng = np.random.default_rng(turn)
            names = sorted(store.points)
            store.upsert(dict(zip(names[::3], clustered(rng, len(names[::3])), strict=True)))
            store.delete(sorted(store.points)[1::4])
            store.upsert(named(clustered(rng, 60), 1000 * (turn + 1)))
            store.reclaim()
            for _ in range(20):
                store.maintain(slice_rows=40)
                store.reclaim()
            for snapshot in snapshots:
                found = [verify(store, query, 10, snapshot) for query in clustered(rng, 10)]
                assert np.mean(found) > 0.97
                for query in clustered(rng, 3):
                    assert verify(store, query, 10, snapshot, exact=True) == 1.0
        row_count = store.table.row_count
        for snapshot in snapshots:
            snapshot.end()
        store.settle()
        store.settle()
        store.upsert(named(clustered(np.random.default_rng(9), 100), 50_000))
        assert store.table.row_count == row_count, "rows of the past are reused once nobody sees them"
        assert recall_of_all(store) > 0.97

    @pytest.mark.parametrize("stage", ["tail", "half drained", "drained", "deleted", "rebuilding", "empty"])
    def test_restart(self, kind: Kind, metric: Metric, stage: str, tmp_path: Path) -> None:
        """Saved and loaded at any stage, everything is there, and life goes on."""
        store = filled(metric, kind, 0 if stage == "empty" else 200)
        if stage not in {"tail", "empty"}:
            for _ in range(1 if stage == "half drained" else 10):
                store.maintain(slice_rows=80)
        if stage in {"deleted", "rebuilding"}:
            store.delete(sorted(store.points)[::3])
            store.delete(sorted(store.points)[::3][:5])
        if stage == "rebuilding":
            store.reclaim()
            store.maintain(slice_rows=3)
            store.maintain(slice_rows=3)
            assert store.index.statistics().rebuilding is (kind[0] is not None)
        for turn in range(2):
            store = store.restarted(tmp_path / str(turn))
            for limit in (1, 10, 500):
                verify(store, np.ones(DIMENSION), limit)
            assert recall_of_all(store) > 0.97
            store.upsert(named(clustered(np.random.default_rng(turn), 50), 100 * turn))
            store.delete(sorted(store.points)[::5])
            store.settle()
            assert recall_of_all(store) > 0.97

    def test_statistics_count_vectors(self, kind: Kind, metric: Metric) -> None:
        """Of points alive, once the dead are reclaimed."""
        store = filled(metric, kind, 100)
        store.delete(sorted(store.points)[:30])
        store.settle()
        statistics = store.index.statistics()
        assert statistics.vector_count == 70
        assert statistics.arena_bytes >= 100 * DIMENSION * 4
        if kind[0] is not None:
            assert (statistics.graph_row_count, statistics.tail_row_count) == (70, 0)
            assert statistics.graph_bytes > 70 * DIMENSION


def recall_of_all(store: MiniStore) -> float:
    rng = np.random.default_rng(11)
    return float(np.mean([verify(store, query, 10) for query in clustered(rng, 30)]))


# -- graphs alone -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GRAPHS)
def test_small_collections_are_scanned(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the planner as it is shipped."""
    monkeypatch.undo()
    store = filled(Metric.COSINE, kind, 60)
    store.settle()
    assert store.search(np.ones(DIMENSION), 10)[0].plan.kind != "graph"


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_rebuild_drops_deleted_nodes_while_points_come_and_go(kind: Kind) -> None:
    """Rows that die and are reused during a rebuild end up once in the new graph, or not at all."""
    store = filled(Metric.EUCLIDEAN, kind, 400)
    store.settle()
    store.delete(sorted(store.points)[:100])
    store.reclaim()
    rng = np.random.default_rng(12)
    fresh = itertools.count(10_000)
    assert store.index.statistics().graph_deleted_row_count == 100
    assert store.maintain(slice_rows=25), "there is something to do"
    rebuilding = 0
    while store.index.has_work():
        store.maintain(slice_rows=25)
        rebuilding += store.index.statistics().rebuilding
        if rebuilding < 10:
            store.delete([sorted(store.points)[int(rng.integers(len(store.points)))] for _ in range(1)])
            store.upsert({f"p{next(fresh)}": vector for vector in clustered(rng, 2)})
        store.reclaim()
        verify(store, clustered(rng, 1)[0], 10)
    assert rebuilding > 5
    statistics = store.index.statistics()
    assert statistics.graph_row_count == len(store.points)
    assert statistics.graph_deleted_row_count < 20
    assert recall_of_all(store) > 0.99


def test_rows_that_die_in_the_last_slice_of_a_rebuild_leave_the_new_graph() -> None:
    """`forget` runs on the event loop while a thread puts the new graph in place of the old."""
    store = filled(Metric.EUCLIDEAN, HNSWLIB, 100)
    store.settle()
    index = store.index
    assert isinstance(index, HnswIndex)
    index.configure(VectorParameters(DIMENSION, Metric.EUCLIDEAN, HnswParameters(m=8, ef_construction=50, ef=64)))
    store.maintain(slice_rows=60)
    old = index._current
    forget = old.forget

    def forget_and_maintain(rows: np.ndarray) -> None:
        # The thread has all the time it wants between the two halves of HnswIndex.forget, unless something keeps it waiting.
        forget(rows)
        thread.start()
        thread.join(0.3)

    thread = threading.Thread(target=store.maintain, kwargs={"slice_rows": 60})
    old.forget = forget_and_maintain  # type: ignore[method-assign]
    store.delete(["p00000", "p00001"])
    store.reclaim()
    thread.join()
    store.settle()
    assert index.statistics().graph_row_count == 98
    assert index.statistics().graph_deleted_row_count <= 2


def test_changed_build_parameters_rebuild_the_graph(tmp_path: Path) -> None:
    """Also when the change comes in the middle of a rebuild, or between save and load."""
    store = filled(Metric.COSINE, HNSWLIB, 200)
    store.settle()
    for m in (8, 12):
        changed = HnswParameters(m=m, ef_construction=60, ef=32)
        store.index.configure(VectorParameters(DIMENSION, Metric.COSINE, changed))
        assert store.index.has_work()
        store.maintain(slice_rows=50)
        verify(store, np.ones(DIMENSION), 10)
    store.settle()
    assert isinstance(store.index, HnswIndex)
    assert store.index._current.graph.parameters.m == 12
    assert store.index._current.graph._index.M == 12
    assert recall_of_all(store) > 0.97

    loaded = store.restarted(tmp_path / "0")
    assert isinstance(loaded.index, HnswIndex)
    assert loaded.index.has_work(), "the new store wants M 16"
    loaded.settle()
    assert loaded.index._current.graph._index.M == 16
    assert loaded.index.statistics().graph_row_count == 200


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_changed_ef_rebuilds_nothing(kind: Kind) -> None:
    """It is a parameter of searches."""
    store = filled(Metric.COSINE, kind, 50)
    store.settle()
    store.index.configure(VectorParameters(DIMENSION, Metric.COSINE, HnswParameters(m=16, ef_construction=100, ef=99)))
    assert not store.index.has_work()


@pytest.mark.parametrize("damage", ["graph is not one", "labels are missing"])
def test_files_that_do_not_fit_are_refused(damage: str, tmp_path: Path) -> None:
    """Their checksums were right, so another program wrote them: a named refusal, not a crash."""
    store = filled(Metric.COSINE, HNSWLIB, 50)
    store.settle()
    metadata = store.index.save(tmp_path, "0")
    if damage == "graph is not one":
        (tmp_path / "0.graph").write_bytes(b"\0" * 500)
    else:
        np.save(tmp_path / "0.labels.npy", np.arange(20))
    with pytest.raises(errors.CorruptionError, match=r"0\.graph"):
        HnswIndex(store.parameters, store.table).load(tmp_path, "0", metadata, np.ones(50, dtype=np.bool_))


# -- any order of operations --------------------------------------------------------------------------------------------------

COORDINATES = st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any)
NAMES = st.integers(0, 59).map("k{:02d}".format)


class IndexMachine(RuleBasedStateMachine):
    """Points on a small grid, so that many are equal and most distances tie; snapshots are held across everything."""

    kind: Kind = FLAT
    metric = Metric.COSINE

    def __init__(self) -> None:
        super().__init__()
        self.store = MiniStore(3, self.metric, *self.kind)
        self.snapshots: list[Snapshot] = []

    @initialize(seed=st.integers(0, 1000), count=st.integers(0, 120))
    def begin(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        vectors = rng.integers(-2, 3, size=(count, 3)).astype(np.float32)
        vectors[~vectors.any(axis=1)] = 1
        if count:
            self.store.upsert({f"k{index:02d}": vector for index, vector in enumerate(vectors)})

    @rule(points=st.dictionaries(NAMES, COORDINATES, min_size=1, max_size=20))
    def upsert(self, points: dict[str, list[int]]) -> None:
        self.store.upsert({name: np.array(vector, dtype=np.float32) for name, vector in points.items()})

    @precondition(lambda self: self.store.points)
    @rule(step=st.integers(1, 6), first=st.integers(0, 5))
    def delete(self, step: int, first: int) -> None:
        self.store.delete(sorted(self.store.points)[first::step])

    @rule()
    def reclaim(self) -> None:
        self.store.reclaim()

    @rule(slice_rows=st.sampled_from([1, 7, 50]), times=st.integers(1, 10))
    def maintain(self, slice_rows: int, times: int) -> None:
        for _ in range(times):
            self.store.maintain(slice_rows)
            self.store.reclaim()

    @precondition(lambda self: len(self.snapshots) < 4)
    @rule()
    def hold(self) -> None:
        self.snapshots.append(self.store.snapshot())

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, 3))
    def let_go(self, which: int) -> None:
        self.snapshots.pop(which % len(self.snapshots)).end()

    @rule(
        query=COORDINATES,
        limit=st.sampled_from([1, 2, 5, 30, 200]),
        ef=st.sampled_from([0, 1, 300]),
        exact=st.booleans(),
    )
    def search(self, query: list[int], limit: int, ef: int, exact: bool) -> None:
        for snapshot in [*self.snapshots, None]:
            verify(self.store, np.array(query, dtype=np.float32), limit, snapshot, ef=ef, exact=exact)

    @rule(query=COORDINATES, limit=st.integers(1, 10), step=st.integers(1, 20))
    def search_filtered(self, query: list[int], limit: int, step: int) -> None:
        passes = set(sorted(self.store.points)[::step])
        mask = self.store.mask(passes.__contains__)
        asked = np.array(query, dtype=np.float32)
        result, ids = self.store.search(asked, limit, allowed=mask)
        note(f"plan {result.plan.kind}")
        points = {name: self.store.points[name] for name in passes}
        hits = list(zip(ids, result.scores, strict=True))
        check(self.metric, points, asked, limit, hits, exact=result.plan.kind != "graph")

    @invariant()
    def counts_agree(self) -> None:
        statistics = self.store.index.statistics()
        assert statistics.vector_count == len(self.store.points) + self.store.table.dead_count
        if self.kind[0] is not None:
            assert statistics.graph_row_count + statistics.tail_row_count == statistics.vector_count

    def teardown(self) -> None:
        for snapshot in self.snapshots:
            snapshot.end()
        self.store.settle()
        assert self.store.index.statistics().vector_count == len(self.store.points)
        verify(self.store, np.ones(3, dtype=np.float32), 500)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_operations(kind: Kind, metric: Metric) -> None:
    """Every search, at every snapshot held, agrees with the oracle; hypothesis prints the steps of a failure."""
    machine = type("Machine", (IndexMachine,), {"kind": kind, "metric": metric})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
