"""Nodes of the kernel's graph that stand for several labels, because vectors have equal codes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.index.test_kernel import CODES, arena_of, largest_norm, vectors_of
from vecmem.index import _kernel
from vecmem.index.metric import Metric


def graph_of(vectors: np.ndarray, labels: np.ndarray, code: str = "int8", threads: int = 2) -> _kernel.Graph:
    graph = _kernel.Graph(code, int(Metric.COSINE), vectors.shape[1], 8, 60, 0.01)
    graph.add(vectors, labels, threads)
    return graph


def found(graph: _kernel.Graph, vectors: np.ndarray, query: np.ndarray, k: int, **more: object) -> list[int]:
    rows, *_ = graph.search(query[None], k, max(k, 50), arena_of(vectors, Metric.COSINE), k, largest_norm=100, **more)
    return sorted(rows.tolist())


@pytest.mark.parametrize("code", CODES)
def test_equal_vectors_share_a_node_and_are_all_found(code):
    vectors = vectors_of(300, 24, 1)
    vectors[100:200] = vectors[100]
    labels = np.random.default_rng(2).permutation(300)
    by_label = vectors[np.argsort(labels)]
    graph = graph_of(vectors, labels, code)
    assert (graph.node_count, graph.live_count, graph.dead_count) == (201, 300, 0)
    same = sorted(labels[100:200].tolist())
    assert found(graph, by_label, vectors[100], 1) == same
    assert sorted(graph.labels().tolist()) == list(range(300))
    half = np.packbits(np.arange(300) % 2 == 0, bitorder="little")
    even = [label for label in same if label % 2 == 0]
    assert found(graph, by_label, vectors[100], 1, allowed=half) == even
    if code == "int8":
        arena = arena_of(by_label, Metric.COSINE)
        rows, _, _, compared = graph.scan(vectors[100:101], 1, arena, half, largest_norm=100)
        assert (rows.tolist(), compared[0] <= 201) == (even, True)


def test_zeros_of_either_sign_are_equal():
    vectors = np.zeros((40, 8), np.float32)
    vectors[:, 0] = 1
    vectors[::2, 1:] = -0.0
    for code in CODES:
        assert graph_of(vectors, np.arange(40), code).node_count == 1


def test_equal_vectors_do_not_trap_the_search():
    """A tenth of the rows at one place, and the others are found as if these were not there."""
    random = np.random.default_rng(3)
    vectors = (random.normal(size=(40, 64))[random.integers(0, 40, 5_000)] + random.normal(size=(5_000, 64))).astype(
        np.float32
    )
    vectors[1_000:1_500] = vectors[1_000]
    queries = vectors[random.integers(0, 5_000, 200)] + random.normal(size=(200, 64)).astype(np.float32)
    graph = _kernel.Graph("int8", int(Metric.COSINE), 64, 16, 100, 0.004)
    graph.add(vectors, np.arange(5_000), 2)
    arena, norm = arena_of(vectors, Metric.COSINE), largest_norm(vectors)
    _, true, ends, _ = arena.scan(queries, 10, 5_000, largest_norm=norm)
    _, scores, found_ends, _ = graph.search(queries, 10, 100, arena, 40, largest_norm=norm)
    shares = []
    for i in range(200):
        worst = true[(ends[i - 1] if i else 0) + 9]
        mine = scores[found_ends[i - 1] if i else 0 : found_ends[i]][:10]
        shares.append((mine >= worst).mean())
    assert np.mean(shares) > 0.985


def test_a_node_lasts_as_long_as_one_of_its_labels():
    vectors = vectors_of(60, 16, 4)
    vectors[10:20] = vectors[10]
    graph = graph_of(vectors, np.arange(60))
    assert graph.node_count == 51
    for label in range(10, 20):
        assert graph.dead_count == 0
        assert found(graph, vectors, vectors[10], 1) == list(range(label, 20))
        assert graph.remove(np.array([label])) == 1
        assert not graph.holding(np.array([label])).any()
    assert (graph.dead_count, graph.unswept_count, graph.live_count) == (1, 1, 50)
    assert not set(found(graph, vectors, vectors[10], 50)) & set(range(10, 20))


def test_a_removed_node_whose_code_comes_again_is_taken_up_until_it_is_swept():
    vectors = vectors_of(60, 16, 5)
    graph = graph_of(vectors, np.arange(60))
    graph.remove(np.arange(10))
    graph.add(vectors[:5], np.arange(100, 105))
    assert (graph.node_count, graph.live_count, graph.unswept_count, graph.dead_count) == (60, 55, 5, 5)
    assert graph.sweep(100) == 5
    graph.add(vectors[5:10], np.arange(105, 110))
    assert (graph.node_count, graph.live_count, graph.unswept_count, graph.dead_count) == (65, 60, 0, 5)
    graph.add(vectors[5:10], np.arange(205, 210))
    assert graph.node_count == 65
    rows = np.concatenate([vectors, np.zeros((40, 16), np.float32), vectors[:10], np.zeros((95, 16), np.float32)])
    rows = np.concatenate([rows, vectors[5:10]])
    assert found(graph, rows[:256], vectors[7], 2)[-2:] == [107, len(rows) - 3]


def test_labels_of_groups_come_and_go_as_a_model_says():
    """Random adds, removals, sweeps, saves and loads over few distinct vectors."""
    random = np.random.default_rng(seed := int(np.random.default_rng().integers(1 << 30)))
    print(f"seed {seed}")
    distinct = vectors_of(12, 16, 6)
    rows = distinct[random.integers(0, 12, 2_000)]
    arena = arena_of(rows, Metric.COSINE)
    graph = _kernel.Graph("int8", int(Metric.COSINE), 16, 8, 60, 0.01)
    live: set[int] = set()
    for turn in range(120):
        kind = random.random()
        if kind < 0.45:
            labels = np.setdiff1d(random.integers(0, 2_000, 60), np.array(sorted(live), np.int64))
            graph.add(rows[labels], labels, int(random.integers(1, 3)))
            live |= set(labels.tolist())
        elif kind < 0.8:
            labels = np.unique(random.integers(0, 2_000, 300))
            assert graph.remove(labels) == len(live & set(labels.tolist()))
            live -= set(labels.tolist())
        elif kind < 0.9:
            graph.sweep(int(random.integers(1, 5)))
        else:
            content = graph.to_bytes()
            graph = _kernel.Graph("int8", int(Metric.COSINE), 16, 8, 60, 0.01)
            graph.from_bytes(content)
            assert len(graph.to_bytes()) == len(content), turn
        assert set(graph.labels().tolist()) == live
        assert graph.live_count == len(live)
        bits = np.packbits(random.random(2_000) < 0.3, bitorder="little")
        allowed = set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())
        for filtered, expected in ((None, live), (bits, live & allowed)):
            hits, *_ = graph.search(distinct[:1], 2_000, 2_000, arena, 2_000, filtered, largest_norm=100)
            assert set(hits.tolist()) == expected, turn
    assert graph.node_count - graph.dead_count == len({rows[label].tobytes() for label in live})
