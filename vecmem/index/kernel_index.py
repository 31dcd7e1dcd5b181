"""The HNSW index over the native kernel, which collections use.

A search is one native call: the graph with the filter's bitset and its own ef, or a scan, then the tail's rows beside, then exact
scores. What stays here is to choose the plan, to leave out rows that the snapshot does not see, and to break ties by id. Rows that
the snapshot does not see are few (dead and not yet forgotten, or born since), so the call asks for as many more as there may be,
and the exact scan of the visible rows stands behind it all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vecmem.index import planner, scan
from vecmem.index.arena import Rows
from vecmem.index.graph_index import GraphIndex
from vecmem.index.kernel_graph import KernelGraph
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import VectorParameters
from vecmem.index.planner import NativePlan
from vecmem.index.rows import RowView
from vecmem.index.vector_index import SearchRequest, SearchResult

RESCORED = 2
"""Candidates by codes that are compared exactly, as a multiple of the hits wanted."""
RESCORED_MIN = 20
INVISIBLE_MAX = 1_000
"""Dead rows that a call makes up for by asking for more; beyond, it scans what is visible."""

Bits = NDArray[np.uint8]


class KernelIndex(GraphIndex[KernelGraph]):
    """A VectorIndex with a graph of the kernel."""

    def _new_graph(self, parameters: VectorParameters) -> KernelGraph:
        return KernelGraph(parameters, self.arena)

    def search(self, request: SearchRequest, view: RowView) -> SearchResult:
        """See VectorIndex."""
        # The tail first: a row that moves to the graph meanwhile is then in both, never in neither.
        tail = self._tail.rows()
        current = self._current
        plan, matching_count = self._plan(request, view, current, len(tail))
        if plan is not NativePlan.ARENA and current.native is not None:
            found = self._search_graph(request, view, current, tail, plan, matching_count)
            if found is not None:
                return SearchResult(*found, plan="graph" if plan is NativePlan.GRAPH else "scan")
        return SearchResult(*self._scan(request, view), plan="scan")

    def _plan(
        self, request: SearchRequest, view: RowView, current: KernelGraph, tail_count: int
    ) -> tuple[NativePlan, int]:
        """How to search, and how many rows can match."""
        graph_count = current.live_count
        row_count = graph_count + tail_count
        matching_count = row_count
        if request.allowed is not None:
            matching_count = int(np.count_nonzero(request.allowed[: view.row_count]))
        has_codes = current.code == "int8"
        if request.exact:
            return (NativePlan.CODES if has_codes and graph_count else NativePlan.ARENA), matching_count
        plan = planner.choose_native(
            limit=request.limit,
            ef=request.ef or self._hnsw().ef,
            matching_count=matching_count,
            row_count=max(row_count, matching_count),
            graph_count=graph_count,
            has_codes=has_codes,
        )
        if plan is not NativePlan.GRAPH and request.allowed is None and matching_count > request.limit:
            # Small collections: a filter's plan is exact anyway, but without one the graph is what was asked for.
            plan = NativePlan.GRAPH
        return plan, matching_count

    def _search_graph(
        self,
        request: SearchRequest,
        view: RowView,
        current: KernelGraph,
        tail: Rows,
        plan: NativePlan,
        matching_count: int,
    ) -> tuple[list[int], list[float]] | None:
        """Hits by the graph or its codes; None: fewer than there may be were found."""
        native = current.native
        assert native is not None
        invisible_count = self._table.dead_count
        if invisible_count > INVISIBLE_MAX:
            return None
        extra = self._passing(tail, request, view) if tail.size else None
        allowed = None if request.allowed is None else _bits(request.allowed[: view.row_count])
        queries = np.ascontiguousarray(request.query)[None, :]
        norm = self.arena.largest_norm
        wanted = request.limit + invisible_count
        if plan is NativePlan.GRAPH:
            rows, scores, _ = native.search(
                queries,
                wanted,
                np.array([(request.ef or self._hnsw().ef) + invisible_count]),
                self.arena.native,
                max(RESCORED * wanted, RESCORED_MIN),
                allowed,
                extra,
                largest_norm=norm,
            )
        else:
            rows, scores, _ = native.scan(queries, wanted, self.arena.native, allowed, extra, largest_norm=norm)
        # Rows of a filter's mask are visible to the snapshot, but the graph knows nothing of snapshots.
        visible = (rows < view.row_count) & view.visible(np.minimum(rows, view.row_count - 1))
        if not visible.all():
            rows, scores = rows[visible], scores[visible]
        if len(rows) < min(request.limit, matching_count):
            return None
        return self._in_order(rows, scores, request.limit, view.ids)

    def _scan(self, request: SearchRequest, view: RowView) -> tuple[list[int], list[float]]:
        """Hits by comparison with every row that the view sees and the filter lets pass."""
        mask = scan.wanted_mask(self.arena, request, view)
        rows, scores, _ = self.arena.native.scan(
            np.ascontiguousarray(request.query)[None, :],
            request.limit,
            min(view.row_count, self.arena.row_count),
            _bits(mask),
            largest_norm=self.arena.largest_norm,
        )
        return self._in_order(rows, scores, request.limit, view.ids)

    def _in_order(self, rows: Rows, scores: Float32Array, limit: int, ids: list[str]) -> tuple[list[int], list[float]]:
        """The `limit` first of rows that are in order of scores, ties in order of ids."""
        if bool((scores[1:] == scores[:-1]).any()):
            sign = -1.0 if self.arena.metric.higher_is_nearer else 1.0
            hits = sorted(
                zip((sign * scores).tolist(), rows.tolist(), scores.tolist(), strict=True),
                key=lambda hit: (hit[0], ids[hit[1]]),
            )[:limit]
            return [row for _, row, _ in hits], [score for _, _, score in hits]
        return rows[:limit].tolist(), scores[:limit].tolist()


def _bits(mask: NDArray[np.bool_]) -> Bits:
    return np.packbits(mask, bitorder="little")
