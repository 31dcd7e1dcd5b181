"""The wrapper around hnswlib, at the edges that hnswlib handles badly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.index.support import oracle_scores
from vecmem.index.graph import INITIAL_CAPACITY, Graph
from vecmem.index.metric import Metric
from vecmem.index.parameters import HnswParameters

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = HnswParameters(m=16, ef_construction=100)


def clustered(count: int, dimension: int = 16, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(30, dimension))
    return (centres[rng.integers(0, 30, count)] + 0.5 * rng.normal(size=(count, dimension))).astype(np.float32)


def measured_recall(graph: Graph, metric: Metric, vectors: np.ndarray, queries: np.ndarray) -> float:
    found = 0
    for query in queries:
        scores = oracle_scores(metric, query, vectors)
        ranks = scores if metric.higher_is_nearer else -scores
        found += int((ranks[graph.search(query, 10, 100)] >= np.sort(ranks)[-10]).sum())
    return found / (10 * len(queries))


def test_an_empty_graph_finds_nothing() -> None:
    """The package hnswlib would refuse the search."""
    assert Graph(4, Metric.DOT, PARAMETERS).search(np.ones(4, dtype=np.float32), 5, 10).size == 0


def test_more_hits_wanted_than_there_are_nodes() -> None:
    """The package hnswlib would refuse the search; here it gives what there is."""
    graph = Graph(16, Metric.EUCLIDEAN, PARAMETERS)
    labels = graph.add(clustered(20), threads=1)
    assert sorted(graph.search(np.ones(16, dtype=np.float32), 500, 10)) == labels.tolist()


def test_deleted_nodes_are_not_found_and_lead_on_to_others() -> None:
    """Nine in ten deleted, then all."""
    vectors = clustered(500)
    graph = Graph(16, Metric.EUCLIDEAN, PARAMETERS)
    labels = graph.add(vectors, threads=1)
    graph.delete(labels[labels % 10 != 0])
    kept = labels[::10]
    assert set(graph.search(vectors[7], 50, 50)) == set(kept)
    assert set(graph.search(vectors[7], 500, 50)) == set(kept)
    graph.delete(kept)
    assert graph.search(vectors[7], 5, 50).size == 0
    more = graph.add(vectors[:5], threads=1)
    assert set(graph.search(vectors[7], 50, 50)) == set(more)


def test_nodes_out_of_reach_shorten_the_result() -> None:
    """With hundreds of equal vectors hnswlib loses the way to some; it says so by an error, which is no error to us."""
    graph = Graph(2, Metric.EUCLIDEAN, HnswParameters(m=4, ef_construction=8))
    graph.add(np.repeat(np.eye(2, dtype=np.float32), 300, axis=0), threads=1)
    labels = graph.search(np.array([1, 0], dtype=np.float32), 600, 600)
    assert 0 < len(labels) <= 600
    assert len(set(labels.tolist())) == len(labels)


def test_it_grows_past_its_first_capacity() -> None:
    """By slices of odd sizes, and by one slice larger than twice the capacity."""
    vectors = clustered(INITIAL_CAPACITY * 3 + 1)
    graph = Graph(16, Metric.EUCLIDEAN, HnswParameters(m=8, ef_construction=30))
    for start, stop in ((0, 1), (1, INITIAL_CAPACITY + 1), (INITIAL_CAPACITY + 1, len(vectors))):
        labels = graph.add(vectors[start:stop], threads=2)
        assert labels.tolist() == list(range(start, stop))
    assert graph.label_count == len(vectors)
    assert measured_recall(graph, Metric.EUCLIDEAN, vectors, vectors[::100]) > 0.95


@pytest.mark.parametrize("scale", [1e-24, 1e-6, 1e-3, 1.0, 1e3, 1e15])
def test_dot_products_of_any_size_are_told_apart(scale: float) -> None:
    """The package hnswlib computes 1 - product in float32, in which small products would all be one."""
    vectors = (clustered(1_000) * scale).astype(np.float32)
    graph = Graph(16, Metric.DOT, PARAMETERS)
    graph.add(vectors[:300], threads=1)
    graph.add(vectors[300:], threads=1)
    for factor in (1.0, 1e-5):
        queries = (clustered(30, seed=2) * factor).astype(np.float32)
        assert measured_recall(graph, Metric.DOT, vectors, queries) > 0.95


def test_dot_with_lengths_far_apart() -> None:
    """Small vectors first, then many of the greatest length allowed, zeros, and a zero query: no overflow, no lost neighbours."""
    small = (clustered(500) * 1e-9).astype(np.float32)
    giants = clustered(1_500, seed=6)
    giants = (giants / np.linalg.norm(giants, axis=1)[:, None] * 9e17).astype(np.float32)
    zeros = np.zeros((3, 16), dtype=np.float32)
    graph = Graph(16, Metric.DOT, PARAMETERS)
    for part in (small, giants, zeros):
        graph.add(part, threads=1)
    assert graph.search(zeros[0], 7, 100).size == 7
    everything = np.concatenate([small, giants, zeros])
    assert measured_recall(graph, Metric.DOT, everything, clustered(30, seed=3)) > 0.95


@pytest.mark.parametrize("metric", list(Metric))
def test_load_brings_back_what_was_saved(metric: Metric, tmp_path: Path) -> None:
    """Deletions, results, labels to come, and the scale of dot products."""
    vectors = (clustered(600) * 1e-5).astype(np.float32)
    graph = Graph(16, metric, PARAMETERS)
    labels = graph.add(vectors[:500], threads=1)
    graph.delete(labels[::3])
    graph.save(tmp_path / "graph")
    loaded = Graph(16, metric, PARAMETERS)
    loaded.load(
        tmp_path / "graph",
        label_count=graph.label_count,
        deleted_count=graph.deleted_count,
        scale_exponent=graph.scale_exponent,
    )
    queries = (clustered(20, seed=4) * 1e-5).astype(np.float32)
    for query in queries:
        assert loaded.search(query, 10, 80).tolist() == graph.search(query, 10, 80).tolist()
    assert loaded.add(vectors[500:], threads=1).tolist() == list(range(500, 600))
    kept = np.ones(600, dtype=np.bool_)
    kept[labels[::3]] = False
    found = {label for query in queries for label in loaded.search(query, 400, 400).tolist()}
    assert found <= set(np.flatnonzero(kept).tolist())
    assert len(found) > 390


def test_a_first_insertion_by_many_threads_after_searches_of_the_empty_graph() -> None:
    """Hnswlib is not made before it is needed, and then has the effort that searches have asked for already."""
    graph = Graph(16, Metric.EUCLIDEAN, PARAMETERS)
    vectors = clustered(300)
    assert graph.search(vectors[0], 10, 80).size == 0
    assert graph._index is None
    graph.add(vectors, threads=4)
    assert graph._index.ef == 80
    assert measured_recall(graph, Metric.EUCLIDEAN, vectors, vectors[::10]) > 0.97


def test_vectors_of_extreme_length_under_cosine() -> None:
    """Only the direction counts, from 1e-30 to 1e18."""
    vectors = clustered(400)
    scaled = vectors.copy()
    scaled[::2] *= np.float32(1e17)
    scaled[1::2] *= np.float32(1e-29)
    graph = Graph(16, Metric.COSINE, PARAMETERS)
    graph.add(scaled, threads=1)
    assert measured_recall(graph, Metric.COSINE, vectors, (clustered(20, seed=5) * 1e-25).astype(np.float32)) > 0.97
