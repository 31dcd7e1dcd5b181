"""Exact search in numpy: the oracle of the kernel, and the scans of the index over the hnswlib package.

Two steps: ranks of all wanted rows with BLAS in float32, then exact scores in float64 of the few that can be among the best, so that the
result does not depend on where a row lies in memory.
"""

from __future__ import annotations

import numpy as np

from vecmem.index.arena import Arena, Rows
from vecmem.index.rows import RowView
from vecmem.index.vector_index import SearchRequest

SORT_IN_PYTHON_MAX = 64
"""Up to so many candidates, as of a common query, Python's sort is over before numpy's has begun."""
GATHER_SHARE_MAX = 0.5
"""Above this share of the rows it is cheaper to scan them all than to pick the wanted ones."""


def wanted_rows(arena: Arena, request: SearchRequest, view: RowView) -> Rows:
    """Rows that the view sees, that hold a vector and pass the filter; rising."""
    mask = view.visible_mask()
    mask &= arena.present(view.row_count)
    if request.allowed is not None:
        mask &= request.allowed.contains(np.arange(view.row_count))
    return np.flatnonzero(mask)


def nearest(arena: Arena, request: SearchRequest, rows: Rows, row_count: int) -> Rows:
    """The rows that can be among the `request.limit` best of `rows`: those and their near ties, in no order."""
    if len(rows) <= request.limit:
        return rows
    if len(rows) > GATHER_SHARE_MAX * row_count:
        # Not all of row_count: the arena ends with the last row that has a vector. Rows of the tail are in no order.
        ranks, rank_errors = (array[rows] for array in arena.ranks(request.query, np.arange(rows.max() + 1)))
    else:
        ranks, rank_errors = arena.ranks(request.query, rows)
    # So many rows are at least as near as this; who may be as near is a candidate.
    least = np.partition(ranks - rank_errors, len(ranks) - request.limit)[len(ranks) - request.limit]
    return np.asarray(rows[ranks + rank_errors >= least])


def best(arena: Arena, request: SearchRequest, candidates: Rows, ids: list[str]) -> tuple[list[int], list[float]]:
    """Rows and exact scores of the `request.limit` best distinct candidates, best first, ties in order of ids."""
    if not candidates.size:
        return [], []
    rows = (
        np.array(sorted(set(candidates.tolist()))) if candidates.size <= SORT_IN_PYTHON_MAX else np.unique(candidates)
    )
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
