"""Chunks, rows wherever they lie, and exact scans whose results do not depend on it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.index.support import FLAT, MiniStore, check, oracle_scores
from vecmem.index import arena as arenas
from vecmem.index import scan
from vecmem.index.arena import Arena
from vecmem.index.metric import Metric

DIMENSION = 4
CHUNK_ROWS = 64


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 rows, the smallest there are, so that a few hundred rows fill several."""
    monkeypatch.setattr(arenas, "CHUNK_BYTES", 1)


def vectors_of(rows: np.ndarray) -> np.ndarray:
    """A vector that tells its row."""
    return np.stack([rows, rows + 0.25, rows + 0.5, -rows], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(np.arange(5), id="contiguous"),
        pytest.param(np.array([7]), id="one"),
        pytest.param(np.arange(60, 70), id="across two chunks"),
        pytest.param(np.arange(30, 300), id="across five chunks"),
        pytest.param(np.arange(64, 128), id="one whole chunk"),
        pytest.param(np.arange(0, 300, 7), id="scattered"),
        pytest.param(np.arange(299, 0, -3), id="falling"),
        pytest.param(np.array([0, 2, 1, 3]), id="as far apart as contiguous ones"),
        pytest.param(np.array([3, 200]), id="two apart"),
        pytest.param(np.zeros(0, dtype=np.int64), id="none"),
    ],
)
@pytest.mark.parametrize("metric", list(Metric))
def test_what_was_written_is_read(rows: np.ndarray, metric: Metric) -> None:
    """Gathered, ranked and scored in the order of the rows asked for."""
    arena = Arena(DIMENSION, metric)
    arena.write(np.arange(1, 300), vectors_of(np.arange(1, 300)) * 0 + 9)
    arena.write(rows, vectors_of(rows + 1))
    expected = vectors_of(rows + 1)
    assert np.array_equal(arena.gather(rows), expected)
    query = np.array([1, -2, 3, 4], dtype=np.float32)
    scores = oracle_scores(metric, query, expected) if rows.size else np.zeros(0)
    np.testing.assert_allclose(arena.scores(query, rows), scores, rtol=1e-6, atol=1e-7)
    ranks, rank_errors = arena.ranks(query, rows)
    assert ranks.shape == rank_errors.shape == rows.shape
    if metric is Metric.EUCLIDEAN:
        scores = float(query @ query) - scores**2
    elif metric is Metric.COSINE:
        scores = np.round(scores, 6)
        ranks = np.round(ranks, 6)
    np.testing.assert_allclose(ranks, scores, rtol=1e-5, atol=max(rank_errors, default=0))


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_do_not_depend_on_how_many_are_taken_together(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows are scored part by part."""
    rng = np.random.default_rng(9)
    arena = Arena(DIMENSION, metric)
    arena.write(np.arange(200), rng.normal(size=(200, DIMENSION)).astype(np.float32))
    query, rows = rng.normal(size=DIMENSION).astype(np.float32), rng.permutation(200)
    together = arena.scores(query, rows)
    for values in (1, 7 * DIMENSION):
        monkeypatch.setattr(arenas, "SCORE_VALUES", values)
        assert np.array_equal(arena.scores(query, rows), together)


def test_presence_is_counted_and_lasts_until_cleared() -> None:
    """Also beyond the rows that were ever written."""
    arena = Arena(DIMENSION, Metric.DOT)
    assert arena.present(3).tolist() == [False] * 3
    arena.write(np.array([1, 100]), vectors_of(np.array([1, 100])))
    assert arena.present_count == 2
    assert np.flatnonzero(arena.present(1000)).tolist() == [1, 100]
    arena.clear(np.array([0, 1, 5_000]))
    assert arena.present_count == 1
    assert np.flatnonzero(arena.present(101)).tolist() == [100]
    arena.clear(np.array([1]))
    assert arena.present_count == 1


def test_chunks_do_not_move_when_the_arena_grows() -> None:
    """A reader's array of rows or of presence stays what it was."""
    arena = Arena(DIMENSION, Metric.EUCLIDEAN)
    arena.write(np.arange(10), vectors_of(np.arange(10)))
    before = next(arena.chunks(10))
    present = arena.present(10)
    arena.write(np.arange(10, 5_000), vectors_of(np.arange(10, 5_000)))
    assert np.shares_memory(before, next(arena.chunks(5_000)))
    assert np.array_equal(before, vectors_of(np.arange(10)))
    assert present.all()


@pytest.mark.parametrize("row_count", [0, 1, 63, 64, 65, 200, 400])
def test_chunks_hold_every_row_once(row_count: int) -> None:
    """Also rows past the last that was written; loading them brings the same arena back."""
    arena = Arena(DIMENSION, Metric.COSINE)
    written = np.arange(1, 250, 2)
    arena.write(written, vectors_of(written))
    parts = list(arena.chunks(row_count))
    assert sum(map(len, parts)) == row_count
    everything = np.concatenate([np.zeros((0, DIMENSION), dtype=np.float32), *parts])
    present = arena.present(row_count).copy()
    assert np.array_equal(everything[present], vectors_of(np.flatnonzero(present)))
    loaded = Arena(DIMENSION, Metric.COSINE)
    for room, part in zip(loaded.room(row_count), parts, strict=True):
        room[:] = part
    loaded.adopt(present)
    assert np.array_equal(loaded.present(row_count), present)
    assert loaded.present_count == np.count_nonzero(present)
    rows = np.flatnonzero(present)
    assert np.array_equal(loaded.gather(rows), arena.gather(rows))
    query = vectors_of(np.array([7]))[0]
    for there, here in zip(loaded.ranks(query, rows), arena.ranks(query, rows), strict=True):
        assert np.array_equal(there, here), "a scan needs more of a row than its vector"


def test_a_loaded_arena_knows_its_longest_vector() -> None:
    arena = Arena(DIMENSION, Metric.EUCLIDEAN)
    rows = np.arange(100)
    arena.write(rows, vectors_of(rows) * np.float32(3))
    loaded = Arena(DIMENSION, Metric.EUCLIDEAN)
    for room, part in zip(loaded.room(100), arena.chunks(100), strict=True):
        room[:] = part
    loaded.adopt(arena.present(100))
    assert loaded.largest_norm == arena.largest_norm > 0


def test_a_scan_of_most_rows_ends_with_the_last_vector() -> None:
    """Points without this vector may have rows in chunks that this arena never made."""
    store = MiniStore(DIMENSION, Metric.DOT, *FLAT)
    store.upsert({f"p{row}": vector for row, vector in enumerate(vectors_of(np.arange(CHUNK_ROWS)))})
    store.upsert_without_vector([f"q{row}" for row in range(20)])
    assert store.search(np.ones(DIMENSION), 3)[1] == ["p63", "p62", "p61"]


def test_a_view_may_know_rows_that_are_still_being_written() -> None:
    """Rows given out, and not filled, when the snapshot is taken."""
    store = MiniStore(DIMENSION, Metric.DOT, *FLAT)
    store.upsert({f"p{row}": vector for row, vector in enumerate(vectors_of(np.arange(CHUNK_ROWS)))})
    store.table.allocate(30)
    assert store.search(np.ones(DIMENSION), 2)[1] == ["p63", "p62"]


@pytest.mark.parametrize("metric", list(Metric))
def test_equal_vectors_score_the_same_wherever_they_lie(metric: Metric) -> None:
    """The rounding of BLAS depends on a row's place; scores and ties do not."""
    rng = np.random.default_rng(7)
    store = MiniStore(33, metric, *FLAT)
    twin = rng.normal(size=33).astype(np.float32)
    for turn in range(40):
        points = {f"x{turn:02d}{index}": rng.normal(size=33).astype(np.float32) for index in range(turn % 5)}
        store.upsert({**points, f"twin{39 - turn:02d}": twin})
    query = (twin + 0.01 * rng.normal(size=33)).astype(np.float32)
    for limit in (1, 13, 39, 40):
        result, ids = store.search(query, limit)
        if metric is not Metric.DOT:
            assert ids == [f"twin{place:02d}" for place in range(limit)]
            assert len(set(result.scores)) == 1
        check(metric, store.points, query, limit, list(zip(ids, result.scores, strict=True)), exact=True)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("metric", list(Metric))
def test_scans_of_picked_rows_and_of_all_agree_with_the_oracle(metric: Metric, share: float) -> None:
    """On both sides of the share above which all rows are scanned, with an offset that eats up float32's digits."""
    rng = np.random.default_rng(8)
    store = MiniStore(8, metric, *FLAT)
    store.upsert({f"p{i:03d}": (rng.normal(size=8) + 300).astype(np.float32) for i in range(400)})
    passing = set(sorted(store.points)[: int(400 * share)])
    for _ in range(5):
        query = (rng.normal(size=8) + 300).astype(np.float32)
        result, ids = store.search(query, 6, allowed=store.mask(passing.__contains__))
        points = {name: store.points[name] for name in passing}
        check(metric, points, query, 6, list(zip(ids, result.scores, strict=True)), exact=True)


def test_rows_of_the_tail_come_in_any_order() -> None:
    """Reused rows are not rising; a scan of most rows must not take the last for the largest."""
    store = MiniStore(DIMENSION, Metric.DOT, *FLAT)
    store.upsert({f"p{row}": vector for row, vector in enumerate(vectors_of(np.arange(100)))})
    snapshot = store.snapshot()
    rows = np.roll(np.arange(100), -50)
    request = store.request(np.ones(DIMENSION), 3)
    assert set(scan.nearest(store.index.arena, request, rows, snapshot.view.row_count).tolist()) >= {97, 98, 99}
    snapshot.end()
