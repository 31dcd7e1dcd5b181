"""Rows with equal vectors in the graph: ids decide between them, and they do not trap the search, at any stage of their lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.index.support import FLAT, HNSWLIB, MiniStore
from vecmem.index import fetching, hnsw, labelled_graph
from vecmem.index.hnsw import HnswIndex
from vecmem.index.metric import Metric

if TYPE_CHECKING:
    from pathlib import Path

    from vecmem.index.labelled_graph import LabelledGraph

DIMENSION = 8
METRICS = [pytest.param(metric, id=metric.name.lower()) for metric in Metric]


@pytest.fixture(autouse=True)
def graph_for_small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graph wherever it can be taken: collections of this size are worth a scan only."""
    monkeypatch.setattr(fetching, "GRAPH_COMPARISONS_PER_EF", 0)
    monkeypatch.setattr(hnsw, "REBUILD_ROWS_MIN", 20)


def random_vectors(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def shuffled_names(count: int, seed: int = 2) -> list[str]:
    return [f"i{number:05d}" for number in np.random.default_rng(seed).permutation(count)]


def graph_of(store: MiniStore) -> LabelledGraph:
    assert isinstance(store.index, HnswIndex)
    return store.index._current


def filled(names: list[str], vectors: np.ndarray, metric: Metric = Metric.EUCLIDEAN) -> MiniStore:
    store = MiniStore(DIMENSION, metric, *HNSWLIB)
    store.upsert(dict(zip(names, vectors, strict=True)))
    store.settle()
    return store


def found(store: MiniStore, query: np.ndarray, limit: int, **options: object) -> list[str]:
    result, ids = store.search(query, limit, **options)
    assert result.plan.kind == "graph"
    return ids


@pytest.mark.parametrize("metric", METRICS)
def test_the_graph_breaks_ties_by_id(metric: Metric) -> None:
    """Of thousands of equal vectors the smallest ids come, filtered or not, as an exact search has it."""
    names = shuffled_names(3_000)
    vector = random_vectors(1)
    store = filled(names, np.repeat(vector, len(names), axis=0), metric)
    query = random_vectors(1, seed=3)[0]
    assert found(store, query, 5) == sorted(names)[:5] == store.search(query, 5, exact=True)[1]
    passing = set(sorted(names)[7::2])
    assert found(store, query, 5, allowed=store.mask(passing.__contains__)) == sorted(passing)[:5]
    assert graph_of(store).graph.label_count == 1


@pytest.mark.parametrize("metric", METRICS)
def test_a_tie_at_the_end_of_the_result_is_broken_by_id(metric: Metric) -> None:
    """The group begins before the limit and ends behind it."""
    vectors = random_vectors(600)
    vectors[200:400] = vectors[200]
    names = shuffled_names(600)
    store = filled(names, vectors, metric)
    for limit in (1, 10, 150):
        for query in (vectors[200], *(vectors[200] + 0.1 * random_vectors(5, seed=4))):
            ids = found(store, query, limit, ef=300)
            assert ids == store.search(query, limit, exact=True)[1]


@pytest.mark.parametrize("metric", METRICS)
def test_equal_vectors_do_not_trap_the_search(metric: Metric) -> None:
    """A tenth of the rows at one place, then half at some places: the others are found as if these were not there."""
    for vectors in (random_vectors(2_000), random_vectors(2_000, seed=5)):
        vectors[100:300] = vectors[100]
        truth = MiniStore(DIMENSION, metric, *FLAT)
        names = shuffled_names(len(vectors))
        truth.upsert(dict(zip(names, vectors, strict=True)))
        store = filled(names, vectors, metric)
        shares = []
        for query in random_vectors(60, seed=6):
            wanted = truth.search(query, 10)[0].scores[-1]
            scores = store.search(query, 10)[0].scores
            shares.append(
                np.mean([score >= wanted if metric.higher_is_nearer else score <= wanted for score in scores])
            )
        assert np.mean(shares) > 0.985


def test_zeros_of_either_sign_are_equal() -> None:
    """Their bytes are not."""
    vectors = np.zeros((40, DIMENSION), dtype=np.float32)
    vectors[:, 0] = 1
    vectors[::2, 1:] = -0.0
    names = shuffled_names(40)
    store = filled(names, vectors)
    assert graph_of(store).graph.label_count == 1
    assert found(store, np.ones(DIMENSION), 7) == sorted(names)[:7]


def test_equal_vectors_that_come_slice_by_slice_share_a_node() -> None:
    """Within a slice, and with what is in the graph."""
    store = MiniStore(DIMENSION, Metric.EUCLIDEAN, *HNSWLIB)
    vectors = random_vectors(10)
    for turn in range(6):
        store.upsert({f"p{turn}-{index}": vectors[index % 10] for index in range(25)})
        store.settle(slice_rows=11)
    graph = graph_of(store)
    assert graph.graph.label_count == 10
    assert store.index.statistics().graph_row_count == 150
    assert found(store, vectors[3], 4) == ["p0-13", "p0-23", "p0-3", "p1-13"]


def test_vectors_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash only says where to look."""
    monkeypatch.setattr(labelled_graph, "_hashes", lambda vectors: [7] * len(vectors))
    vectors = random_vectors(50)
    store = filled([f"p{index:02d}" for index in range(50)], vectors)
    store.upsert({"q": vectors[20], "r": vectors[49]})
    store.settle()
    for index, vector in enumerate(vectors):
        assert found(store, vector, 1) == [f"p{index:02d}"]


def test_a_node_lasts_as_long_as_one_of_its_rows(tmp_path: Path) -> None:
    """Rows leave one by one, through restarts; the node counts as deleted when the last has gone, and can be made again."""
    vectors = random_vectors(30)
    names = [f"p{index:02d}" for index in range(30)]
    store = filled(names, vectors)
    store.upsert({f"twin{index}": vectors[7] for index in range(3)})
    store.settle()
    for turn, (gone, next_one) in enumerate([("p07", "twin0"), ("twin0", "twin1"), ("twin1", "twin2")]):
        store.delete([gone])
        store.settle()
        assert store.index.statistics().graph_deleted_row_count == 0
        store = store.restarted(tmp_path / str(turn))
        assert found(store, vectors[7], 1) == [next_one]
    store.delete(["twin2"])
    store.settle()
    assert store.index.statistics().graph_deleted_row_count == 1
    store = store.restarted(tmp_path / "last")
    store.upsert({"again": vectors[7]})
    store.settle()
    assert found(store, vectors[7], 1) == ["again"]
    assert graph_of(store).graph.label_count == 31


def test_a_snapshot_sees_the_dead_of_a_group_and_the_present_does_not() -> None:
    """They share the node, and each search has its own view of the rows."""
    names = [f"p{index:02d}" for index in range(60)]
    vectors = random_vectors(60)
    vectors[10:50] = vectors[10]
    store = filled(names, vectors)
    snapshot = store.snapshot()
    store.delete(names[10:20])
    store.upsert({"p05": vectors[10], "p20": vectors[0]})
    store.reclaim()
    for _ in range(3):
        store.maintain()
    result = store.index.search([store.request(vectors[10], 3)], snapshot.view)[0]
    assert [snapshot.view.ids[row] for row in result.rows] == names[10:13]
    assert found(store, vectors[10], 3) == ["p05", "p21", "p22"]
    snapshot.end()
    store.settle()
    assert found(store, vectors[10], 3) == ["p05", "p21", "p22"]


def test_a_restart_while_part_of_a_group_is_dead(tmp_path: Path) -> None:
    """Dead rows that a reader still held when the files were written do not come back with their node."""
    vectors = random_vectors(40)
    vectors[20:30] = vectors[20]
    names = [f"p{index:02d}" for index in range(40)]
    store = filled(names, vectors)
    snapshot = store.snapshot()
    store.delete(names[20:25] + names[35:40])
    store.reclaim()
    loaded = store.restarted(tmp_path)
    snapshot.end()
    assert found(loaded, vectors[20], 3) == names[25:28]
    loaded.upsert({f"q{index}": vectors[0] for index in range(20)})
    loaded.settle()
    assert found(loaded, vectors[20], 5) == names[25:30]
    assert loaded.index.statistics().graph_deleted_row_count == 5


def test_a_rebuild_keeps_groups_together() -> None:
    """Rows die in the middle of it."""
    vectors = random_vectors(200)
    vectors[50:100] = vectors[50]
    names = [f"p{index:03d}" for index in range(200)]
    store = filled(names, vectors)
    store.delete(names[100:160])
    store.reclaim()
    store.maintain()
    store.maintain(slice_rows=30)
    assert store.index.statistics().rebuilding
    store.delete(names[50:60])
    store.settle(slice_rows=30)
    assert found(store, vectors[50], 4) == names[60:64]
    assert (graph_of(store).graph.label_count, graph_of(store).live_count) == (91, 130)


def test_a_row_forgotten_between_its_insertion_and_its_label_leaves_the_group() -> None:
    """`forget` runs on the event loop while a thread inserts."""
    vector = random_vectors(1)
    store = filled(["a", "b", *shuffled_names(20)], np.concatenate([vector, vector, random_vectors(20, seed=7)]))
    graph = graph_of(store)
    store.upsert({"c": vector[0], "d": vector[0]})
    insert = graph.insert

    def insert_while_rows_die(*arguments: object) -> np.ndarray:
        labels = insert(*arguments)  # type: ignore[arg-type]
        # The thread's own reading block keeps rows from being reused, not those from being forgotten that died before it.
        store.index.forget(np.array([store.row_of["a"], store.row_of["b"], store.row_of["d"]]))
        return labels

    graph.insert = insert_while_rows_die  # type: ignore[method-assign]
    store.maintain()
    assert [row for row, label in graph.label_of.items() if label == 0] == [store.row_of["c"]]
    assert graph.groups.get(0, {store.row_of["c"]}) == {store.row_of["c"]}
    assert not graph.unlabelled
    assert not store.maintain()
    assert found(store, vector[0], 1) == ["c"]


# -- insertions that fail -------------------------------------------------------------------------------------------------


class Failing:
    """Hnswlib's index, whose next insertion fails half-way."""

    def __init__(self, index: object, error: BaseException) -> None:
        self._index = index
        self._error = error

    def __getattr__(self, name: str) -> object:
        return getattr(self._index, name)

    def add_items(self, vectors: np.ndarray, labels: np.ndarray, num_threads: int) -> None:
        half = len(labels) // 2
        self._index.add_items(vectors[half:], labels[half:], num_threads=num_threads)  # type: ignore[attr-defined]
        raise self._error


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("no room")])
def test_an_insertion_that_fails_leaves_a_usable_index(error: BaseException, tmp_path: Path) -> None:
    """Its rows stay in the tail and are found there; the labels it took are never used again, not after a restart either."""
    vectors = random_vectors(100)
    names = [f"p{index:03d}" for index in range(100)]
    store = filled(names[:60], vectors[:60])
    store.upsert(dict(zip(names[60:], vectors[60:], strict=True)))
    graph = graph_of(store).graph
    sound = graph._index
    graph._index = Failing(sound, error)  # type: ignore[assignment]
    with pytest.raises(type(error), match="no room"):
        store.maintain(slice_rows=10)
    graph._index = sound
    for stage in range(3):
        for index in range(0, 100, 3):
            assert found(store, vectors[index], 1) == [names[index]]
        assert store.index.statistics().graph_row_count == (60, 60, 100)[stage]
        if stage == 0:
            store = store.restarted(tmp_path / "0")
        if stage == 1:
            store.settle()
            assert graph_of(store).label_of[store.row_of["p060"]] == 70
