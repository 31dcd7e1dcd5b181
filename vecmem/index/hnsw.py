"""The HNSW index over the hnswlib package: what the kernel's (vecmem.index.kernel) is tested and measured against.

- The *arena* holds every vector and answers for exact scores.
- The *tail* lists rows that are not in the graph yet; every search scans it, so a point is found the moment it is published.
- The *graph* holds the rest. `maintain` moves the tail into it in short slices.

Rows with equal vectors share a node of the graph. Dead rows leave it by losing their label (`forget`); a node that stands for no row
any more is marked deleted (`maintain`). Deleted nodes stay as stepping stones and cost time and memory, so when their share passes
`REBUILD_SHARE` a second graph is built beside the first, slice by slice, and takes its place. Meanwhile new rows stay in the tail.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecmem.index import fetching, scan
from vecmem.index.arena import Arena, Rows
from vecmem.index.effort import Effort
from vecmem.index.labelled_graph import LabelledGraph
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import HnswParameters, VectorParameters
from vecmem.index.rows import RowTable, RowView
from vecmem.index.tail import Tail
from vecmem.index.vector_index import IndexStatistics, SavedValue, SearchPlan, SearchRequest, SearchResult

REBUILD_SHARE = 0.2
"""Share of deleted nodes that triggers a rebuild."""
REBUILD_ROWS_MIN = 1_000
"""Graphs with fewer deleted nodes than this are left alone: they cost next to nothing."""


class HnswIndex:
    """A VectorIndex with a graph. `table` is the row table of the collection."""

    def __init__(self, parameters: VectorParameters, table: RowTable) -> None:
        self.parameters = parameters
        self.arena = Arena(parameters.dimension, parameters.metric, parameters.storage)
        self.effort = Effort()
        self._table = table
        self._tail = Tail()
        self._current = LabelledGraph(parameters)
        self._rebuilt: LabelledGraph | None = None
        self._to_rebuild: Rows = np.zeros(0, dtype=np.int64)
        self._parameters_changed = False
        # `forget` runs beside `maintain`: this keeps a row from being forgotten in one place while it moves to the next.
        self._forgetting = threading.Lock()

    def add(self, rows: Rows, vectors: Float32Array) -> None:
        """See VectorIndex."""
        self.arena.write(rows, vectors)
        self._tail.append(rows)

    def forget(self, rows: Rows) -> None:
        """See VectorIndex."""
        self.arena.clear(rows)
        with self._forgetting:
            self._tail.discard(rows)
            self._current.forget(rows)
            if self._rebuilt is not None:
                self._rebuilt.forget(rows)

    # -- search: any thread ---------------------------------------------------------------------------------------------

    def search(self, requests: Sequence[SearchRequest], view: RowView, *, threads: int = 1) -> list[SearchResult]:  # noqa: ARG002
        """See VectorIndex."""
        return [self._search(request, view) for request in requests]

    def _search(self, request: SearchRequest, view: RowView) -> SearchResult:
        # The tail first: a row that moves to the graph meanwhile is then in both, never in neither.
        tail = self._tail.rows()
        found = None if self._is_exact(request) else self._search_graph(request, view, len(tail))
        if found is None:
            rows = scan.wanted_rows(self.arena, request, view)
            candidates, plan = scan.nearest(self.arena, request, rows, view.row_count), "scan"
        else:
            rows = self._passing(tail, request, view)
            candidates, plan = np.concatenate([found, scan.nearest(self.arena, request, rows, view.row_count)]), "graph"
        return SearchResult(*scan.best(self.arena, request, candidates, view.ids), plan=SearchPlan(plan))

    def search_if_quick(
        self,
        requests: Sequence[SearchRequest],  # noqa: ARG002
        view: RowView,  # noqa: ARG002
        *,
        threads: int = 1,  # noqa: ARG002
    ) -> list[SearchResult] | None:
        """See VectorIndex. The graph may be held by an insertion."""
        return None

    def _is_exact(self, request: SearchRequest) -> bool:
        return request.exact or self._hnsw().aim(request.ef, request.target_recall)[1] >= 1

    def _effort(self, request: SearchRequest, selectivity: float) -> int:
        ef, target_recall = self._hnsw().aim(request.ef, request.target_recall)
        return max(ef or self.effort.ef(target_recall, limit=request.limit, selectivity=selectivity), request.limit)

    def _search_graph(self, request: SearchRequest, view: RowView, tail_count: int) -> Rows | None:
        """Rows of the graph that pass, at least `limit` of them where the graph holds so many; None: scan instead."""
        current = self._current
        graph_count = current.live_count
        if request.allowed is None:
            matching_count = row_count = graph_count
        else:
            matching_count = request.allowed.count
            row_count = max(graph_count + tail_count, matching_count)
        plan = fetching.choose(
            limit=request.limit,
            ef=self._effort(request, matching_count / max(row_count, 1)),
            matching_count=matching_count,
            row_count=row_count,
            graph_count=graph_count,
        )
        while plan.fetch:
            # Nodes of dead rows that are not marked yet take places among the results.
            dead_count = len(current.unlabelled) + self._table.dead_count
            fetch = plan.fetch + min(dead_count, plan.fetch)
            found, groups = current.search(request.query, fetch, plan.ef)
            rows = self._passing(found, request, view)
            if groups:
                rows = np.concatenate([rows, *(self._first_passing(group, request, view) for group in groups)])
            if len(rows) >= request.limit:
                return rows
            plan = fetching.widen(
                plan, found=len(rows), limit=request.limit, matching_count=matching_count, graph_count=graph_count
            )
        return None

    def _passing(self, rows: Rows, request: SearchRequest, view: RowView) -> Rows:
        rows = rows[rows < view.row_count]
        passing = view.visible(rows)
        if request.allowed is not None:
            passing &= request.allowed.contains(rows)
        return rows[passing]

    def _first_passing(self, group: Rows, request: SearchRequest, view: RowView) -> Rows:
        """Of rows with equal vectors those that can be hits: they have one score, so ids decide."""
        rows = self._passing(group, request, view)
        if len(rows) <= request.limit:
            return rows
        return np.array(heapq.nsmallest(request.limit, rows.tolist(), key=view.ids.__getitem__), dtype=np.int64)

    # -- maintenance: one thread -----------------------------------------------------------------------------------------

    def has_work(self, *, tail_rows_min: int = 1) -> bool:
        """See VectorIndex."""
        return (
            bool(self._current.unlabelled or self._rebuilt is not None or len(self._tail) >= tail_rows_min)
            or self._wants_rebuild()
        )

    def maintain(self, *, threads: int, slice_rows: int) -> bool:
        """See VectorIndex."""
        if self._rebuilt is None and self._wants_rebuild():
            self._begin_rebuild()
        if self._rebuilt is not None:
            self._continue_rebuild(self._rebuilt, threads, slice_rows)
            return True
        # Deletion is about as cheap as a search's bookkeeping, so a slice takes many more of them.
        if self._current.mark_deleted(slice_rows * 16):
            return True
        return self._drain(threads, slice_rows)

    def _drain(self, threads: int, slice_rows: int) -> bool:
        with self._table.readers.reading():
            # Inside the block no row is reused. Dead rows move like the living: an earlier snapshot may still see them. And a
            # record that is being applied may have put rows here that are not published yet: their vectors are written.
            rows = self._tail.first(slice_rows)
            if rows.size:
                labels = self._current.insert(rows, self.arena.gather(rows), self.arena, threads)
                with self._forgetting:
                    # Findable by the graph before it leaves the tail.
                    self._current.attach(rows, labels)
                    kept = rows[self._tail.discard(rows)]
                    self._current.keep(rows, labels, known=set(kept.tolist()))
        return bool(rows.size)

    def _wants_rebuild(self) -> bool:
        deleted_count = self._current.graph.deleted_count
        if self._parameters_changed:
            return True
        return deleted_count >= max(REBUILD_ROWS_MIN, REBUILD_SHARE * self._current.graph.label_count)

    def _begin_rebuild(self) -> None:
        with self._forgetting:
            self._parameters_changed = False
            self._rebuilt = LabelledGraph(self.parameters)
            self._to_rebuild = np.array(list(self._current.label_of), dtype=np.int64)

    def _continue_rebuild(self, rebuilt: LabelledGraph, threads: int, slice_rows: int) -> None:
        rows, self._to_rebuild = self._to_rebuild[:slice_rows], self._to_rebuild[slice_rows:]
        known = self._current.label_of
        with self._table.readers.reading():
            # A row that lost its label is forgotten, and may be another's by now: that one is in the tail.
            rows = np.array([row for row in rows.tolist() if row in known], dtype=np.int64)
            if rows.size:
                labels = rebuilt.insert(rows, self.arena.gather(rows), self.arena, threads)
                with self._forgetting:
                    rebuilt.attach(rows, labels)
                    rebuilt.keep(rows, labels, known)
        with self._forgetting:
            if not self._to_rebuild.size and self._rebuilt is rebuilt:
                self._current, self._rebuilt = rebuilt, None

    # -- the rest: event loop -------------------------------------------------------------------------------------------

    def wants_measuring(self) -> bool:
        """See VectorIndex: never."""
        return False

    def measure(self) -> None:
        """See VectorIndex: nothing to do."""

    def configure(self, parameters: VectorParameters, arena: Arena | None = None) -> None:
        """See VectorIndex. Changed build parameters take effect by a rebuild."""
        new, old = parameters.hnsw, self._hnsw()
        assert new is not None
        with self._forgetting:
            self.parameters = parameters
            if arena is not None:
                self.arena = arena
            if (new.m, new.ef_construction) != (old.m, old.ef_construction):
                # A rebuild under way has the old parameters: begin again.
                self._rebuilt = None
                self._parameters_changed = True

    def statistics(self) -> IndexStatistics:
        """See VectorIndex."""
        current = self._current
        return IndexStatistics(
            vector_count=self.arena.present_count,
            graph_row_count=current.live_count,
            tail_row_count=len(self._tail),
            graph_deleted_row_count=current.dead_node_count,
            rebuilding=self._rebuilt is not None or self._wants_rebuild(),
            arena_bytes=self.arena.allocated_bytes,
            graph_bytes=current.graph.size_bytes,
        )

    def save(self, directory: Path, name: str) -> dict[str, SavedValue]:
        """See VectorIndex: the graph, and what its labels stand for. A rebuild under way is not saved: it begins again."""
        current = self._current
        if current.graph.label_count:
            current.save(directory, name)
        parameters = current.graph.parameters
        return {
            "label_count": current.graph.label_count,
            "deleted_count": current.graph.deleted_count,
            "m": parameters.m,
            "ef_construction": parameters.ef_construction,
            "scale_exponent": current.graph.scale_exponent,
        }

    def load(self, directory: Path, name: str, metadata: dict[str, SavedValue], live: NDArray[np.bool_]) -> None:
        """See VectorIndex."""
        current = LabelledGraph(self.parameters)
        if metadata["label_count"]:
            current.load(directory, name, metadata, live, self.arena)
        self._current = current
        hnsw = self._hnsw()
        self._parameters_changed = (metadata["m"], metadata["ef_construction"]) != (hnsw.m, hnsw.ef_construction)
        in_graph = np.zeros(live.size, dtype=np.bool_)
        in_graph[list(current.label_of)] = True
        self._tail.append(np.flatnonzero(self.arena.present(live.size) & live & ~in_graph))

    def _hnsw(self) -> HnswParameters:
        assert self.parameters.hnsw is not None
        return self.parameters.hnsw
