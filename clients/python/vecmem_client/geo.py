"""Places on the earth. Each function builds an operation for `Client.run` and `Client.pipeline`.

A set of places is a sorted set whose scores are geohashes: `sorted_sets` counts, lists and removes its members. Distances are metres. All
raise WrongTypeError, when they run, for a key that holds a value of another type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vecmem.v1 import geo_pb2 as api
from vecmem.v1 import sorted_sets_pb2
from vecmem_client._operations import BytesLike, Operation, as_bytes, reads, writes
from vecmem_client.sorted_sets import Added

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Condition = Literal["absent", "present"]
Order = Literal["nearest", "farthest"]
_CONDITIONS = {
    None: 0,
    "absent": sorted_sets_pb2.SCORED_MEMBER_CONDITION_ABSENT,
    "present": sorted_sets_pb2.SCORED_MEMBER_CONDITION_PRESENT,
}
_ORDERS = {
    None: api.GEO_ORDER_UNSPECIFIED,
    "nearest": api.GEO_ORDER_NEAREST_FIRST,
    "farthest": api.GEO_ORDER_FARTHEST_FIRST,
}


@dataclass(frozen=True, slots=True)
class Position:
    """Degrees: longitude -180 to 180, latitude -85.05112878 to 85.05112878."""

    longitude: float
    latitude: float


@dataclass(frozen=True, slots=True)
class Circle:
    """An area around a center."""

    radius_m: float


@dataclass(frozen=True, slots=True)
class Box:
    """An area around a center, from west to east and from south to north."""

    width_m: float
    height_m: float


@dataclass(frozen=True, slots=True)
class GeoHit:
    """A member, how far from the center it is, and where, if asked for."""

    member: bytes
    distance_m: float
    position: Position | None


@dataclass(frozen=True, slots=True)
class GeoHits:
    """What a search found; `found_count` also counts what is beyond `count`. `center` None: the member is not there."""

    hits: list[GeoHit]
    found_count: int
    center: Position | None


def add(
    key: BytesLike, positions: Mapping[BytesLike, Position], *, condition: Condition | None = None
) -> Operation[Added]:
    """Write the positions of 1 to 1,024 members: all, or only of those absent or present."""
    return writes(
        "add_geo_members",
        lambda response: Added(response.added_count, response.changed_count),
        key=as_bytes(key),
        members=[api.GeoMember(member=as_bytes(member), position=_sent(place)) for member, place in positions.items()],
        condition=_CONDITIONS[condition],
    )


def positions(key: BytesLike, members: Iterable[BytesLike]) -> Operation[list[Position | None]]:
    """Return where 1 to 1,024 members are, less than half a metre from where they were put; None for those that are not there."""
    return reads(
        "get_geo_positions",
        lambda response: [_received(found) for found in response.positions],
        key=as_bytes(key),
        members=[as_bytes(member) for member in members],
    )


def distance_m(key: BytesLike, member: BytesLike, other_member: BytesLike) -> Operation[float | None]:
    """Return how far two members are from each other; None: one is not there."""
    return reads(
        "get_geo_distance",
        lambda response: response.distance_m if response.HasField("distance_m") else None,
        key=as_bytes(key),
        member=as_bytes(member),
        other_member=as_bytes(other_member),
    )


def geohashes(key: BytesLike, members: Iterable[BytesLike]) -> Operation[list[str | None]]:
    """Return the geohashes of 1 to 1,024 members, 11 characters each; None for those that are not there."""
    return reads(
        "get_geo_hashes",
        lambda response: [found.geohash if found.HasField("geohash") else None for found in response.geohashes],
        key=as_bytes(key),
        members=[as_bytes(member) for member in members],
    )


def search(
    key: BytesLike,
    center: Position | BytesLike,
    area: Circle | Box,
    *,
    order: Order | None = None,
    count: int = 0,
    any: bool = False,  # noqa: A002  (the API's own word)
    with_positions: bool = False,
) -> Operation[GeoHits]:
    """Find members in an area around a position or a member: the nearest first, at most `count`, 0: 10,000.

    `any` ends the search as soon as there are `count`: not the nearest, but quicker where the area is large.
    """
    return reads(
        "search_geo",
        _hits,
        key=as_bytes(key),
        search=_search(center, area, order, count, any=any),
        with_positions=with_positions,
    )


def store_search(
    destination: BytesLike,
    key: BytesLike,
    center: Position | BytesLike,
    area: Circle | Box,
    *,
    order: Order | None = None,
    count: int = 0,
    any: bool = False,  # noqa: A002  (the API's own word)
    store_distances: bool = False,
) -> Operation[int | None]:
    """Write what a search finds under a key of the same slot, by distance if asked for; returns how many members, 0: there is no key.

    None: the member in the center is not there, and nothing is changed.
    """
    return writes(
        "store_geo_search",
        lambda response: response.member_count if response.HasField("center") else None,
        key=as_bytes(key),
        destination=as_bytes(destination),
        search=_search(center, area, order, count, any=any),
        store_distances=store_distances,
    )


def _search(
    center: Position | BytesLike,
    area: Circle | Box,
    order: Order | None,
    count: int,
    *,
    any: bool,  # noqa: A002
) -> api.GeoSearch:
    built = api.GeoSearch(order=_ORDERS[order], count=count, any=any)
    if isinstance(center, Position):
        built.position.CopyFrom(_sent(center))
    else:
        built.member = as_bytes(center)
    if isinstance(area, Circle):
        built.radius_m = area.radius_m
    else:
        built.box.CopyFrom(api.GeoBox(width_m=area.width_m, height_m=area.height_m))
    return built


def _hits(response: api.SearchGeoResponse) -> GeoHits:
    hits = [GeoHit(hit.member, hit.distance_m, _received(hit)) for hit in response.hits]
    center = response.center
    where = Position(center.longitude, center.latitude) if response.HasField("center") else None
    return GeoHits(hits, response.found_count, where)


def _sent(position: Position) -> api.GeoPosition:
    return api.GeoPosition(longitude=position.longitude, latitude=position.latitude)


def _received(found: Any) -> Position | None:
    return Position(found.position.longitude, found.position.latitude) if found.HasField("position") else None
