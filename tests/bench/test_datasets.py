"""Data sets load whole, and recall is measured by score."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from bench.datasets import Dataset, load, recall, scores, worst_true_scores

ROOT = Path(__file__).resolve().parent.parent.parent
FULL = ROOT.parent / "shared" / "data"


def dataset(metric, vectors, queries):
    ids = [str(row) for row in range(len(vectors))]
    return Dataset("x", metric, ids, vectors, [{}] * len(vectors), "synthetic", queries, [], queries[:0])


def test_the_slice_holds_every_answer_that_the_archive_has():
    data = load(ROOT / "bench" / "data")
    assert data.vectors.shape == (5_000, 384)
    assert len(set(data.ids)) == len(data.payloads) == 5_000
    assert len(data.questions) == len(data.question_vectors) == 98
    assert np.allclose(np.linalg.norm(data.vectors, axis=1), 1, atol=1e-3)
    assert all(payload["summary"] and "id" not in payload for payload in data.payloads)
    relevant = {name for question in data.questions for name in question.relevant}
    assert len(relevant - set(data.ids)) <= 4


@pytest.mark.skipif(not FULL.exists(), reason="the full data set is on development machines only")
def test_the_slice_is_cut_from_the_full_set_row_by_row():
    part, whole = load(ROOT / "bench" / "data"), load(FULL)
    row_of = {point_id: row for row, point_id in enumerate(whole.ids)}
    rows = [row_of[point_id] for point_id in part.ids]
    assert rows == sorted(rows)
    assert np.array_equal(part.vectors, whole.vectors[rows])
    assert part.payloads == [whole.payloads[row] for row in rows]
    assert whole.payload_kind == "records"


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_the_truth_is_that_of_a_plain_sort(metric):
    random = np.random.default_rng(20)
    vectors = random.standard_normal((500, 8), dtype=np.float32)
    queries = random.standard_normal((70, 8), dtype=np.float32)
    data = dataset(metric, vectors, queries)
    worst = worst_true_scores(data, queries, 10)
    for query, threshold in zip(queries, worst, strict=True):
        assert np.sort(scores(metric, query, vectors))[-10] == pytest.approx(threshold, abs=1e-6)
    best = [list(np.argsort(-scores(metric, query, vectors))[:10]) for query in queries]
    assert recall(data, queries, worst, best, 10) == 1
    assert recall(data, queries, worst, [[*rows[:9], 499 if 499 not in rows else 498] for rows in best], 10) == 0.9
    assert recall(data, queries, worst, [rows[:5] for rows in best], 10) == 0.5
    assert recall(data, queries, worst, [[rows[0]] * 10 for rows in best], 10) == 0.1
    assert recall(data, queries, worst, [[] for _ in best], 10) == 0


def test_ties_count_as_hits():
    vectors = np.array([[1, 0]] * 5 + [[0, 1]], dtype=np.float32)
    queries = np.array([[1, 0]], dtype=np.float32)
    data = dataset("cosine", vectors, queries)
    worst = worst_true_scores(data, queries, 2)
    assert recall(data, queries, worst, [[3, 4]], 2) == 1
    assert recall(data, queries, worst, [[3, 5]], 2) == 0.5


def test_an_hdf5_file_takes_the_records_beside_it_only_when_they_fit(tmp_path):
    with h5py.File(tmp_path / "x-euclidean.hdf5", "w") as file:
        file["train"], file["test"] = np.eye(3), np.eye(3)[:1]
    assert load(tmp_path / "x-euclidean.hdf5").payload_kind == "synthetic"
    lines = "".join(json.dumps({"id": f"p{i}", "n": i}) + "\n" for i in range(3))
    (tmp_path / "debian-packages.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    data = load(tmp_path)
    assert (data.payload_kind, data.ids, data.metric) == ("records", ["p0", "p1", "p2"], "euclidean")
    (tmp_path / "debian-packages.jsonl.gz").write_bytes(gzip.compress(lines.encode()[: lines.index("\n") + 1]))
    assert load(tmp_path).ids == ["0", "1", "2"]


def test_a_file_that_says_nothing_of_its_distance_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["train"], file["test"] = np.eye(3), np.eye(3)
    with pytest.raises(ValueError, match="says nothing of its distance"):
        load(tmp_path / "x.hdf5")


def test_a_synthetic_set_is_the_same_however_it_is_read():
    small, large = load(Path("synthetic:5000x24")), load(Path("synthetic:9000x24"))
    assert small.vectors.shape == (5_000, 24)
    assert small.dimension == 24
    assert len(small.payloads) == len(small.ids) == 5_000
    whole = small.vectors[:]
    assert whole.dtype == np.float32
    assert np.array_equal(whole, large.vectors[:5_000])
    assert np.array_equal(small.vectors[4_090:4_100], whole[4_090:4_100])
    rows = np.array([4_999, 0, 4_096, 4_095, 0])
    assert np.array_equal(small.vectors[rows], whole[rows])
    assert np.array_equal(small.queries, large.queries)
    assert small.payloads[4_999] == {"row": 4_999, "group": "group-99"}
    assert small.payloads[2:4] == [small.payloads[2], small.payloads[3]]
    for wrong in ([5_000], [-1]):
        with pytest.raises(IndexError):
            small.vectors[wrong]


def test_a_synthetic_set_has_near_neighbours():
    """Clusters: the tenth nearest is far nearer than any two points that have nothing to do with each other."""
    data = load(Path("synthetic:20000x64"))
    queries = data.queries[:50]
    worst = worst_true_scores(data, queries, 10)
    typical = [float(np.median(scores("cosine", query, data.vectors[:2_000]))) for query in queries]
    assert np.median(worst) > 0.6
    assert abs(np.median(typical)) < 0.2


@pytest.mark.parametrize("name", ["synthetic:0x4", "synthetic:10x", "synthetic:10x4x2"])
def test_other_shapes_of_a_synthetic_set_are_refused(name):
    with pytest.raises(FileNotFoundError):
        load(Path(name))


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_the_truth_among_what_matches_is_that_of_the_matching_rows_alone(metric):
    random = np.random.default_rng(21)
    vectors = random.standard_normal((9_000, 8), dtype=np.float32)
    queries = random.standard_normal((70, 8), dtype=np.float32)
    data = dataset(metric, vectors, queries)
    for matching in (random.random(9_000) < 0.2, np.arange(9_000) == 8_500):
        rows = np.flatnonzero(matching)
        alone = dataset(metric, vectors[rows], queries)
        worst = worst_true_scores(data, queries, 10, matching)
        np.testing.assert_allclose(worst, worst_true_scores(alone, queries, 10), atol=1e-6)
        best = [list(rows[np.argsort(-scores(metric, query, vectors[rows]))[:10]]) for query in queries]
        assert recall(data, queries, worst, best, 10, matching) == 1
        others = np.flatnonzero(~matching)
        nearer = [list(others[np.argsort(-scores(metric, query, vectors[others]))[:10]]) for query in queries]
        assert recall(data, queries, worst, nearer, 10, matching) == 0
