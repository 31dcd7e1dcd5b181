"""Exact search: the oracle of every other index, and the plan for small sets.

Two steps: ranks of all wanted rows with BLAS in float32, then exact scores in float64 of the few that can be among the best, so that the
result does not depend on where a row lies in memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vecmem.index.arena import Arena, Rows
from vecmem.index.rows import RowView
from vecmem.index.vector_index import SearchRequest

GATHER_SHARE_MAX = 0.5
"""Above this share of the rows it is cheaper to scan them all than to pick the wanted ones."""


def wanted_mask(arena: Arena, request: SearchRequest, view: RowView) -> NDArray[np.bool_]:
    """Which rows the view sees, hold a vector and pass the filter; shape (row_count,)."""
    mask = view.visible_mask()
    mask &= arena.present(view.row_count)
    if request.allowed is not None:
        mask &= request.allowed[: view.row_count]
    return mask


def wanted_rows(arena: Arena, request: SearchRequest, view: RowView) -> Rows:
    """The rows of `wanted_mask`, rising."""
    return np.flatnonzero(wanted_mask(arena, request, view))


def nearest(arena: Arena, request: SearchRequest, rows: Rows, row_count: int) -> Rows:
    """The rows that can be among the `request.limit` best of `rows`: those and their near ties, in no order."""
    if len(rows) <= request.limit:
        return rows
    if len(rows) > GATHER_SHARE_MAX * row_count:
        ranks = arena.ranks(request.query, np.arange(row_count))[rows]
    else:
        ranks = arena.ranks(request.query, rows)
    threshold = np.partition(ranks, len(ranks) - request.limit)[len(ranks) - request.limit]
    return np.asarray(rows[ranks >= threshold - arena.rank_slack(request.query)])


def best(arena: Arena, request: SearchRequest, candidates: Rows, ids: list[str]) -> tuple[list[int], list[float]]:
    """Rows and exact scores of the `request.limit` best distinct candidates, best first, ties in order of ids."""
    if not candidates.size:
        return [], []
    rows = np.unique(candidates)
    scores = arena.scores(request.query, rows)
    ordering = -scores if arena.metric.higher_is_nearer else scores
    if len(rows) > request.limit:
        # Keep every row that ties with the last one wanted: the id decides between them.
        last = np.partition(ordering, request.limit - 1)[request.limit - 1]
        kept = ordering <= last
        rows, scores, ordering = rows[kept], scores[kept], ordering[kept]
    hits = sorted(
        zip(ordering.tolist(), rows.tolist(), scores.tolist(), strict=True), key=lambda hit: (hit[0], ids[hit[1]])
    )
    del hits[request.limit :]
    return [row for _, row, _ in hits], [score for _, _, score in hits]
