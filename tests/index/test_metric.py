"""Scores and ranks against float64, up to the largest and down to the smallest lengths allowed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.index.support import FLAT, MiniStore, check, oracle_scores
from vecmem.index import metric as metrics
from vecmem.index import scan
from vecmem.index.metric import NORM_MAX, NORM_MIN_COSINE, Metric

METRICS = list(Metric)
LENGTHS = [1e-45, NORM_MIN_COSINE, 1e-20, 1e-6, 1.0, 1e6, 1e17, NORM_MAX]


def of_length(rng: np.random.Generator, length: float, count: int, dimension: int = 24) -> np.ndarray:
    vectors = rng.normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1)[:, None] * length).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("query_length", LENGTHS[1:])
def test_scores_are_those_of_float64(metric: Metric, query_length: float) -> None:
    """For rows of every length together: true to float32, finite, and the same for a row alone."""
    rng = np.random.default_rng(1)
    lengths = LENGTHS[1 if metric is Metric.COSINE else 0 :]
    vectors = np.concatenate([of_length(rng, length, 5) for length in lengths])
    query = of_length(rng, query_length, 1)[0]
    scores = metrics.scores(metric, query, vectors)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    expected = oracle_scores(metric, query, vectors)
    np.testing.assert_allclose(scores, expected, rtol=2e-7, atol=1e-7 if metric is Metric.COSINE else 1e-44)
    alone = [metrics.scores(metric, query, vectors[row : row + 1])[0] for row in range(len(vectors))]
    assert np.array_equal(scores, alone)


@pytest.mark.parametrize("metric", METRICS)
def test_ranks_order_as_scores_do(metric: Metric) -> None:
    """Up to their errors, and higher is nearer for each metric."""
    rng = np.random.default_rng(2)
    for length in LENGTHS[2:]:
        vectors = of_length(rng, length, 300) * rng.uniform(0.5, 1.0, size=(300, 1)).astype(np.float32)
        query = of_length(rng, length, 1)[0]
        products = vectors @ metrics.scan_query(metric, query)
        terms = metrics.row_terms(metric, vectors)
        ranks = metrics.ranks(metric, products, terms).astype(np.float64)
        assert np.isfinite(ranks).all()
        scores = oracle_scores(metric, query, vectors)
        order = np.argsort(-scores if metric.higher_is_nearer else scores)
        rank_errors = metrics.rank_errors(metric, query, terms).astype(np.float64)[order]
        assert (np.diff(ranks[order]) <= rank_errors[1:] + rank_errors[:-1]).all()
        # Of products that float32 hardly holds nothing is certain.
        assert rank_errors.max() < np.ptp(ranks) / 100 or length < 1e-17


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_at_extreme_lengths(metric: Metric) -> None:
    """Rows of all lengths in one collection: no warning, no NaN, the right order."""
    rng = np.random.default_rng(3)
    vectors = np.concatenate([of_length(rng, length, 20) for length in LENGTHS[1:]])
    store = MiniStore(24, metric, *FLAT)
    store.upsert({f"p{row:03d}": vector for row, vector in enumerate(vectors)})
    for length in LENGTHS[1:]:
        for query in of_length(rng, length, 3):
            result, ids = store.search(query, 20)
            check(metric, store.points, query, 20, list(zip(ids, result.scores, strict=True)), exact=True)


@pytest.mark.parametrize("metric", METRICS)
def test_a_long_vector_makes_no_others_doubtful(metric: Metric) -> None:
    """A scan rescores a few candidates, whatever else is in the collection, or was."""
    rng = np.random.default_rng(5)
    store = MiniStore(24, metric, *FLAT)
    store.upsert({f"p{row:04d}": vector for row, vector in enumerate(of_length(rng, 1.0, 2_000))})
    store.upsert({"long": of_length(rng, 1e9, 1)[0]})
    for _ in range(2):
        snapshot = store.snapshot()
        for query in of_length(rng, 1.0, 20):
            request = store.request(query, 10)
            rows = scan.wanted_rows(store.index.arena, request, snapshot.view)
            assert len(scan.nearest(store.index.arena, request, rows, snapshot.view.row_count)) < 20
            result, ids = store.search(query, 10)
            check(metric, store.points, query, 10, list(zip(ids, result.scores, strict=True)), exact=True)
        snapshot.end()
        if "long" in store.points:
            store.delete(["long"])
            store.reclaim()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exponents", [(-44, -30), (-30, -10), (-24, 6), (-3, 18)])
def test_lengths_far_apart_in_one_scan(metric: Metric, exponents: tuple[int, int]) -> None:
    """Where float32 loses a row's rank altogether, the row is a candidate."""
    rng = np.random.default_rng(6)
    shortest = 10 * NORM_MIN_COSINE if metric is Metric.COSINE else 0.0
    lengths = np.maximum(10 ** rng.uniform(*exponents, size=500), shortest)
    vectors = np.concatenate([of_length(rng, length, 1) for length in lengths])
    store = MiniStore(24, metric, *FLAT)
    store.upsert({f"p{row:03d}": vector for row, vector in enumerate(vectors)})
    for exponent in (-28, -20, -10, 0, 17):
        for query in of_length(rng, 10.0**exponent, 3):
            _, ids = store.search(query, 10)
            expected = metrics.scores(metric, query, vectors)
            order = np.lexsort((np.arange(500), -expected if metric.higher_is_nearer else expected))
            assert ids == [f"p{row:03d}" for row in order[:10]]


@pytest.mark.parametrize("metric", [Metric.DOT, Metric.EUCLIDEAN])
def test_zero_vectors(metric: Metric) -> None:
    """Points and queries may be zero, but under cosine."""
    store = MiniStore(3, metric, *FLAT)
    store.upsert({name: np.array(vector, dtype=np.float32) for name, vector in
                  {"zero": [0, 0, 0], "one": [1, 0, 0], "also": [0, 0, 0], "minus": [-1, 0, 0]}.items()})  # fmt: skip
    for query in ([0, 0, 0], [1, 0, 0]):
        asked = np.array(query, dtype=np.float32)
        for limit in (2, 4):
            result, ids = store.search(asked, limit)
            check(metric, store.points, asked, limit, list(zip(ids, result.scores, strict=True)), exact=True)


def test_cosine_of_equal_directions_is_one_at_most() -> None:
    """Rounding does not carry it beyond."""
    rng = np.random.default_rng(4)
    for _ in range(200):
        vector = rng.normal(size=(1, 7)).astype(np.float32)
        for factor in (1.0, 4.0, -0.25):
            (score,) = metrics.scores(Metric.COSINE, vector[0], vector * np.float32(factor))
            assert abs(score) == 1.0


def test_norms_do_not_overflow() -> None:
    """Not even for vectors that are about to be refused."""
    assert metrics.norms(np.full((1, 4), 3e38, dtype=np.float32))[0] == pytest.approx(6e38)
    assert metrics.norms(np.zeros((0, 4), dtype=np.float32)).shape == (0,)


def test_only_a_distance_is_better_when_it_is_smaller() -> None:
    """The numbers of the metrics are on disk and on the wire."""
    assert [(metric.name, int(metric), metric.higher_is_nearer) for metric in Metric] == [
        ("COSINE", 1, True),
        ("DOT", 2, True),
        ("EUCLIDEAN", 3, False),
    ]
