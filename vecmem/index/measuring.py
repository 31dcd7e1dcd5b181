"""Measures what a graph misses: searches of it beside exact ones over the same rows.

Both see every row that is in the graph, whatever a snapshot sees of it: what a graph misses does not depend on that, and dead rows
count neither as found nor as missed. The tail is left out, being compared exactly by every search. A hit counts when its score reaches
that of the last of the true nearest, so that of rows that tie any will do.

Queries are recent ones, and where these are too few, rows of the graph with noise: a row itself, or what lies between rows, is found far
more easily than a query is.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecmem import limits
from vecmem.index import _kernel, planner
from vecmem.index.arena import Arena
from vecmem.index.effort import Asked, Curve, Curves
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import GraphCode
from vecmem.index.row_set import RowSet

ROWS_MIN = 2_000
"""Graphs with fewer rows are hardly ever searched: a scan costs less."""
QUERIES = 192
"""A few of them miss much and most miss nothing: with fewer, chance would say what effort is needed."""
QUERIES_FILTERED = 96
QUERIES_FAR = 64
"""With a filter, and for many hits, each query has more to miss, or fewer ask."""
NOISE_LENGTH = 1.2
"""Of the noise, in lengths of the row. On 62,436 MiniLM vectors such queries miss a little more than real ones do; rows, a tenth."""
LIMITS = (10, 100)
SELECTIVITIES = (1.0, 0.3, 0.1)
SELECTIVITY_RANGE = 1.8
"""A recent filter stands for a selectivity that is no further from its own than this factor."""
MISSED_ENOUGH = 0.002
"""A curve ends where so little is missed."""
RUNG_FACTOR = 1.35
SLICE_QUERIES = 4
"""Exact searches between two chances for others."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A graph with the arena of its rows."""

    graph: _kernel.Graph
    code: GraphCode
    arena: Arena

    def truth(
        self, queries: Float32Array, numbers: Sequence[int], allowed: list[NDArray[np.uint8] | None]
    ) -> list[Float32Array]:
        """For each of the numbers, rising: of each query the score of the so manieth nearest, or of the last there is; shape (n,)."""
        arena = self.arena
        if self.code is GraphCode.INT8:
            found = self.graph.scan(
                queries, numbers[-1], arena.native, allowed, largest_norm=arena.largest_norm, background=True
            )
        else:
            rows = arena.row_capacity
            held = RowSet.of_mask(self.graph.holding(np.arange(rows))).bits
            both: list[NDArray[np.uint8] | None] = [held if bits is None else _both(held, bits) for bits in allowed]
            found = arena.native.scan(
                queries, numbers[-1], rows, both, largest_norm=arena.largest_norm, background=True
            )
        _, scores, ends, _ = found
        if not scores.size:
            return [np.full(len(queries), np.nan, dtype=np.float32) for _ in numbers]
        starts = np.concatenate([[0], ends[:-1]])
        places = (np.minimum(starts + number, ends) - 1 for number in numbers)
        return [np.where(ends > starts, scores[np.maximum(place, 0)], np.float32(np.nan)) for place in places]

    def found(
        self,
        queries: Float32Array,
        limit: int,
        ef: int,
        allowed: list[NDArray[np.uint8] | None],
        worst: Float32Array,
    ) -> NDArray[np.int64]:
        """How many of the `limit` nearest a search of the graph finds, of each query; `worst` as `truth` has it. Shape (n,)."""
        effort = max(ef, limit)
        depth = planner.rescored(self.code, limit, effort)
        _, scores, ends, _ = self.graph.search(
            queries,
            limit,
            effort,
            self.arena.native,
            depth,
            allowed,
            largest_norm=self.arena.largest_norm,
            background=True,
        )
        sign = 1.0 if self.arena.metric.higher_is_nearer else -1.0
        slack = 1e-6 * np.abs(worst)
        counts = np.zeros(len(queries), dtype=np.int64)
        start = 0
        for index, end in enumerate(ends.tolist()):
            hits = sign * scores[start:end] >= sign * worst[index] - slack[index]
            counts[index] = min(int(np.count_nonzero(hits)), limit)
            start = end
        return counts


def live_recall(measured: Measured, asked: Asked) -> float | None:
    """The recall of one query with its own effort, now; None where nothing in the graph passes its filter."""
    queries, allowed = asked.query[None], [None if asked.allowed is None else asked.allowed.bits]
    worst = measured.truth(queries, [asked.limit], allowed)[0]
    if np.isnan(worst[0]):
        return None
    matching = measured.graph.live_count if asked.allowed is None else asked.allowed.count
    return int(measured.found(queries, asked.limit, asked.ef, allowed, worst)[0]) / max(1, min(asked.limit, matching))


def calibrate(
    measured: Measured, plain: Sequence[Asked], filtered: Sequence[Asked], seed: int = 0
) -> Generator[None, None, Curves]:
    """Measure curves for all limits and selectivities, in steps; returns them. `plain` and `filtered`: recent queries."""
    rng = np.random.default_rng(seed)
    labels = measured.graph.labels()
    curves: dict[tuple[int, float], Curve] = {}
    for selectivity in SELECTIVITIES:
        numbers = [limit for limit in LIMITS if limit * 4 <= len(labels) * selectivity]
        if not numbers:
            continue
        count = QUERIES if selectivity == 1 else QUERIES_FILTERED
        recent = (plain if selectivity == 1 else _near(filtered, selectivity, len(labels)))[-count:]
        noisy = _noisy_rows(measured.arena, rng.choice(labels, count - len(recent)), rng)
        queries = np.concatenate([np.stack([asked.query for asked in recent]), noisy]) if recent else noisy
        allowed: list[NDArray[np.uint8] | None] = [asked.allowed.bits if asked.allowed else None for asked in recent]
        allowed += [_random_bits(rng, measured.arena.row_capacity, selectivity) for _ in noisy]
        truth: list[list[Float32Array]] = []
        for start in range(0, len(queries), SLICE_QUERIES):
            part = slice(start, start + SLICE_QUERIES)
            truth.append(measured.truth(queries[part], numbers, allowed[part]))
            yield
        for limit, parts in zip(numbers, zip(*truth, strict=True), strict=True):
            used = slice(-QUERIES_FAR if limit == LIMITS[-1] else None, None)
            worst = np.concatenate(parts)[used]
            curves[limit, selectivity] = yield from _curve(measured, queries[used], limit, allowed[used], worst)
    return curves


def _curve(
    measured: Measured,
    queries: Float32Array,
    limit: int,
    allowed: list[NDArray[np.uint8] | None],
    worst: Float32Array,
) -> Generator[None, None, Curve]:
    known = ~np.isnan(worst)
    efs: list[int] = []
    missed: list[float] = []
    ef = float(limit)
    largest = min(limits.EF_MAX, measured.graph.node_count)
    while True:
        rung = min(int(ef), largest)
        counts: list[NDArray[np.int64]] = []
        for start in range(0, len(queries), 4 * SLICE_QUERIES):
            part = slice(start, start + 4 * SLICE_QUERIES)
            counts.append(measured.found(queries[part], limit, rung, allowed[part], worst[part]))
            yield
        recall = float(np.mean(np.concatenate(counts)[known] / limit)) if known.any() else 1.0
        efs.append(rung)
        # More effort never finds less, but for the luck of the draw.
        missed.append(min(max(1.0 - recall, 0.0), missed[-1] if missed else 1.0))
        if missed[-1] <= MISSED_ENOUGH or rung >= largest:
            return Curve(tuple(efs), tuple(missed))
        ef *= RUNG_FACTOR if rung < 16 * limit else RUNG_FACTOR**2


def _noisy_rows(arena: Arena, rows: NDArray[np.int64], rng: np.random.Generator) -> Float32Array:
    vectors = arena.gather(rows)
    noise = rng.standard_normal(vectors.shape, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True) / np.sqrt(arena.dimension)
    return np.asarray(vectors + NOISE_LENGTH * lengths * noise, dtype=np.float32)


def _near(filtered: Sequence[Asked], selectivity: float, count: int) -> Sequence[Asked]:
    return [
        asked
        for asked in filtered
        if asked.allowed is not None
        and 1 / SELECTIVITY_RANGE <= asked.allowed.count / max(count, 1) / selectivity <= SELECTIVITY_RANGE
    ]


def _random_bits(rng: np.random.Generator, rows: int, selectivity: float) -> NDArray[np.uint8] | None:
    return None if selectivity == 1 else RowSet.of_mask(rng.random(rows) < selectivity).bits


def _both(held: NDArray[np.uint8], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = min(len(held), len(bits))
    return held[:size] & bits[:size]
