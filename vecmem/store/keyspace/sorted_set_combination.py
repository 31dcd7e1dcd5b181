"""Unions, intersections and differences of sorted sets, and of sets, whose members count with a score of 1.

The score of a member is made up in the order of the keys, so that it does not depend on how the sets came about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from typing import TYPE_CHECKING

from vecmem.store.keyspace.keyspace import wrong_type
from vecmem.store.keyspace.sets import SetValue, check_combined
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.v1 import sets_pb2
from vecmem.v1 import sorted_sets_pb2 as api

if TYPE_CHECKING:
    from vecmem.store.keyspace.keyspace import Keyspace
    from vecmem.store.keyspace.operation import Moment

Scores = Mapping[bytes, float]


def combine(
    keyspace: Keyspace, request: api.CombineSortedSetsRequest | api.StoreCombinedSortedSetsRequest, moment: Moment
) -> dict[bytes, float]:
    """The scores of a checked request's combination, in no order that means anything. Raises WrongTypeError."""
    values = [_find(keyspace, key, f"keys[{index}]", moment.time_unix_ms) for index, key in enumerate(request.keys)]
    check_combined(values)
    sources = [_scores(value) for value in values]
    if request.combination == sets_pb2.SET_COMBINATION_DIFFERENCE:
        first, *others = sources
        return {member: score for member, score in first.items() if not any(member in other for other in others)}
    weights = request.weights or [1.0] * len(sources)
    weighted = [_weighted(source, weight) for source, weight in zip(sources, weights, strict=True)]
    aggregate = _AGGREGATES[request.aggregate]
    if request.combination == sets_pb2.SET_COMBINATION_UNION:
        return _union(weighted, aggregate)
    return _intersection(weighted, aggregate)


def _find(keyspace: Keyspace, key: bytes, field: str, now_unix_ms: int) -> SortedSetValue | SetValue | None:
    value = keyspace.find(key, now_unix_ms)
    if value is None or isinstance(value, SortedSetValue | SetValue):
        return value
    raise wrong_type(key, SortedSetValue.NAME, value, field)


def _scores(value: SortedSetValue | SetValue | None) -> Scores:
    if value is None:
        return {}
    return value.scores if isinstance(value, SortedSetValue) else dict.fromkeys(value, 1.0)


def _weighted(scores: Scores, weight: float) -> Scores:
    if weight == 1.0:
        return scores
    weighted = {}
    for member, score in scores.items():
        product = score * weight
        # Of 0 and an infinity it is NaN; and adding 0.0 makes 0.0 of -0.0.
        weighted[member] = 0.0 if isnan(product) else product + 0.0
    return weighted


def _union(sources: list[Scores], aggregate: Callable[[float, float], float]) -> dict[bytes, float]:
    union = dict(sources[0])
    for source in sources[1:]:
        for member, score in source.items():
            known = union.get(member)
            union[member] = score if known is None else aggregate(known, score)
    return union


def _intersection(sources: list[Scores], aggregate: Callable[[float, float], float]) -> dict[bytes, float]:
    intersection = {}
    for member in min(sources, key=len):
        if all(member in source for source in sources):
            score = sources[0][member]
            for source in sources[1:]:
                score = aggregate(score, source[member])
            intersection[member] = score
    return intersection


def _sum(one: float, other: float) -> float:
    total = one + other
    return 0.0 if isnan(total) else total


_AGGREGATES: dict[int, Callable[[float, float], float]] = {
    api.SCORE_AGGREGATE_UNSPECIFIED: _sum,
    api.SCORE_AGGREGATE_SUM: _sum,
    api.SCORE_AGGREGATE_MINIMUM: min,
    api.SCORE_AGGREGATE_MAXIMUM: max,
}
