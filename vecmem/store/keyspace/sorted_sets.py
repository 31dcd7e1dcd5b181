"""Sorted sets: members in order of their scores. See proto/vecmem/v1/sorted_sets.proto.

Semantics are those of Redis where the names coincide.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

from vecmem import limits
from vecmem.errors import (
    InvalidArgumentError,
    InvalidPageTokenError,
    LimitExceededError,
    MixedScoresError,
    NumberOverflowError,
)
from vecmem.store.keyspace.keyspace import NEVER, Keyspace
from vecmem.store.keyspace.operation import (
    Moment,
    Waits,
    any_key_exists,
    check_key,
    check_keys,
    check_member,
    check_member_count,
    check_members,
    check_one_or_several,
    check_request_key,
    check_slot,
    check_wait,
    first_key,
    frees,
    reads,
    writes,
)
from vecmem.store.keyspace.paging import check_page, page_end, page_start
from vecmem.store.keyspace.sorted_set_combination import combine
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.store.keyspace.strings import inclusive_range
from vecmem.v1 import sets_pb2
from vecmem.v1 import sorted_sets_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCORE = struct.Struct(">d")

Conditional = api.AddSortedSetMembersRequest | api.IncrementSortedSetMemberRequest
Combining = api.CombineSortedSetsRequest | api.StoreCombinedSortedSetsRequest


def _find(keyspace: Keyspace, request: Any, moment: Moment) -> SortedSetValue | None:
    return keyspace.container(request.key, SortedSetValue, moment.time_unix_ms)


def _check_score(score: float, field: str) -> None:
    if math.isnan(score):
        raise InvalidArgumentError("is NaN", field=field)


def _check_limit(limit: int) -> None:
    if limit > limits.SORTED_SET_MEMBERS_PER_REPLY_MAX:
        raise LimitExceededError(f"{limit} is more than {limits.SORTED_SET_MEMBERS_PER_REPLY_MAX}", field="limit")


def _check_request_members(request: Any) -> None:
    check_request_key(request)
    check_members(request.members, "members")


def _check_conditions(request: Conditional) -> None:
    if request.condition not in api.ScoredMemberCondition.values():
        raise InvalidArgumentError(f"{request.condition} is not known", field="condition")
    if request.score_condition not in api.ScoreCondition.values():
        raise InvalidArgumentError(f"{request.score_condition} is not known", field="score_condition")
    if request.score_condition and request.condition == api.SCORED_MEMBER_CONDITION_ABSENT:
        raise InvalidArgumentError("cannot hold for members that are not there", field="score_condition")


def _may_put(request: Conditional, old: float | None, score: float) -> bool:
    """Whether the conditions hold for a member with this score so far; None: it is not there."""
    if old is None:
        return request.condition != api.SCORED_MEMBER_CONDITION_PRESENT
    match request.score_condition:
        case api.SCORE_CONDITION_GREATER:
            return score > old
        case api.SCORE_CONDITION_LESS:
            return score < old
        case _:
            return request.condition != api.SCORED_MEMBER_CONDITION_ABSENT


def _check_add(request: api.AddSortedSetMembersRequest) -> None:
    check_request_key(request)
    check_member_count(len(request.members), "members")
    for index, item in enumerate(request.members):
        check_member(item.member, f"members[{index}].member")
        _check_score(item.score, f"members[{index}].score")
    _check_conditions(request)


def _add(
    keyspace: Keyspace,
    request: api.AddSortedSetMembersRequest,
    response: api.AddSortedSetMembersResponse,
    moment: Moment,
) -> None:
    found = _find(keyspace, request, moment)
    value, old_size_bytes = (SortedSetValue(), 0) if found is None else (found, found.size_bytes)
    added = changed = 0
    for item in request.members:
        old = value.scores.get(item.member)
        if old != item.score and _may_put(request, old, item.score):
            value.put(item.member, item.score)
            if old is None:
                added += 1
            else:
                changed += 1
    if added or changed:
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.added_count = added
    response.changed_count = changed


def _check_increment(request: api.IncrementSortedSetMemberRequest) -> None:
    check_request_key(request)
    check_member(request.member, "member")
    _check_score(request.delta, "delta")
    _check_conditions(request)


def _increment(
    keyspace: Keyspace,
    request: api.IncrementSortedSetMemberRequest,
    response: api.IncrementSortedSetMemberResponse,
    moment: Moment,
) -> None:
    found = _find(keyspace, request, moment)
    value, old_size_bytes = (SortedSetValue(), 0) if found is None else (found, found.size_bytes)
    old = value.scores.get(request.member)
    if old is not None and request.condition == api.SCORED_MEMBER_CONDITION_ABSENT:
        return
    score = (old or 0.0) + request.delta
    if math.isnan(score):
        raise NumberOverflowError(f"{old} + {request.delta} is no number", field="delta")
    if not _may_put(request, old, score):
        return
    if score != old:
        value.put(request.member, score)
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.score = value.scores[request.member]


def _remove(
    keyspace: Keyspace,
    request: api.RemoveSortedSetMembersRequest,
    response: api.RemoveSortedSetMembersResponse,
    moment: Moment,
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    length, old_size_bytes = len(value), value.size_bytes
    for member in request.members:
        if member in value.scores:
            value.remove(member)
    if len(value) < length:
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.removed_count = length - len(value)


def _get_scores(
    keyspace: Keyspace,
    request: api.GetSortedSetScoresRequest,
    response: api.GetSortedSetScoresResponse,
    moment: Moment,
) -> None:
    value = _find(keyspace, request, moment)
    for member in request.members:
        response.scores.add(score=None if value is None else value.scores.get(member))


def _get_ranks(
    keyspace: Keyspace,
    request: api.GetSortedSetRanksRequest,
    response: api.GetSortedSetRanksResponse,
    moment: Moment,
) -> None:
    value = _find(keyspace, request, moment)
    for member in request.members:
        found = response.ranks.add()
        if value is not None and (score := value.scores.get(member)) is not None:
            rank = value.rank(member)
            found.rank = len(value) - 1 - rank if request.reverse else rank
            found.score = score
    response.member_count = 0 if value is None else len(value)


def _check_range(selection: api.SortedSetRange) -> None:
    kind = selection.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError("selects nothing", field="range")
    if kind == "by_score":
        _check_score(selection.by_score.minimum.score, "range.by_score.minimum.score")
        _check_score(selection.by_score.maximum.score, "range.by_score.maximum.score")
    if kind == "by_member":
        check_member(selection.by_member.minimum.member, "range.by_member.minimum.member")
        check_member(selection.by_member.maximum.member, "range.by_member.maximum.member")


def _selected(value: SortedSetValue, selection: api.SortedSetRange, *, reverse: bool = False) -> tuple[int, int]:
    """What a range selects: from one rank up to and without another one, counted from the lowest score. Raises MixedScoresError."""
    length = len(value)
    start, stop = 0, length
    match selection.WhichOneof("kind"):
        case "by_rank":
            ranks = selection.by_rank
            start, stop = inclusive_range(ranks.start, ranks.stop if ranks.HasField("stop") else -1, length)
            start, stop = min(start, length), min(stop, length)
            if reverse:
                start, stop = length - stop, length - start
        case "by_score":
            scores = selection.by_score
            if scores.HasField("minimum"):
                start = value.rank_of_score(scores.minimum.score, behind=scores.minimum.exclusive)
            if scores.HasField("maximum"):
                stop = value.rank_of_score(scores.maximum.score, behind=not scores.maximum.exclusive)
        case _:
            members = selection.by_member
            if value.has_mixed_scores():
                raise MixedScoresError("range.by_member: the members have different scores", field="range.by_member")
            if members.HasField("minimum"):
                start = value.rank_of_member(members.minimum.member, behind=members.minimum.exclusive)
            if members.HasField("maximum"):
                stop = value.rank_of_member(members.maximum.member, behind=not members.maximum.exclusive)
    return start, max(start, stop)


def _part(
    start: int, stop: int, request: api.GetSortedSetRangeRequest | api.CombineSortedSetsRequest
) -> tuple[int, int]:
    """What `reverse`, `offset` and `limit` leave of what is selected."""
    limit = request.limit or limits.SORTED_SET_MEMBERS_PER_REPLY_MAX
    if request.reverse:
        stop = max(start, stop - request.offset)
        return max(start, stop - limit), stop
    start = min(stop, start + request.offset)
    return start, min(stop, start + limit)


def _check_get_range(request: api.GetSortedSetRangeRequest) -> None:
    check_request_key(request)
    _check_range(request.range)
    _check_limit(request.limit)


def _get_range(
    keyspace: Keyspace,
    request: api.GetSortedSetRangeRequest,
    response: api.GetSortedSetRangeResponse,
    moment: Moment,
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    start, stop = _selected(value, request.range, reverse=request.reverse)
    response.selected_count = stop - start
    _fill(response.members, value.pairs(*_part(start, stop, request), reverse=request.reverse))


def _fill(members: Any, pairs: Iterable[tuple[float, bytes]]) -> None:
    for score, member in pairs:
        members.add(member=member, score=score)


def _check_request_range(request: api.CountSortedSetRangeRequest | api.RemoveSortedSetRangeRequest) -> None:
    check_request_key(request)
    _check_range(request.range)


def _count_range(
    keyspace: Keyspace,
    request: api.CountSortedSetRangeRequest,
    response: api.CountSortedSetRangeResponse,
    moment: Moment,
) -> None:
    value = _find(keyspace, request, moment)
    if value is not None:
        start, stop = _selected(value, request.range)
        response.selected_count = stop - start


def _remove_range(
    keyspace: Keyspace,
    request: api.RemoveSortedSetRangeRequest,
    response: api.RemoveSortedSetRangeResponse,
    moment: Moment,
) -> None:
    value = _find(keyspace, request, moment)
    if value is not None:
        start, stop = _selected(value, request.range)
        _remove_ranks(keyspace, request.key, value, start, stop, moment)
        response.removed_count = stop - start


def _remove_ranks(keyspace: Keyspace, key: bytes, value: SortedSetValue, start: int, stop: int, moment: Moment) -> None:
    if start < stop:
        old_size_bytes = value.size_bytes
        value.remove_ranks(start, stop)
        keyspace.change(key, value, old_size_bytes, moment.time_unix_ms)


def _check_pop(request: api.PopSortedSetMembersRequest) -> None:
    check_one_or_several(request)
    check_wait(request)
    if request.end not in {api.SORTED_SET_END_LOWEST, api.SORTED_SET_END_HIGHEST}:
        raise InvalidArgumentError(f"{request.end} is no end of a sorted set", field="end")
    if request.count > limits.MEMBERS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{request.count} is more than {limits.MEMBERS_PER_REQUEST_MAX}", field="count")


def _pop(
    keyspace: Keyspace,
    request: api.PopSortedSetMembersRequest,
    response: api.PopSortedSetMembersResponse,
    moment: Moment,
) -> None:
    key, field = first_key(keyspace, request, moment)
    value = keyspace.container(key, SortedSetValue, moment.time_unix_ms, field)
    if value is None:
        return
    length = len(value)
    count = min(request.count or 1, length)
    moment.spend(count * limits.MEMBER_BYTES_MAX, "count")
    highest = request.end == api.SORTED_SET_END_HIGHEST
    start = length - count if highest else 0
    _fill(response.members, value.pairs(start, start + count, reverse=highest))
    _remove_ranks(keyspace, key, value, start, start + count, moment)
    response.member_count = len(value)
    if request.keys:
        response.key = key


def _check_combining(request: Combining) -> None:
    check_keys(request.keys)
    if request.combination not in sets_pb2.SetCombination.values()[1:]:
        raise InvalidArgumentError(f"{request.combination} is not known", field="combination")
    if request.aggregate not in api.ScoreAggregate.values():
        raise InvalidArgumentError(f"{request.aggregate} is not known", field="aggregate")
    if request.combination == sets_pb2.SET_COMBINATION_DIFFERENCE:
        for field in ("weights", "aggregate"):
            if getattr(request, field):
                raise InvalidArgumentError("means nothing for a difference", field=field)
    if request.weights and len(request.weights) != len(request.keys):
        raise InvalidArgumentError(f"{len(request.weights)} weights for {len(request.keys)} keys", field="weights")
    for index, weight in enumerate(request.weights):
        _check_score(weight, f"weights[{index}]")


def _check_combine(request: api.CombineSortedSetsRequest) -> None:
    _check_combining(request)
    _check_limit(request.limit)


def _combine(
    keyspace: Keyspace,
    request: api.CombineSortedSetsRequest,
    response: api.CombineSortedSetsResponse,
    moment: Moment,
) -> None:
    pairs = sorted((score, member) for member, score in combine(keyspace, request, moment).items())
    response.member_count = len(pairs)
    start, stop = _part(0, len(pairs), request)
    part = pairs[start:stop]
    _fill(response.members, reversed(part) if request.reverse else part)


def _check_store(request: api.StoreCombinedSortedSetsRequest) -> None:
    check_key(request.destination, "destination")
    _check_combining(request)
    check_slot([request.destination, request.keys[0]], "destination")


def _store(
    keyspace: Keyspace,
    request: api.StoreCombinedSortedSetsRequest,
    response: api.StoreCombinedSortedSetsResponse,
    moment: Moment,
) -> None:
    value = SortedSetValue(combine(keyspace, request, moment))
    if len(value):
        value.version = keyspace.next_version()
        keyspace.put(request.destination, value, NEVER)
    elif keyspace.find(request.destination, moment.time_unix_ms) is not None:
        keyspace.remove(request.destination)
    response.member_count = len(value)


def _scan_start(request: api.ScanSortedSetRequest) -> tuple[float, bytes] | None:
    """Score and member that a page goes on after; None: it is the first page. Raises InvalidPageTokenError."""
    after = page_start(request)
    if after is None:
        return None
    if len(after) < _SCORE.size or math.isnan(_SCORE.unpack_from(after)[0]):
        raise InvalidPageTokenError(f"{request.page_token[:80]!r} is not a page token", field="page_token")
    return _SCORE.unpack_from(after)[0], after[_SCORE.size :]


def _check_scan(request: api.ScanSortedSetRequest) -> None:
    check_request_key(request)
    check_page(request)
    _scan_start(request)


def _scan(
    keyspace: Keyspace, request: api.ScanSortedSetRequest, response: api.ScanSortedSetResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    after = _scan_start(request)
    start = 0 if after is None else value.order.bisect_right(after)
    stop = min(start + (request.page_size or limits.PAGE_SIZE_DEFAULT), len(value))
    _fill(response.members, value.pairs(start, stop))
    if stop < len(value):
        last = response.members[-1]
        response.next_page_token = page_end(request, _SCORE.pack(last.score) + last.member)
    response.member_count = len(value)


OPERATIONS = {
    "add_sorted_set_members": writes(_check_add, _add),
    "increment_sorted_set_member": writes(_check_increment, _increment),
    "remove_sorted_set_members": frees(_check_request_members, _remove),
    "get_sorted_set_scores": reads(_check_request_members, _get_scores),
    "get_sorted_set_ranks": reads(_check_request_members, _get_ranks),
    "get_sorted_set_range": reads(_check_get_range, _get_range),
    "count_sorted_set_range": reads(_check_request_range, _count_range),
    "remove_sorted_set_range": frees(_check_request_range, _remove_range),
    "pop_sorted_set_members": frees(_check_pop, _pop, Waits(lambda response: bool(response.members), any_key_exists)),
    "combine_sorted_sets": reads(_check_combine, _combine),
    "store_combined_sorted_sets": writes(_check_store, _store),
    "scan_sorted_set": reads(_check_scan, _scan),
}
