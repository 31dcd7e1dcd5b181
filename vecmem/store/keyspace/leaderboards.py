"""Sorted sets as leaderboards: a page around a member or a score, and the ranks of scores. See proto/vecmem/v1/sorted_sets.proto."""

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
        case _:
            raise InvalidArgumentError("names neither a member nor a score", field="center")
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
    length = 0 if value is None else len(value)
    response.member_count = length
    reverse = request.reverse
    competition = request.ranking == api.SORTED_SET_RANKING_COMPETITION
    if request.HasField("score"):
        score = request.score
        place = 0 if value is None else _better_count(value, score, reverse=reverse)
        count_after = request.count_after
        response.rank = place
    else:
        found = None if value is None else value.scores.get(request.member)
        if value is None or found is None:
            return
        score = found
        rank = value.rank(request.member)
        place = length - 1 - rank if reverse else rank
        count_after = request.count_after + 1
        response.rank = _better_count(value, score, reverse=reverse) if competition else place
    response.score = score
    if value is None:
        return
    start, stop = max(0, place - request.count_before), min(length, place + count_after)
    pairs = value.pairs(length - stop, length - start, reverse=True) if reverse else value.pairs(start, stop)
    shared: tuple[float, int] | None = None
    for rank, (each, member) in enumerate(pairs, start=start):
        if competition:
            if shared is None or shared[0] != each:
                shared = each, _better_count(value, each, reverse=reverse) if rank == start else rank
            response.members.add(member=member, score=each, rank=shared[1])
        else:
            response.members.add(member=member, score=each, rank=rank)


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
