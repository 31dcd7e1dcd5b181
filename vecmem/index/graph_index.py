"""What indexes with a graph have in common: arena, tail and graph, and how rows go from one to the next.

- The *arena* holds every vector and answers for exact scores.
- The *tail* lists rows that are not in the graph yet; every search scans it, so a point is found the moment it is published.
- The *graph* (`vecmem.index.row_graph`) holds the rest. `maintain` moves the tail into it in short slices.

Dead rows leave the graph's results at once (`forget`) and are marked deleted a little later (`maintain`). Deleted nodes stay as
stepping stones and cost time and memory, so when their share passes `REBUILD_SHARE` a second graph is built beside the first, slice by
slice, and takes its place. Meanwhile new rows stay in the tail. How a graph is searched is the business of the derived classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecmem.index.arena import Arena, Rows
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import HnswParameters, VectorParameters
from vecmem.index.row_graph import RowGraph
from vecmem.index.rows import RowTable, RowView
from vecmem.index.tail import Tail
from vecmem.index.vector_index import IndexStatistics, SearchRequest, SearchResult

REBUILD_SHARE = 0.2
"""Share of deleted nodes that triggers a rebuild."""
REBUILD_ROWS_MIN = 1_000
"""Graphs with fewer deleted nodes than this are left alone: they cost next to nothing."""

GraphT = TypeVar("GraphT", bound=RowGraph)


class GraphIndex(ABC, Generic[GraphT]):
    """A VectorIndex with a graph. `table` is the row table of the collection."""

    def __init__(self, parameters: VectorParameters, table: RowTable) -> None:
        self.parameters = parameters
        self.arena = Arena(parameters.dimension, parameters.metric)
        self._table = table
        self._tail = Tail()
        self._current = self._new_graph(parameters)
        self._rebuilt: GraphT | None = None
        self._to_rebuild: Rows = np.zeros(0, dtype=np.int64)
        self._parameters_changed = False

    def add(self, rows: Rows, vectors: Float32Array) -> None:
        """See VectorIndex."""
        self.arena.write(rows, vectors)
        self._tail.append(rows)

    def forget(self, rows: Rows) -> None:
        """See VectorIndex."""
        self.arena.clear(rows)
        self._tail.discard(rows)
        self._current.forget(rows)
        if self._rebuilt is not None:
            self._rebuilt.forget(rows)

    @abstractmethod
    def _new_graph(self, parameters: VectorParameters) -> GraphT:
        """An empty graph over the rows of the arena."""

    @abstractmethod
    def search(self, request: SearchRequest, view: RowView) -> SearchResult:
        """See VectorIndex."""

    def _passing(self, rows: Rows, request: SearchRequest, view: RowView) -> Rows:
        rows = rows[rows < view.row_count]
        passing = view.visible(rows)
        if request.allowed is not None:
            passing &= request.allowed[rows]
        return rows[passing]

    # -- maintenance: one thread -----------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """See VectorIndex."""
        return (
            bool(self._current.unmarked_count or self._rebuilt is not None or len(self._tail)) or self._wants_rebuild()
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
            # Inside the block no row of the slice is forgotten or reused. A record that is being applied may have put rows
            # here that are not published yet: they are written, and invisible until published.
            rows = self._tail.first(slice_rows)
            alive = rows[self._table.is_not_dead(rows)]
            if alive.size:
                self._current.add(alive, self.arena.gather(alive), threads)
            self._tail.discard(rows)
        return bool(rows.size)

    def _wants_rebuild(self) -> bool:
        current = self._current
        if self._parameters_changed or current.wants_rebuild():
            return True
        deleted_count = current.node_count - current.live_count - current.unmarked_count
        return deleted_count >= max(REBUILD_ROWS_MIN, REBUILD_SHARE * current.node_count)

    def _begin_rebuild(self) -> None:
        self._parameters_changed = False
        self._rebuilt = self._new_graph(self.parameters)
        self._to_rebuild = self._current.rows()

    def _continue_rebuild(self, rebuilt: GraphT, threads: int, slice_rows: int) -> None:
        rows, self._to_rebuild = self._to_rebuild[:slice_rows], self._to_rebuild[slice_rows:]
        with self._table.readers.reading():
            # A row without its label is dead since, and may be another's by now: that one is in the tail.
            rows = rows[self._table.is_not_dead(rows)]
            rows = rows[self._current.holding(rows)]
            if rows.size:
                rebuilt.add(rows, self.arena.gather(rows), threads)
        if not self._to_rebuild.size:
            self._current, self._rebuilt = rebuilt, None

    # -- the rest: event loop -------------------------------------------------------------------------------------------

    def configure(self, parameters: VectorParameters) -> None:
        """See VectorIndex. Changed build parameters take effect by a rebuild."""
        new, old = parameters.hnsw, self._hnsw()
        assert new is not None
        self.parameters = parameters
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
            graph_deleted_row_count=current.node_count - current.live_count,
            rebuilding=self._rebuilt is not None or self._wants_rebuild(),
            arena_bytes=self.arena.allocated_bytes,
            graph_bytes=current.size_bytes,
        )

    def save(self, directory: Path, name: str) -> dict[str, int]:
        """See VectorIndex: the graph. A rebuild under way is not saved: it begins again."""
        parameters = self._current.parameters
        own = {"m": parameters.m, "ef_construction": parameters.ef_construction}
        return self._current.save(directory, name) | own

    def load(self, directory: Path, name: str, metadata: dict[str, int], live: NDArray[np.bool_]) -> None:
        """See VectorIndex."""
        hnsw = self._hnsw()
        saved = HnswParameters(metadata["m"], metadata["ef_construction"], hnsw.ef)
        current = self._new_graph(replace(self.parameters, hnsw=saved))
        current.load(directory, name, metadata, live)
        self._current = current
        self._parameters_changed = (saved.m, saved.ef_construction) != (hnsw.m, hnsw.ef_construction)
        absent = live.copy()
        absent[current.rows()] = False
        self._tail.append(np.flatnonzero(self.arena.present(live.size) & absent))

    def _hnsw(self) -> HnswParameters:
        assert self.parameters.hnsw is not None
        return self.parameters.hnsw
