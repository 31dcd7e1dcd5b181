"""Places on the earth: sorted sets whose scores are geohashes. See proto/vecmem/v1/geo.proto and geo_hash.py.

Semantics are those of Redis where the names coincide. A search looks only at the ranges of scores that the cells of its area make up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace import geo_hash, sorted_sets
from vecmem.store.keyspace.keyspace import NEVER, Keyspace
from vecmem.store.keyspace.operation import (
    Moment,
    check_key,
    check_member,
    check_member_count,
    check_members,
    check_request_key,
    check_slot,
    reads,
    writes,
)
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.v1 import geo_pb2 as api
from vecmem.v1 import sorted_sets_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_MEMBERS: Final = 4_096
"""Members whose distances are computed together."""

Searching = api.SearchGeoRequest | api.StoreGeoSearchRequest


def _find(keyspace: Keyspace, key: bytes, moment: Moment) -> SortedSetValue:
    found = keyspace.container(key, SortedSetValue, moment.time_unix_ms)
    return SortedSetValue() if found is None else found


def _position(value: SortedSetValue, member: bytes) -> tuple[float, float] | None:
    """Longitude and latitude of a member that has them."""
    score = value.scores.get(member)
    return None if score is None or not geo_hash.is_geohash(score) else geo_hash.position(score)


def _check_position(position: api.GeoPosition, field: str) -> None:
    for name, bound in (("longitude", geo_hash.LONGITUDE_MAX), ("latitude", geo_hash.LATITUDE_MAX)):
        degrees = getattr(position, name)
        if not -bound <= degrees <= bound:
            raise InvalidArgumentError(f"{degrees} is not within -{bound} to {bound}", field=f"{field}.{name}")


def _check_add(request: api.AddGeoMembersRequest) -> None:
    check_request_key(request)
    check_member_count(len(request.members), "members")
    for index, item in enumerate(request.members):
        check_member(item.member, f"members[{index}].member")
        if not item.HasField("position"):
            raise InvalidArgumentError("is missing", field=f"members[{index}].position")
        _check_position(item.position, f"members[{index}].position")
    if request.condition not in sorted_sets_pb2.ScoredMemberCondition.values():
        raise InvalidArgumentError(f"{request.condition} is not known", field="condition")


def _add(
    keyspace: Keyspace, request: api.AddGeoMembersRequest, response: api.AddGeoMembersResponse, moment: Moment
) -> None:
    scored = sorted_sets_pb2.AddSortedSetMembersRequest(key=request.key, condition=request.condition)
    for item in request.members:
        score = geo_hash.encode(item.position.longitude, item.position.latitude)
        scored.members.add(member=item.member, score=score)
    # The response has the same fields.
    sorted_sets.OPERATIONS["add_sorted_set_members"].run(keyspace, scored, response, moment)


def _check_request_members(request: api.GetGeoPositionsRequest | api.GetGeoHashesRequest) -> None:
    check_request_key(request)
    check_members(request.members, "members")


def _get_positions(
    keyspace: Keyspace, request: api.GetGeoPositionsRequest, response: api.GetGeoPositionsResponse, moment: Moment
) -> None:
    value = _find(keyspace, request.key, moment)
    for member in request.members:
        found = response.positions.add()
        position = _position(value, member)
        if position is not None:
            found.position.longitude, found.position.latitude = position


def _check_distance(request: api.GetGeoDistanceRequest) -> None:
    check_request_key(request)
    check_member(request.member, "member")
    check_member(request.other_member, "other_member")


def _get_distance(
    keyspace: Keyspace, request: api.GetGeoDistanceRequest, response: api.GetGeoDistanceResponse, moment: Moment
) -> None:
    value = _find(keyspace, request.key, moment)
    one, other = _position(value, request.member), _position(value, request.other_member)
    if one is not None and other is not None:
        response.distance_m = float(geo_hash.distance_m(*one, *other))


def _get_hashes(
    keyspace: Keyspace, request: api.GetGeoHashesRequest, response: api.GetGeoHashesResponse, moment: Moment
) -> None:
    value = _find(keyspace, request.key, moment)
    for member in request.members:
        score = value.scores.get(member)
        known = score is not None and geo_hash.is_geohash(score)
        response.geohashes.add(geohash=geo_hash.text(score) if known and score is not None else None)


# -- searches --------------------------------------------------------------------------------------------------------------


def _check_length(length_m: float, field: str) -> None:
    if not 0 <= length_m < math.inf:
        raise InvalidArgumentError(f"{length_m} is no length", field=field)


def _check_search(search: api.GeoSearch) -> None:
    match search.WhichOneof("center"):
        case "member":
            check_member(search.member, "search.member")
        case "position":
            _check_position(search.position, "search.position")
        case _:
            raise InvalidArgumentError("names neither a member nor a position", field="search.center")
    match search.WhichOneof("area"):
        case "radius_m":
            _check_length(search.radius_m, "search.radius_m")
        case "box":
            _check_length(search.box.width_m, "search.box.width_m")
            _check_length(search.box.height_m, "search.box.height_m")
        case _:
            raise InvalidArgumentError("is neither a circle nor a box", field="search.area")
    if search.order not in api.GeoOrder.values():
        raise InvalidArgumentError(f"{search.order} is not known", field="search.order")
    if search.any and not search.count:
        raise InvalidArgumentError("needs a count", field="search.any")


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What a search has found, in the order asked for; `found_count` counts what is beyond `count` as well."""

    members: list[bytes]
    scores: list[float]
    distances_m: list[float]
    found_count: int


def _center(value: SortedSetValue, search: api.GeoSearch) -> tuple[float, float] | None:
    """Longitude and latitude of the center; None: there is no such member."""
    if search.WhichOneof("center") == "position":
        return search.position.longitude, search.position.latitude
    return _position(value, search.member)


def _search(value: SortedSetValue, search: api.GeoSearch, center: tuple[float, float], count_max: int) -> _Found:
    """Find up to `count_max` members. Raises LimitExceededError where the cells hold more than a search looks at."""
    members: list[bytes] = []
    scores: list[float] = []
    parts = [np.empty(0)]
    for pairs in _chunks(value, search, center):
        chunk_scores = np.fromiter((score for score, _ in pairs), dtype=np.float64, count=len(pairs))
        inside, distances_m = _inside(chunk_scores, search, center)
        places = np.flatnonzero(inside)
        if search.any:
            places = places[: count_max - len(members)]
        members += [pairs[place][1] for place in places.tolist()]
        scores += chunk_scores[places].tolist()
        parts.append(distances_m[places])
        if search.any and len(members) == count_max:
            break
    distances_m = np.concatenate(parts)
    order = np.arange(len(members))
    if search.order or not search.any:
        farthest_first = search.order == api.GEO_ORDER_FARTHEST_FIRST
        order = np.argsort(-distances_m if farthest_first else distances_m, kind="stable")
    chosen = order[:count_max].tolist()
    return _Found(
        [members[place] for place in chosen],
        [scores[place] for place in chosen],
        distances_m[chosen].tolist(),
        len(members),
    )


def _chunks(
    value: SortedSetValue, search: api.GeoSearch, center: tuple[float, float]
) -> Iterator[list[tuple[float, bytes]]]:
    """The members to look at, with their scores and in their order, some at a time."""
    longitude, latitude = center
    if search.WhichOneof("area") == "box":
        height, width = geo_hash.box_width(latitude, search.box.width_m, search.box.height_m)
    else:
        height, width = geo_hash.circle_width(latitude, search.radius_m)
    spans = [
        (value.rank_of_score(start, behind=False), value.rank_of_score(stop, behind=False))
        for start, stop in geo_hash.ranges(longitude, latitude, width, height)
    ]
    looks = sum(stop - start for start, stop in spans)
    if looks > limits.GEO_LOOKS_MAX and not search.any:
        raise _too_many(looks)
    looks = 0
    for start, stop in spans:
        for begin in range(start, stop, CHUNK_MEMBERS):
            pairs = list(value.pairs(begin, min(begin + CHUNK_MEMBERS, stop)))
            looks += len(pairs)
            if looks > limits.GEO_LOOKS_MAX:
                raise _too_many(looks)
            yield pairs


def _too_many(count: int) -> LimitExceededError:
    return LimitExceededError(
        f"{count} members in and around the area, more than {limits.GEO_LOOKS_MAX}", field="search.area"
    )


def _inside(scores: np.ndarray, search: api.GeoSearch, center: tuple[float, float]) -> tuple[Any, Any]:
    """Which of the members with these scores are in the area, and how far from the center each is."""
    longitudes, latitudes = geo_hash.decode(scores)
    distances_m = geo_hash.distance_m(*center, longitudes, latitudes)
    if search.WhichOneof("area") == "radius_m":
        return distances_m <= search.radius_m, distances_m
    across_m = geo_hash.distance_m(center[0], latitudes, longitudes, latitudes)
    along_m = geo_hash.meridian_distance_m(center[1], latitudes)
    return (across_m <= search.box.width_m / 2) & (along_m <= search.box.height_m / 2), distances_m


def _check_search_request(request: api.SearchGeoRequest) -> None:
    check_request_key(request)
    _check_search(request.search)
    if request.search.count > limits.SORTED_SET_MEMBERS_PER_REPLY_MAX:
        raise LimitExceededError(
            f"{request.search.count} is more than {limits.SORTED_SET_MEMBERS_PER_REPLY_MAX}", field="search.count"
        )


def _search_set(
    keyspace: Keyspace, request: api.SearchGeoRequest, response: api.SearchGeoResponse, moment: Moment
) -> None:
    value = _find(keyspace, request.key, moment)
    center = _center(value, request.search)
    if center is None:
        return
    found = _search(value, request.search, center, request.search.count or limits.SORTED_SET_MEMBERS_PER_REPLY_MAX)
    for member, distance in zip(found.members, found.distances_m, strict=True):
        response.hits.add(member=member, distance_m=distance)
    if request.with_positions and found.scores:
        longitudes, latitudes = geo_hash.decode(found.scores)
        for hit, longitude, latitude in zip(response.hits, longitudes.tolist(), latitudes.tolist(), strict=True):
            hit.position.longitude, hit.position.latitude = longitude, latitude
    response.found_count = found.found_count
    response.center.longitude, response.center.latitude = center


def _check_store(request: api.StoreGeoSearchRequest) -> None:
    check_request_key(request)
    check_key(request.destination, "destination")
    check_slot([request.key, request.destination], "destination")
    _check_search(request.search)


def _store(
    keyspace: Keyspace, request: api.StoreGeoSearchRequest, response: api.StoreGeoSearchResponse, moment: Moment
) -> None:
    value = _find(keyspace, request.key, moment)
    center = _center(value, request.search)
    if center is None:
        return
    found = _search(value, request.search, center, request.search.count or limits.GEO_LOOKS_MAX)
    scores = found.distances_m if request.store_distances else found.scores
    stored = SortedSetValue(dict(zip(found.members, scores, strict=True)))
    if len(stored):
        stored.version = keyspace.next_version()
        keyspace.put(request.destination, stored, NEVER)
    elif keyspace.find(request.destination, moment.time_unix_ms) is not None:
        keyspace.remove(request.destination)
    response.member_count = len(stored)
    response.center.longitude, response.center.latitude = center


OPERATIONS: Final = {
    "add_geo_members": writes(_check_add, _add),
    "get_geo_positions": reads(_check_request_members, _get_positions),
    "get_geo_distance": reads(_check_distance, _get_distance),
    "get_geo_hashes": reads(_check_request_members, _get_hashes),
    "search_geo": reads(_check_search_request, _search_set),
    "store_geo_search": writes(_check_store, _store),
}
