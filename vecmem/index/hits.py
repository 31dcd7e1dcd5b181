"""Exact scans in the kernel, and from what it found to hits: what the view sees, ties in order of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecmem.index.arena import Arena
from vecmem.index.metric import Float32Array
from vecmem.index.row_set import RowSet
from vecmem.index.rows import RowView
from vecmem.index.vector_index import SearchRequest


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a native search: see vecmem/index/_kernel/_native.pyi."""

    rows: NDArray[np.int64]
    scores: Float32Array
    ends: NDArray[np.int64]
    compared: NDArray[np.int64]

    def hits(self, limits: list[int], ids: list[str]) -> list[tuple[list[int], list[float]]]:
        """Rows and scores of each query, the best `limits[i]`, best first, ties in order of ids."""
        rows, scores = self.rows.tolist(), self.scores.tolist()
        hits = []
        start = 0
        for end, limit in zip(self.ends.tolist(), limits, strict=True):
            hits.append(_in_order(rows[start:end], scores[start:end], limit, ids))
            start = end
        return hits

    def unseen(self, view: RowView) -> list[int]:
        """Which queries have a hit that the view does not see."""
        inside = self.rows < view.row_count
        seen = view.visible(self.rows if inside.all() else np.where(inside, self.rows, 0)) & inside
        if seen.all():
            return []
        unseen: list[int] = np.unique(np.searchsorted(self.ends, np.flatnonzero(~seen), side="right")).tolist()
        return unseen


def _in_order(rows: list[int], scores: list[float], limit: int, ids: list[str]) -> tuple[list[int], list[float]]:
    # They come best first with ties in order of rows: only runs of equal scores are sorted.
    if len(set(scores)) != len(scores):
        start = 0
        while start < len(scores):
            end = start + 1
            while end < len(scores) and scores[end] == scores[start]:
                end += 1
            rows[start:end] = sorted(rows[start:end], key=ids.__getitem__)
            start = end
    return rows[:limit], scores[:limit]


def visible_rows(view: RowView, arena: Arena, allowed: RowSet | None) -> RowSet:
    """The rows of `allowed` (None: of all) that the view sees and that hold a vector."""
    mask = view.visible_mask()
    mask &= arena.present(view.row_count)
    if allowed is not None:
        mask[: allowed.row_count] &= allowed.mask()[: view.row_count]
        mask[allowed.row_count :] = False
    return RowSet.of_mask(mask)


def scan(requests: Sequence[SearchRequest], arena: Arena, view: RowView, threads: int) -> Found:
    """Compare every row that a view sees and a request allows."""
    bits: list[NDArray[np.uint8] | None] = []
    everything: RowSet | None = None
    for request in requests:
        if request.allowed is None:
            everything = everything or visible_rows(view, arena, None)
            bits.append(everything.bits)
        else:
            bits.append(visible_rows(view, arena, request.allowed).bits)
    return Found(
        *arena.native.scan(
            np.stack([request.query for request in requests]),
            np.array([request.limit for request in requests], dtype=np.int64),
            min(view.row_count, arena.row_capacity),
            bits,
            largest_norm=arena.largest_norm,
            threads=threads,
        )
    )
