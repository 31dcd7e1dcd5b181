"""Sorted sets as leaderboards: a page around a member, a score or a place, and the ranks of scores. See sorted_sets.proto."""

from __future__ import annotations

import math

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment, check_member, check_member_count, check_request_key, reads
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.v1 import sorted_sets_pb2 as api


def _check_score(score: float, field: str) -> None:
    if math.isnan(score):
        raise InvalidArgumentError("is NaN", field=field)


def _better_count(value: SortedSetValue, score: float, *, reverse: bool) -> int:
    """How many members have a lower score, or with `reverse` a higher one."""
    if reverse:
        return len(value) - value.rank_of_score(score, behind=True)
    return value.rank_of_score(score, behind=False)


def _check_page(request: api.GetSortedSetPageRequest) -> None:
    check_request_key(request)
    match request.WhichOneof("center"):
        case "member":
            check_member(request.member, "member")
        case "score":
            _check_score(request.score, "score")
        case None:
            raise InvalidArgumentError("names neither a member nor a score nor a place", field="center")
    count = request.count_before + request.count_after + 1
    if count > limits.SORTED_SET_MEMBERS_PER_REPLY_MAX:
        field = "count_before" if request.count_before >= limits.SORTED_SET_MEMBERS_PER_REPLY_MAX else "count_after"
        raise LimitExceededError(
            f"a page of {count} members, more than {limits.SORTED_SET_MEMBERS_PER_REPLY_MAX}", field=field
        )
    if request.ranking not in api.SortedSetRanking.values():
        raise InvalidArgumentError(f"{request.ranking} is not known", field="ranking")


def _page(
    keyspace: Keyspace, request: api.GetSortedSetPageRequest, response: api.GetSortedSetPageResponse, moment: Moment
) -> None:
    value = keyspace.container(request.key, SortedSetValue, moment.time_unix_ms)
    if value is None:
        value = SortedSetValue()
    length = response.member_count = len(value)
    reverse = request.reverse
    count_after = request.count_after
    match request.WhichOneof("center"):
        case "place":
            place = min(request.place, length)
        case "score":
            place = response.rank = _better_count(value, request.score, reverse=reverse)
            response.score = request.score
        case _:
            score = value.scores.get(request.member)
            if score is None:
                return
            ascending = value.rank(request.member)
            place = length - 1 - ascending if reverse else ascending
            count_after += 1
            response.score = score
            response.rank = _better_count(value, score, reverse=reverse) if request.ranking else place
    start, stop = max(0, place - request.count_before), min(length, place + count_after)
    pairs = value.pairs(length - stop, length - start, reverse=True) if reverse else value.pairs(start, stop)
    rank, last = start, math.nan
    for place, (score, member) in enumerate(pairs, start=start):
        if not request.ranking:
            rank = place
        elif score != last:
            # The first of the page may share its rank with members before the page.
            rank = _better_count(value, score, reverse=reverse) if place == start else place
            last = score
        response.members.add(member=member, score=score, rank=rank)


def _check_score_ranks(request: api.GetSortedSetScoreRanksRequest) -> None:
    check_request_key(request)
    check_member_count(len(request.scores), "scores")
    for index, score in enumerate(request.scores):
        _check_score(score, f"scores[{index}]")


def _score_ranks(
    keyspace: Keyspace,
    request: api.GetSortedSetScoreRanksRequest,
    response: api.GetSortedSetScoreRanksResponse,
    moment: Moment,
) -> None:
    value = keyspace.container(request.key, SortedSetValue, moment.time_unix_ms)
    for score in request.scores:
        if value is None:
            response.ranks.add()
            continue
        lower, not_higher = value.rank_of_score(score, behind=False), value.rank_of_score(score, behind=True)
        response.ranks.add(rank=len(value) - not_higher if request.reverse else lower, equal_count=not_higher - lower)
    response.member_count = 0 if value is None else len(value)


OPERATIONS = {
    "get_sorted_set_page": reads(_check_page, _page),
    "get_sorted_set_score_ranks": reads(_check_score_ranks, _score_ranks),
}
