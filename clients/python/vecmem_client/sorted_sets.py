"""Sorted sets: members in order of their scores. Each function builds an operation for `Client.run` and `Client.pipeline`.

Members of equal scores stand in order of their bytes. All raise WrongTypeError, when they run, for a key that holds a value of another
type. A sorted set without members is no key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vecmem.v1 import sorted_sets_pb2 as api
from vecmem_client._operations import BytesLike, Operation, as_bytes, as_wait_ms, reads, writes
from vecmem_client.sets import COMBINATIONS, Combination

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Condition = Literal["absent", "present"]
ScoreCondition = Literal["greater", "less"]
Aggregate = Literal["sum", "minimum", "maximum"]
Ranking = Literal["ordinal", "competition"]
_RANKINGS = {
    "ordinal": api.SORTED_SET_RANKING_UNSPECIFIED,
    "competition": api.SORTED_SET_RANKING_COMPETITION,
}
_CONDITIONS = {
    None: 0,
    "absent": api.SCORED_MEMBER_CONDITION_ABSENT,
    "present": api.SCORED_MEMBER_CONDITION_PRESENT,
}
_SCORE_CONDITIONS = {None: 0, "greater": api.SCORE_CONDITION_GREATER, "less": api.SCORE_CONDITION_LESS}
_AGGREGATES = {
    "sum": api.SCORE_AGGREGATE_SUM,
    "minimum": api.SCORE_AGGREGATE_MINIMUM,
    "maximum": api.SCORE_AGGREGATE_MAXIMUM,
}
_ENDS = {"lowest": api.SORTED_SET_END_LOWEST, "highest": api.SORTED_SET_END_HIGHEST}


@dataclass(frozen=True, slots=True)
class Scored:
    """A member and its score."""

    member: bytes
    score: float


@dataclass(frozen=True, slots=True)
class Added:
    """How many members are new, and how many of those that existed have another score."""

    added_count: int
    changed_count: int


@dataclass(frozen=True, slots=True)
class RankedMember:
    """A member, its score and its rank, 0 being the first."""

    member: bytes
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class RankedPage:
    """Members around one, a score or a place, in order; `member_count` is that of the whole set.

    `rank` and `score` are those of the one in the middle; None: it is not there, or the middle was a place.
    """

    rank: int | None
    score: float | None
    members: list[RankedMember]
    member_count: int


@dataclass(frozen=True, slots=True)
class ScoreRank:
    """How many members have a better score than this one, and how many have this one."""

    rank: int
    equal_count: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """A place in the order, 0 being the first, and the score."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class ScoredPage:
    """One page of members. `next_page_token` empty: the last."""

    members: list[Scored]
    next_page_token: str
    member_count: int
    """Of the whole set."""


def by_rank(start: int = 0, stop: int | None = None) -> api.SortedSetRange:
    """Select members from a place to a place, both inclusive, counted from the end where below 0; None: to the end."""
    return api.SortedSetRange(by_rank=api.RankRange(start=start, stop=stop))


def by_score(
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    above_minimum: bool = False,
    below_maximum: bool = False,
) -> api.SortedSetRange:
    """Select members by score, bounds inclusive unless told; None: without a bound."""
    bounds = api.ScoreRange()
    if minimum is not None:
        bounds.minimum.CopyFrom(api.ScoreBound(score=minimum, exclusive=above_minimum))
    if maximum is not None:
        bounds.maximum.CopyFrom(api.ScoreBound(score=maximum, exclusive=below_maximum))
    return api.SortedSetRange(by_score=bounds)


def by_member(
    minimum: BytesLike | None = None,
    maximum: BytesLike | None = None,
    *,
    above_minimum: bool = False,
    below_maximum: bool = False,
) -> api.SortedSetRange:
    """Select members by their bytes, of sets in which all scores are equal; None: without a bound."""
    bounds = api.MemberRange()
    if minimum is not None:
        bounds.minimum.CopyFrom(api.MemberBound(member=as_bytes(minimum), exclusive=above_minimum))
    if maximum is not None:
        bounds.maximum.CopyFrom(api.MemberBound(member=as_bytes(maximum), exclusive=below_maximum))
    return api.SortedSetRange(by_member=bounds)


def add(
    key: BytesLike,
    scores: Mapping[BytesLike, float],
    *,
    condition: Condition | None = None,
    score_condition: ScoreCondition | None = None,
) -> Operation[Added]:
    """Write the scores of 1 to 1,024 members: only of those absent or present, only where the score grows or falls."""
    return writes(
        "add_sorted_set_members",
        lambda response: Added(response.added_count, response.changed_count),
        key=as_bytes(key),
        members=[api.ScoredMember(member=as_bytes(member), score=score) for member, score in scores.items()],
        condition=_CONDITIONS[condition],
        score_condition=_SCORE_CONDITIONS[score_condition],
    )


def increment(
    key: BytesLike,
    member: BytesLike,
    delta: float,
    *,
    condition: Condition | None = None,
    score_condition: ScoreCondition | None = None,
) -> Operation[float | None]:
    """Add to a score, that of a new member being 0; returns it, None: a condition did not hold."""
    return writes(
        "increment_sorted_set_member",
        _score,
        key=as_bytes(key),
        member=as_bytes(member),
        delta=delta,
        condition=_CONDITIONS[condition],
        score_condition=_SCORE_CONDITIONS[score_condition],
    )


def remove(key: BytesLike, members: Iterable[BytesLike]) -> Operation[int]:
    """Take 1 to 1,024 members out; returns how many there were."""
    return writes(
        "remove_sorted_set_members",
        lambda response: response.removed_count,
        key=as_bytes(key),
        members=[as_bytes(member) for member in members],
    )


def scores(key: BytesLike, members: Iterable[BytesLike]) -> Operation[list[float | None]]:
    """Return the scores of 1 to 1,024 members; None for those that are not there."""
    return reads(
        "get_sorted_set_scores",
        lambda response: [_score(found) for found in response.scores],
        key=as_bytes(key),
        members=[as_bytes(member) for member in members],
    )


def ranks(key: BytesLike, members: Iterable[BytesLike], *, reverse: bool = False) -> Operation[list[Ranked | None]]:
    """Return the places of 1 to 1,024 members, counted from the lowest or from the highest; None where there is none."""
    return reads(
        "get_sorted_set_ranks",
        lambda response: [
            Ranked(found.rank, found.score) if found.HasField("rank") else None for found in response.ranks
        ],
        key=as_bytes(key),
        members=[as_bytes(member) for member in members],
        reverse=reverse,
    )


def get_range(
    key: BytesLike,
    selected: api.SortedSetRange | None = None,
    *,
    reverse: bool = False,
    offset: int = 0,
    limit: int = 0,
) -> Operation[list[Scored]]:
    """Return selected members in order, `limit` of them behind the first `offset`; None: all are selected."""
    return reads(
        "get_sorted_set_range",
        _scored,
        key=as_bytes(key),
        range=selected or by_rank(),
        reverse=reverse,
        offset=offset,
        limit=limit,
    )


def count(key: BytesLike, selected: api.SortedSetRange | None = None) -> Operation[int]:
    """Return how many members are selected; None: all are."""
    return reads(
        "count_sorted_set_range",
        lambda response: response.selected_count,
        key=as_bytes(key),
        range=selected or by_rank(),
    )


def remove_range(key: BytesLike, selected: api.SortedSetRange) -> Operation[int]:
    """Take selected members out; returns how many there were."""
    return writes("remove_sorted_set_range", lambda response: response.removed_count, key=as_bytes(key), range=selected)


def pop(
    key: BytesLike, count: int = 1, *, end: Literal["lowest", "highest"] = "lowest", wait_seconds: float = 0
) -> Operation[list[Scored]]:
    """Take up to so many members out, those of the lowest or the highest scores; wait so long, at most an hour, where there is none."""
    return writes(
        "pop_sorted_set_members",
        _scored,
        key=as_bytes(key),
        end=_ENDS[end],
        count=count,
        wait_ms=as_wait_ms(wait_seconds),
    )


def pop_first(
    keys: Iterable[BytesLike],
    count: int = 1,
    *,
    end: Literal["lowest", "highest"] = "lowest",
    wait_seconds: float = 0,
) -> Operation[tuple[bytes, list[Scored]] | None]:
    """Take members out of the first sorted set that exists of several of one slot; returns its key and them, None: none came in time."""
    return writes(
        "pop_sorted_set_members",
        lambda response: (response.key, _scored(response)) if response.members else None,
        keys=[as_bytes(key) for key in keys],
        end=_ENDS[end],
        count=count,
        wait_ms=as_wait_ms(wait_seconds),
    )


def combine(
    keys: Iterable[BytesLike],
    combination: Combination,
    *,
    weights: Sequence[float] = (),
    aggregate: Aggregate = "sum",
    reverse: bool = False,
    offset: int = 0,
    limit: int = 0,
) -> Operation[list[Scored]]:
    """Return the union, intersection or difference of sorted sets of one slot, each score times the weight of its set."""
    return reads(
        "combine_sorted_sets",
        _scored,
        keys=[as_bytes(key) for key in keys],
        combination=COMBINATIONS[combination],
        weights=list(weights),
        aggregate=_AGGREGATES[aggregate],
        reverse=reverse,
        offset=offset,
        limit=limit,
    )


def store_combined(
    destination: BytesLike,
    keys: Iterable[BytesLike],
    combination: Combination,
    *,
    weights: Sequence[float] = (),
    aggregate: Aggregate = "sum",
) -> Operation[int]:
    """Put what `combine` returns in place of a key of the same slot; returns how many members it has."""
    return writes(
        "store_combined_sorted_sets",
        lambda response: response.member_count,
        destination=as_bytes(destination),
        keys=[as_bytes(key) for key in keys],
        combination=COMBINATIONS[combination],
        weights=list(weights),
        aggregate=_AGGREGATES[aggregate],
    )


def page(key: BytesLike, *, page_size: int = 0, page_token: str = "") -> Operation[ScoredPage]:
    """Return a page of all members; 0: 100 of them. One that stays during the whole walk is returned exactly once."""
    return reads(
        "scan_sorted_set",
        lambda response: ScoredPage(_scored(response), response.next_page_token, response.member_count),
        key=as_bytes(key),
        page_size=page_size,
        page_token=page_token,
    )


def around(
    key: BytesLike,
    member: BytesLike | None = None,
    *,
    score: float | None = None,
    place: int | None = None,
    before: int = 0,
    after: int = 0,
    reverse: bool = False,
    ranking: Ranking = "ordinal",
) -> Operation[RankedPage]:
    """Return the members around one of a member, a score and a place in the order, with their ranks: a page of a leaderboard.

    Ranks count from the lowest score, with `reverse` from the highest. With "competition" equal scores share a rank: 0, 1, 1, 3. Raises
    ValueError for none or several of member, score and place.
    """
    if (member is not None) + (score is not None) + (place is not None) != 1:
        raise ValueError("give one of member, score and place")
    return reads(
        "get_sorted_set_page",
        _ranked_page,
        key=as_bytes(key),
        member=None if member is None else as_bytes(member),
        score=score,
        place=place,
        count_before=before,
        count_after=after,
        reverse=reverse,
        ranking=_RANKINGS[ranking],
    )


def score_ranks(key: BytesLike, scores: Iterable[float], *, reverse: bool = False) -> Operation[list[ScoreRank]]:
    """Return the ranks of 1 to 1,024 scores, whether or not a member has them; `reverse`: the highest has rank 0."""
    return reads(
        "get_sorted_set_score_ranks",
        lambda response: [ScoreRank(each.rank, each.equal_count) for each in response.ranks],
        key=as_bytes(key),
        scores=list(scores),
        reverse=reverse,
    )


def _ranked_page(response: api.GetSortedSetPageResponse) -> RankedPage:
    return RankedPage(
        response.rank if response.HasField("rank") else None,
        response.score if response.HasField("score") else None,
        [RankedMember(each.member, each.score, each.rank) for each in response.members],
        response.member_count,
    )


def _scored(response: Any) -> list[Scored]:
    return [Scored(found.member, found.score) for found in response.members]


def _score(response: Any) -> float | None:
    return response.score if response.HasField("score") else None
