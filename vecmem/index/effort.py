"""What effort a recall takes: how many candidates a search of one graph considers to reach the recall that is asked for.

Effort is counted in candidates that pass the filter, `ef`. `vecmem.index.measuring` compares searches of the graph with exact ones and
leaves a curve here for each of a few limits and selectivities: which share of the true nearest each effort misses. Between them is
interpolated, and a little more is aimed at than is asked for, since a sample is not all queries. Before anything is measured, effort
follows a rule that real data of common kinds meet or surpass.

Of the queries answered, a few are kept: to measure by what is really asked, and to tell the recall that live queries get. Where that
stays below what they aimed at, all effort is raised until the next calibration.

`ef` and `note` may be called in any thread; the rest belongs to the one that maintains the index.
"""

from __future__ import annotations

import bisect
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vecmem import limits
from vecmem.index.metric import Float32Array
from vecmem.index.row_set import RowSet

LIMIT_COMMON = 10
"""Hits of a common query: what `limits.EF_DEFAULT` is meant for."""
MISSES_EXPONENT = 0.75
"""How effort grows as fewer may be missed. Measured on 62,436 MiniLM vectors: of the true nearest, 0.027, 0.011 and 0.004 are missed at
ef 32, 64 and 128, so that effort goes with misses ** -0.75."""
LIMIT_EXPONENT = 0.5
"""How effort grows with the hits wanted, until it is a share of them."""
LIMIT_MARGIN = 1.5
"""Effort at least, for each hit wanted: the last candidates of a graph search are often not the best."""
MISSED_SHARE = 0.75
"""Of what may be missed, so much is aimed at: what a sample says may be a little off."""
MISSED_MIN = 1e-4
"""A curve says nothing of smaller shares: its sample has too few neighbours."""

KEPT_QUERIES = 192
"""Recent queries kept, without a filter and with one, to calibrate by."""
KEPT_QUERIES_ENOUGH = 96
"""When so many are kept, effort that was calibrated without them is calibrated again."""
LIVE_INTERVAL_SECONDS = 0.25
"""Between two queries taken to measure live recall; more where measuring one takes long."""
LIVE_TIME_SHARE = 0.005
"""So much of the time may go to measuring: of a hundred other queries, none meets it as a rule."""
LIVE_WAITING_MAX = 8
LIVE_WEIGHT_MIN = 0.02
"""Of one query in the average of live recall: about the last hundred count."""
LIVE_QUERIES_MIN = 50
"""Queries measured before their recall means anything."""
LIVE_NOISE = 0.01
"""So far below its target live recall may be by chance."""
RAISE_FACTOR = 1.25
RAISED_MAX = 8.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Shares of the true nearest that searches miss, `missed`, falling, by effort, `efs`, rising."""

    efs: tuple[int, ...]
    missed: tuple[float, ...]

    def ef(self, missed: float) -> float:
        """Effort that misses no more than a share, above 0; beyond the curve's end by the rule."""
        if self.missed[-1] > missed:
            return self.efs[-1] * float((self.missed[-1] / missed) ** MISSES_EXPONENT)
        place = bisect.bisect_left(self.missed, -missed, key=lambda share: -share)
        if place == 0:
            return self.efs[0]
        more, less = max(self.missed[place - 1], MISSED_MIN), max(self.missed[place], MISSED_MIN)
        share = 1.0 if more == less else math.log(more / missed) / math.log(more / less)
        growth = self.efs[place] / self.efs[place - 1]
        return self.efs[place - 1] * float(growth ** min(max(share, 0.0), 1.0))


@dataclass(slots=True, eq=False)
class Asked:
    """A query that was answered through the graph. `allowed` None: it had no filter. Never changed; `frozen` costs each search."""

    query: Float32Array
    limit: int
    ef: int
    target_recall: float
    allowed: RowSet | None


Curves = Mapping[tuple[int, float], Curve]
"""By limit and selectivity."""


class Effort:
    """The effort of one graph."""

    def __init__(self) -> None:
        self.measured_recall = 0.0
        """Recall of live queries, recent ones counting most; meaningless while `measured_query_count` is 0."""
        self.measured_query_count = 0
        self._curves: Curves = {}
        self._raised = 1.0
        self._by_queries = False
        self._plain: deque[Asked] = deque(maxlen=KEPT_QUERIES)
        self._filtered: deque[Asked] = deque(maxlen=KEPT_QUERIES)
        self._live: deque[Asked] = deque(maxlen=LIVE_WAITING_MAX)
        self._live_interval_seconds = LIVE_INTERVAL_SECONDS
        self._live_taken_at = -math.inf
        self._below_target = 0.0
        self._below_target_count = 0
        self._efs = _known_efs(self._curves, self._raised)

    # -- any thread ------------------------------------------------------------------------------------------------------

    @property
    def is_calibrated(self) -> bool:
        """Whether anything is known of the graph."""
        return bool(self._curves)

    def ef(self, target_recall: float, *, limit: int, selectivity: float = 1.0) -> int:
        """Candidates that reach `target_recall`, above 0, with `limit` hits, where a share of `selectivity` of the rows passes.

        At least `limit`. A target of 1 is for an exact search; here it takes the largest effort there is.
        """
        return self._efs(target_recall, limit, selectivity)

    def note(self, asked: Asked) -> None:
        """A query was answered."""
        (self._plain if asked.allowed is None else self._filtered).append(asked)
        now = time.monotonic()
        if asked.target_recall and now - self._live_taken_at >= self._live_interval_seconds:
            self._live_taken_at = now
            self._live.append(asked)

    # -- the maintaining thread -------------------------------------------------------------------------------------------

    def kept(self) -> tuple[list[Asked], list[Asked]]:
        """Recent queries without a filter, and with one; of equal ones the last: a client that repeats itself is one client."""
        return _distinct(self._plain), _distinct(self._filtered)

    @property
    def knows_better(self) -> bool:
        """Whether there are enough recent queries now, and were not when it was calibrated."""
        return not self._by_queries and len(self._plain) >= KEPT_QUERIES_ENOUGH

    @property
    def has_live(self) -> bool:
        """Whether live queries wait to be measured."""
        return bool(self._live)

    def take_live(self) -> Asked:
        """The next live query to measure."""
        return self._live.popleft()

    def observe(self, asked: Asked, recall: float, took_seconds: float) -> None:
        """What recall a live query got, and how long measuring it took: it is to cost no more than `LIVE_TIME_SHARE`."""
        self._live_interval_seconds = max(LIVE_INTERVAL_SECONDS, took_seconds / LIVE_TIME_SHARE)
        self.measured_query_count += 1
        weight = max(1 / self.measured_query_count, LIVE_WEIGHT_MIN)
        self.measured_recall += weight * (recall - self.measured_recall)
        self._below_target += asked.target_recall - recall
        self._below_target_count += 1
        if self._below_target_count >= LIVE_QUERIES_MIN:
            if self._below_target / self._below_target_count > LIVE_NOISE:
                self._raised = min(self._raised * RAISE_FACTOR, RAISED_MAX)
                self._efs = _known_efs(self._curves, self._raised)
            self._below_target, self._below_target_count = 0.0, 0

    def calibrated(self, curves: Curves, *, by_queries: bool = False) -> None:
        """Take what was measured, `by_queries` or by rows; what live queries said of the effort before is over."""
        self._by_queries = by_queries
        self._curves = curves
        self._raised = 1.0
        self._below_target, self._below_target_count = 0.0, 0
        self._efs = _known_efs(curves, self._raised)

    def saved(self) -> dict[str, Any]:
        """What is known of the graph, as JSON can hold it: a checkpoint keeps it, since measuring takes a while."""
        return {
            "curves": [[limit, share, curve.efs, curve.missed] for (limit, share), curve in self._curves.items()],
            "by_queries": self._by_queries,
            "raised": self._raised,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take back what `saved` returned."""
        curves = {(limit, share): Curve(tuple(efs), tuple(missed)) for limit, share, efs, missed in saved["curves"]}
        self.calibrated(curves, by_queries=saved["by_queries"])
        self._raised = saved["raised"]
        self._efs = _known_efs(curves, self._raised)

    def forget(self) -> None:
        """The graph is another one now: nothing is known of it."""
        self.calibrated({})


def _known_efs(curves: Curves, raised: float) -> Callable[[float, int, float], int]:
    """`Effort.ef`, which remembers: most queries want the same."""

    @functools.lru_cache(maxsize=256)
    def ef(target_recall: float, limit: int, selectivity: float) -> int:
        if not curves:
            return assumed_ef(target_recall, limit)
        missed = max(MISSED_SHARE * (1.0 - target_recall), MISSED_MIN)
        efs = {known: _between(curves, known, selectivity, missed) for known in sorted({known for known, _ in curves})}
        effort = _at_limit(efs, limit) * raised
        return max(limit, min(int(effort + 0.5), limits.EF_MAX))

    return ef


def _distinct(kept: deque[Asked]) -> list[Asked]:
    return list({asked.query.tobytes(): asked for asked in kept.copy()}.values())


def assumed_ef(target_recall: float, limit: int) -> int:
    """Effort without any knowledge of the graph."""
    missed = max(1.0 - target_recall, 1e-4)
    effort = limits.EF_DEFAULT * ((1.0 - limits.TARGET_RECALL_DEFAULT) / missed) ** MISSES_EXPONENT
    effort *= max(1.0, limit / LIMIT_COMMON) ** LIMIT_EXPONENT
    return max(limit, min(int(max(effort, limit * LIMIT_MARGIN) + 0.5), limits.EF_MAX))


def _between(curves: Curves, limit: int, selectivity: float, missed: float) -> float:
    """Effort at a limit that was measured, between the selectivities that were."""
    known = sorted(share for measured, share in curves if measured == limit)
    above = min(bisect.bisect_left(known, selectivity), len(known) - 1)
    upper = curves[limit, known[above]].ef(missed)
    if above == 0 or selectivity >= known[above]:
        return upper
    lower = curves[limit, known[above - 1]].ef(missed)
    share = math.log(known[above] / selectivity) / math.log(known[above] / known[above - 1])
    return float(upper * (lower / upper) ** share)


def _at_limit(efs: Mapping[int, float], limit: int) -> float:
    """Effort between the limits that were measured, `efs` by limit, rising."""
    known = list(efs)
    if limit <= known[0]:
        return efs[known[0]]
    if limit >= known[-1]:
        return efs[known[-1]] * limit / known[-1]
    above = bisect.bisect_left(known, limit)
    low, high = known[above - 1], known[above]
    return float(efs[low] * (efs[high] / efs[low]) ** (math.log(limit / low) / math.log(high / low)))
