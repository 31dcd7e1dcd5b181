"""The flat index: every search is an exact scan. Small collections need no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecmem.index import hits, planner
from vecmem.index.arena import Arena, Rows
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import VectorParameters
from vecmem.index.rows import RowView
from vecmem.index.vector_index import IndexStatistics, SavedValue, SearchPlan, SearchRequest, SearchResult


class FlatIndex:
    """A VectorIndex without a graph."""

    def __init__(self, parameters: VectorParameters) -> None:
        self.parameters = parameters
        self.arena = Arena(parameters.dimension, parameters.metric, parameters.storage)
        self.effort = None

    def add(self, rows: Rows, vectors: Float32Array) -> None:
        """See VectorIndex."""
        self.arena.write(rows, vectors)

    def forget(self, rows: Rows) -> None:
        """See VectorIndex."""
        self.arena.clear(rows)

    def search(self, requests: Sequence[SearchRequest], view: RowView, *, threads: int = 1) -> list[SearchResult]:
        """See VectorIndex."""
        found = hits.scan(requests, self.arena, view, threads)
        best = found.hits([request.limit for request in requests], view.ids)
        return [
            SearchResult(
                rows,
                scores,
                SearchPlan(
                    "scan",
                    row_count=self.arena.present_count,
                    matching_count=compared,
                    target_recall=1.0,
                    scan_cost_us=self._cost_us(request),
                ),
                compared,
            )
            for request, (rows, scores), compared in zip(requests, best, found.compared.tolist(), strict=True)
        ]

    def search_if_quick(
        self, requests: Sequence[SearchRequest], view: RowView, *, threads: int = 1
    ) -> list[SearchResult] | None:
        """See VectorIndex."""
        is_quick = sum(map(self._cost_us, requests)) <= planner.QUICK_US
        return self.search(requests, view, threads=threads) if is_quick else None

    def _cost_us(self, request: SearchRequest) -> float:
        matching_count = self.arena.present_count if request.allowed is None else request.allowed.count
        return planner.scan_cost_us(matching_count, self.parameters.dimension, self.arena.storage)

    def maintain(self, *, threads: int, slice_rows: int) -> bool:  # noqa: ARG002 (the protocol's parameters)
        """See VectorIndex: nothing to do."""
        return False

    def has_work(self, *, tail_rows_min: int = 1) -> bool:  # noqa: ARG002
        """See VectorIndex: never."""
        return False

    def wants_measuring(self) -> bool:
        """See VectorIndex: never."""
        return False

    def measure(self) -> None:
        """See VectorIndex: nothing to do."""

    def configure(self, parameters: VectorParameters, arena: Arena | None = None) -> None:
        """See VectorIndex."""
        self.parameters = parameters
        if arena is not None:
            self.arena = arena

    def statistics(self) -> IndexStatistics:
        """See VectorIndex."""
        return IndexStatistics(vector_count=self.arena.present_count, arena_bytes=self.arena.allocated_bytes)

    def save(self, directory: Path, name: str) -> dict[str, SavedValue]:  # noqa: ARG002
        """See VectorIndex: all of it is in the arena."""
        return {}

    def load(self, directory: Path, name: str, metadata: dict[str, SavedValue], live: NDArray[np.bool_]) -> None:
        """See VectorIndex: all of it is in the arena."""
