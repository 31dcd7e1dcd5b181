"""The flat index: every search is an exact scan. Small collections need no more, and the tests' oracle is this one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecmem.index import scan
from vecmem.index.arena import Arena, Rows
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import VectorParameters
from vecmem.index.rows import RowView
from vecmem.index.vector_index import QUICK_ELEMENTS, IndexStatistics, SearchPlan, SearchRequest, SearchResult


class FlatIndex:
    """A VectorIndex without a graph."""

    def __init__(self, parameters: VectorParameters) -> None:
        self.parameters = parameters
        self.arena = Arena(parameters.dimension, parameters.metric)
        self.effort = None

    def add(self, rows: Rows, vectors: Float32Array) -> None:
        """See VectorIndex."""
        self.arena.write(rows, vectors)

    def forget(self, rows: Rows) -> None:
        """See VectorIndex."""
        self.arena.clear(rows)

    def search(self, request: SearchRequest, view: RowView) -> SearchResult:
        """See VectorIndex."""
        rows = scan.wanted_rows(self.arena, request, view)
        candidates = scan.nearest(self.arena, request, rows, view.row_count)
        return SearchResult(*scan.best(self.arena, request, candidates, view.ids), plan=SearchPlan("scan"))

    def is_quick(self, request: SearchRequest) -> bool:  # noqa: ARG002
        """See VectorIndex."""
        return self.arena.present_count * self.parameters.dimension <= QUICK_ELEMENTS

    def maintain(self, *, threads: int, slice_rows: int) -> bool:  # noqa: ARG002 (the protocol's parameters)
        """See VectorIndex: nothing to do."""
        return False

    def has_work(self, *, tail_rows_min: int = 1) -> bool:  # noqa: ARG002
        """See VectorIndex: never."""
        return False

    def configure(self, parameters: VectorParameters) -> None:
        """See VectorIndex."""
        self.parameters = parameters

    def statistics(self) -> IndexStatistics:
        """See VectorIndex."""
        return IndexStatistics(vector_count=self.arena.present_count, arena_bytes=self.arena.allocated_bytes)

    def save(self, directory: Path, name: str) -> dict[str, int]:  # noqa: ARG002
        """See VectorIndex: all of it is in the arena."""
        return {}

    def load(self, directory: Path, name: str, metadata: dict[str, int], live: NDArray[np.bool_]) -> None:
        """See VectorIndex: all of it is in the arena."""
