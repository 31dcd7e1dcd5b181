"""The index over hnswlib's own graph of float32 vectors: the second implementation beside `vecmem.index.kernel_index`.

Tests hold both to one suite, and benchmarks measure the kernel against it. A filter is applied to what the graph returns: hnswlib's own
filter takes the interpreter lock for every candidate.
"""

from __future__ import annotations

import numpy as np

from vecmem.index import planner, scan
from vecmem.index.arena import Rows
from vecmem.index.graph_index import GraphIndex
from vecmem.index.labelled_graph import LabelledGraph
from vecmem.index.parameters import VectorParameters
from vecmem.index.rows import RowView
from vecmem.index.vector_index import SearchRequest, SearchResult


class HnswIndex(GraphIndex[LabelledGraph]):
    """A VectorIndex with a graph of the hnswlib package."""

    def _new_graph(self, parameters: VectorParameters) -> LabelledGraph:
        return LabelledGraph(parameters)

    def search(self, request: SearchRequest, view: RowView) -> SearchResult:
        """See VectorIndex."""
        # The tail first: a row that moves to the graph meanwhile is then in both, never in neither.
        tail = self._tail.rows()
        found = None if request.exact else self._search_graph(request, view, len(tail))
        if found is None:
            rows = scan.wanted_rows(self.arena, request, view)
            candidates, plan = scan.nearest(self.arena, request, rows, view.row_count), "scan"
        else:
            rows = self._passing(tail, request, view)
            candidates, plan = np.concatenate([found, scan.nearest(self.arena, request, rows, view.row_count)]), "graph"
        return SearchResult(*scan.best(self.arena, request, candidates, view.ids), plan=plan)

    def _search_graph(self, request: SearchRequest, view: RowView, tail_count: int) -> Rows | None:
        """Rows of the graph that pass, at least `limit` of them where the graph holds so many; None: scan instead."""
        current = self._current
        hnsw = self._hnsw()
        graph_count = current.live_count
        if request.allowed is None:
            matching_count = row_count = graph_count
        else:
            matching_count = int(np.count_nonzero(request.allowed[: view.row_count]))
            row_count = max(graph_count + tail_count, matching_count)
        plan = planner.choose(
            limit=request.limit,
            ef=request.ef or hnsw.ef,
            matching_count=matching_count,
            row_count=row_count,
            graph_count=graph_count,
        )
        while plan.fetch:
            # Nodes of dead rows that are not marked yet take places among the results.
            dead_count = len(current.unlabelled) + self._table.dead_count
            fetch = plan.fetch + min(dead_count, plan.fetch)
            rows = self._passing(current.search(request.query, fetch, plan.ef), request, view)
            if len(rows) >= request.limit:
                return rows
            plan = planner.widen(
                plan, found=len(rows), limit=request.limit, matching_count=matching_count, graph_count=graph_count
            )
        return None
