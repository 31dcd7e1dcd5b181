"""A store in miniature, and an oracle: what tests of vector indexes share.

`MiniStore` gives out rows, sequences and snapshots as the store does, over a real RowTable and a real index, and keeps a plain dict of what
must be there. `check` compares a search with float64 scores computed here, by formulas that share nothing with the code under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vecmem.index.flat import FlatIndex
from vecmem.index.hnsw import HnswIndex
from vecmem.index.kernel import KernelIndex
from vecmem.index.metric import Metric
from vecmem.index.parameters import HnswParameters, VectorParameters
from vecmem.index.row_set import RowSet
from vecmem.index.rows import NEVER, RowTable
from vecmem.index.vector_index import SearchRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from vecmem.index.rows import RowView
    from vecmem.index.vector_index import SearchResult, VectorIndex

    Vectors = NDArray[np.float32]

HNSW = HnswParameters(m=16, ef_construction=100, ef=64)
Kind = tuple[HnswParameters | None, type]
FLAT: Kind = (None, FlatIndex)
HNSWLIB: Kind = (HNSW, HnswIndex)
KERNEL: Kind = (HNSW, KernelIndex)


def oracle_scores(metric: Metric, query: Vectors, vectors: Vectors) -> NDArray[np.float64]:
    """Scores in float64; shape (n,)."""
    wide, wide_query = vectors.astype(np.float64), query.astype(np.float64)
    if metric is Metric.EUCLIDEAN:
        return np.linalg.norm(wide - wide_query, axis=1)
    products = (wide * wide_query).sum(axis=1)
    if metric is Metric.DOT:
        return products
    return products / np.linalg.norm(wide, axis=1) / np.linalg.norm(wide_query)


@dataclass
class Snapshot:
    """What a search at one moment must see. `end` gives the reader's ticket back."""

    view: RowView
    points: dict[str, Vectors]
    end: Callable[[], None]


class MiniStore:
    """Plays the part of the store: everything but `search` and `maintain` belongs to one thread."""

    def __init__(self, dimension: int, metric: Metric, hnsw: HnswParameters | None, kind: type = KernelIndex) -> None:
        self.parameters = VectorParameters(dimension, metric, hnsw)
        self.kind = kind
        self.table = RowTable()
        self.index: VectorIndex = self._new_index()
        self.points: dict[str, Vectors] = {}
        self.row_of: dict[str, int] = {}
        self.sequence = 0

    def _new_index(self) -> VectorIndex:
        if self.parameters.hnsw is None:
            return FlatIndex(self.parameters)
        index: VectorIndex = self.kind(self.parameters, self.table)
        return index

    @property
    def metric(self) -> Metric:
        return self.parameters.metric

    def upsert(self, points: Mapping[str, Vectors]) -> None:
        """One record: new rows, their vectors, then birth; the rows replaced die last."""
        self.sequence += 1
        rows = self.table.allocate(len(points))
        vectors = np.array(list(points.values()), dtype=np.float32).reshape(-1, self.parameters.dimension)
        self.index.add(rows, vectors)
        replaced = [self.row_of[point_id] for point_id in points if point_id in self.row_of]
        for row, (point_id, vector) in zip(rows.tolist(), points.items(), strict=True):
            self.table.publish(row, point_id, self.sequence, 0)
            self.row_of[point_id] = row
            self.points[point_id] = np.asarray(vector, dtype=np.float32)
        if replaced:
            self.table.kill(np.array(replaced), self.sequence)

    def upsert_without_vector(self, point_ids: Iterable[str]) -> None:
        """Points of the collection that this vector is absent from."""
        self.sequence += 1
        names = list(point_ids)
        for row, point_id in zip(self.table.allocate(len(names)).tolist(), names, strict=True):
            self.table.publish(row, point_id, self.sequence, 0)
            self.row_of[point_id] = row

    def delete(self, point_ids: Iterable[str]) -> None:
        """One record."""
        self.sequence += 1
        rows = []
        for point_id in point_ids:
            self.points.pop(point_id, None)
            rows.append(self.row_of.pop(point_id))
        if rows:
            self.table.kill(np.array(rows), self.sequence)

    def reclaim(self) -> None:
        """All that can be reclaimed now, slice by slice."""
        while self.table.reclaim(self.index.forget):
            pass

    def maintain(self, slice_rows: int = 256, threads: int = 1) -> bool:
        return self.index.maintain(threads=threads, slice_rows=slice_rows)

    def settle(self, slice_rows: int = 256) -> None:
        """Reclaim and maintain until nothing is left to do."""
        self.reclaim()
        for _ in range(10_000):
            if not self.index.has_work():
                self.reclaim()
                return
            self.maintain(slice_rows)
            self.reclaim()
        raise AssertionError("maintenance does not come to an end")

    def snapshot(self) -> Snapshot:
        ticket = self.table.readers.begin()
        return Snapshot(self.table.view(self.sequence, 0), dict(self.points), lambda: self.table.readers.end(ticket))

    def mask(self, passes: Callable[[str], bool]) -> RowSet:
        """A filter's result; like the store's, it may be true for rows that are dead or free."""
        return RowSet.of_mask(np.array([passes(point_id) for point_id in self.table.ids], dtype=np.bool_))

    def request(self, query: Vectors, limit: int, **options: object) -> SearchRequest:
        return replace(SearchRequest(np.asarray(query, dtype=np.float32), limit), **options)  # type: ignore[arg-type]

    def search(self, query: Vectors, limit: int, **options: object) -> tuple[SearchResult, list[str]]:
        """A search at a snapshot taken now, with the ids of its hits."""
        snapshot = self.snapshot()
        try:
            result = self.index.search([self.request(query, limit, **options)], snapshot.view)[0]
            return result, [snapshot.view.ids[row] for row in result.rows]
        finally:
            snapshot.end()

    def restarted(self, directory: Path) -> MiniStore:
        """A store from the files of this one, as a checkpoint makes and loads them."""
        directory.mkdir(exist_ok=True)
        row_count = self.table.row_count
        live = np.zeros(row_count, dtype=np.bool_)
        live[self.table.live_rows()] = True
        saved = [chunk.copy() for chunk in self.index.arena.chunks(row_count)]
        metadata = json.loads(json.dumps(self.index.save(directory, "0")))

        fresh = MiniStore(self.parameters.dimension, self.metric, self.parameters.hnsw, self.kind)
        ids = [point_id if live[row] else "" for row, point_id in enumerate(self.table.ids)]
        fresh.table.load(ids, self.table.versions[:row_count].copy(), np.full(row_count, NEVER), live)
        for room, chunk in zip(fresh.index.arena.room(row_count), saved, strict=True):
            room[:] = chunk
        fresh.index.arena.adopt(self.index.arena.present(row_count) & live)
        fresh.index.load(directory, "0", metadata, live)
        fresh.points, fresh.row_of, fresh.sequence = dict(self.points), dict(self.row_of), self.sequence
        return fresh


def check(
    metric: Metric,
    points: Mapping[str, Vectors],
    query: Vectors,
    limit: int,
    hits: list[tuple[str, float]],
    *,
    exact: bool,
) -> None:
    """Raise AssertionError unless `hits` are right: known ids once, true scores, in order, ties by id, as many as there can be.

    `exact`: also the very best ones. Scores within float32 rounding of one another may come in either order.
    """
    ids = [point_id for point_id, _ in hits]
    assert len(set(ids)) == len(ids), f"a point twice in {ids}"
    assert set(ids) <= set(points), f"not of the snapshot: {set(ids) - set(points)}"
    assert len(hits) == min(limit, len(points)), f"{len(hits)} hits of {len(points)} points at limit {limit}"
    if not hits:
        return
    names = list(points)
    scores = dict(zip(names, oracle_scores(metric, query, np.array([points[n] for n in names])), strict=True))
    largest = max(map(abs, scores.values()))
    tolerance = 1e-6 * max(largest, 1e-30) + 1e-7 * (metric is Metric.COSINE)
    for point_id, score in hits:
        assert abs(score - scores[point_id]) <= tolerance, f"{point_id}: {score} instead of {scores[point_id]}"
    sign = -1.0 if metric.higher_is_nearer else 1.0
    assert hits == sorted(hits, key=lambda hit: (sign * hit[1], hit[0])), f"not in order: {hits}"
    if exact:
        last_id, last_score = hits[-1]
        for point_id in set(points) - set(ids):
            assert sign * scores[point_id] >= sign * last_score - tolerance, f"{point_id} is missing from {hits}"
            if np.array_equal(points[point_id], points[last_id]):
                assert point_id > last_id, f"{point_id} ties with {last_id} and comes first"


def recall(metric: Metric, points: Mapping[str, Vectors], query: Vectors, limit: int, ids: Iterable[str]) -> float:
    """Share of the hits that are as near as the true `limit`-th nearest, so that ties count."""
    if not points:
        return 1.0
    names = list(points)
    scores = oracle_scores(metric, query, np.array([points[name] for name in names]))
    ranks = scores if metric.higher_is_nearer else -scores
    wanted = min(limit, len(names))
    worst = np.partition(ranks, len(ranks) - wanted)[len(ranks) - wanted]
    rank_of = dict(zip(names, ranks, strict=True))
    return sum(rank_of[point_id] >= worst - 1e-7 * abs(worst) for point_id in ids) / wanted
