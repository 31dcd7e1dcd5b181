"""Places: geohashes, distances and searches, by themselves and against a look at every single member."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.keyspace import NOW, check_refusal, contents, do, refusal, reloaded
from vecmem import limits
from vecmem.store.keyspace import geo, geo_hash
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.v1 import geo_pb2 as api

KEY, OTHER, STRING = b"{t}a", b"{t}b", b"{t}string"
NEAREST, FARTHEST = api.GEO_ORDER_NEAREST_FIRST, api.GEO_ORDER_FARTHEST_FIRST
HALF_WAY_ROUND_M = math.pi * geo_hash.EARTH_RADIUS_M


@pytest.fixture
def keyspace() -> Keyspace:
    return Keyspace()


def at(longitude: float, latitude: float) -> dict[str, float]:
    return {"longitude": longitude, "latitude": latitude}


def add(keyspace: Keyspace, places: dict[bytes, tuple[float, float]], **fields: Any) -> tuple[int, int]:
    members = [{"member": member, "position": at(*place)} for member, place in places.items()]
    added = changed = 0
    for begin in range(0, len(members), limits.MEMBERS_PER_REQUEST_MAX):
        part = members[begin : begin + limits.MEMBERS_PER_REQUEST_MAX]
        response = do(keyspace, "add_geo_members", key=KEY, members=part, **fields)
        added += response.added_count
        changed += response.changed_count
    return added, changed


def search(keyspace: Keyspace, **fields: Any) -> Any:
    return do(keyspace, "search_geo", key=KEY, search=fields)


def members(response: Any) -> list[bytes]:
    return [hit.member for hit in response.hits]


def placed(keyspace: Keyspace) -> dict[bytes, tuple[float, float]]:
    """Where each member is, as the whole set says."""
    value = keyspace.container(KEY, SortedSetValue, NOW)
    return {} if value is None else {member: geo_hash.position(score) for member, score in value.scores.items()}


def haversine_m(one: tuple[float, float], other: tuple[float, float]) -> float:
    """A distance by the mathematical library."""
    longitude, latitude, other_longitude, other_latitude = map(math.radians, (*one, *other))
    across, along = math.sin((other_longitude - longitude) / 2), math.sin((other_latitude - latitude) / 2)
    part = along**2 + math.cos(latitude) * math.cos(other_latitude) * across**2
    return 2 * geo_hash.EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(part)))


CITIES = {b"palermo": (13.361389, 38.115556), b"catania": (15.087269, 37.502669), b"rome": (12.496366, 41.902782)}


# -- positions, distances, text --------------------------------------------------------------------------------------------


def test_positions_come_back_as_the_middle_of_a_cell(keyspace: Keyspace) -> None:
    assert add(keyspace, CITIES) == (3, 0)
    response = do(keyspace, "get_geo_positions", key=KEY, members=[b"rome", b"nowhere", b"palermo"])
    rome, nowhere, palermo = response.positions
    assert not nowhere.HasField("position")
    for found, place in ((rome, CITIES[b"rome"]), (palermo, CITIES[b"palermo"])):
        assert haversine_m((found.position.longitude, found.position.latitude), place) < 0.5
    assert do(keyspace, "get_sorted_set_scores", key=KEY, members=[b"palermo"]).scores[0].score == 3479099956230698
    assert do(keyspace, "get_geo_hashes", key=KEY, members=[b"palermo"]).geohashes[0].geohash == "sqc8b49rny0"
    reloaded(keyspace)


def test_every_place_is_less_than_half_a_metre_from_where_it_was_put() -> None:
    values = random.Random(4)
    for _ in range(2_000):
        place = values.uniform(-180, 180), values.uniform(-geo_hash.LATITUDE_MAX, geo_hash.LATITUDE_MAX)
        score = geo_hash.encode(*place)
        assert 0 <= score < 2**52
        assert haversine_m(geo_hash.position(score), place) < 0.5
        assert geo_hash.encode(*geo_hash.position(score)) == score


@pytest.mark.parametrize(
    "place", [(180.0, 0.0), (-180.0, 0.0), (0.0, geo_hash.LATITUDE_MAX), (180.0, -geo_hash.LATITUDE_MAX)]
)
def test_places_at_the_edge_of_the_map_have_geohashes(place: tuple[float, float], keyspace: Keyspace) -> None:
    assert 0 <= geo_hash.encode(*place) < 2**52
    add(keyspace, {b"edge": place, b"middle": (0.0, 1.0)})
    assert members(search(keyspace, position=at(*place), radius_m=1.0)) == [b"edge"]


def test_conditions_and_what_changes_nothing(keyspace: Keyspace) -> None:
    assert add(keyspace, CITIES, condition=2) == (0, 0)
    assert not keyspace.values
    add(keyspace, CITIES)
    before = contents(keyspace)
    assert add(keyspace, CITIES) == (0, 0)
    assert add(keyspace, {b"rome": (0.0, 0.0)}, condition=1) == (0, 0)
    assert contents(keyspace) == before
    assert add(keyspace, {b"rome": (0.0, 0.0), b"new": (1.0, 1.0)}, condition=2) == (0, 1)
    assert add(keyspace, {b"rome": (1.0, 1.0), b"new": (1.0, 1.0)}, condition=1) == (1, 0)


def test_distances_are_those_of_the_mathematical_library() -> None:
    values = random.Random(5)
    for _ in range(3_000):
        one = values.uniform(-180, 180), values.uniform(-85, 85)
        spread = 10.0 ** values.uniform(-6, 2)
        other = (
            (one[0] + values.uniform(-spread, spread) + 540) % 360 - 180,
            max(-85.0, min(85.0, one[1] + values.uniform(-spread, spread))),
        )
        expected = haversine_m(one, other)
        # Near the other side of the earth a haversine is close to 1 and says little, whoever computes it.
        assert float(geo_hash.distance_m(*one, *other)) == pytest.approx(
            expected, rel=1e-9 if expected < 1.9e7 else 1e-5, abs=1e-7
        )
        assert geo_hash.distance_m(*one, *one) == 0


def test_distances_have_the_same_bits_for_ever_and_alone_as_among_others() -> None:
    """They decide what StoreGeoSearch writes: a replay must not depend on a mathematical library."""
    palermo, catania = CITIES[b"palermo"], CITIES[b"catania"]
    assert float(geo_hash.distance_m(*palermo, *catania)).hex() == PINNED[0]
    assert float(geo_hash.distance_m(-179.9, -80.0, 179.9, 84.0)).hex() == PINNED[1]
    assert float(geo_hash.distance_m(0.0, 0.0, 180.0, 0.0)).hex() == PINNED[2]
    import numpy as np

    values = random.Random(6)
    scores = [geo_hash.encode(values.uniform(-180, 180), values.uniform(-85, 85)) for _ in range(1_000)]
    together = geo_hash.distance_m(*palermo, *geo_hash.decode(np.array(scores, dtype=np.float64)))
    assert together.tolist() == [float(geo_hash.distance_m(*palermo, *geo_hash.position(score))) for score in scores]


PINNED = ("0x1.44c120ff4f0f6p+17", "0x1.16565bc1b7be5p+24", "0x1.317dfe000002ap+24")


def test_a_distance_to_nowhere_is_none(keyspace: Keyspace) -> None:
    add(keyspace, CITIES)
    do(keyspace, "add_sorted_set_members", key=KEY, members=[{"member": b"odd", "score": -1.0}])
    distance = {"key": KEY, "member": b"palermo"}
    assert do(keyspace, "get_geo_distance", other_member=b"catania", **distance).distance_m == pytest.approx(
        166274.15, abs=0.1
    )
    for other in (b"nowhere", b"odd"):
        assert not do(keyspace, "get_geo_distance", other_member=other, **distance).HasField("distance_m")
    assert not do(keyspace, "get_geo_distance", key=OTHER, member=b"a", other_member=b"a").HasField("distance_m")


def test_members_without_a_geohash_have_no_position_and_are_not_found(keyspace: Keyspace) -> None:
    odd = {b"low": -1.0, b"high": 2.0**52, b"least": -math.inf, b"most": math.inf}
    scored = [{"member": member, "score": score} for member, score in odd.items()]
    do(keyspace, "add_sorted_set_members", key=KEY, members=[*scored, {"member": b"first", "score": 0.5}])
    for kind, found in (("get_geo_positions", "positions"), ("get_geo_hashes", "geohashes")):
        answers = getattr(do(keyspace, kind, key=KEY, members=[*odd, b"first"]), found)
        assert [bool(answer.ListFields()) for answer in answers] == [False] * 4 + [True]
    everywhere = search(keyspace, position=at(0, 0), radius_m=2 * HALF_WAY_ROUND_M)
    assert members(everywhere) == [b"first"]
    assert not search(keyspace, member=b"low", radius_m=1).HasField("center")


# -- searches --------------------------------------------------------------------------------------------------------------


def test_what_a_search_tells(keyspace: Keyspace) -> None:
    add(keyspace, CITIES)
    around = {"position": at(15, 37), "radius_m": 200_000.0}
    found = do(keyspace, "search_geo", key=KEY, search=around, with_positions=True)
    assert members(found) == [b"catania", b"palermo"]
    assert [hit.distance_m for hit in found.hits] == pytest.approx([56_441.2578, 190_442.4351], abs=0.01)
    assert found.found_count == 2
    assert (found.center.longitude, found.center.latitude) == (15, 37)
    for hit in found.hits:
        assert (hit.position.longitude, hit.position.latitude) == placed(keyspace)[hit.member]
    assert not search(keyspace, **around).hits[0].HasField("position")
    assert members(search(keyspace, **around, order=FARTHEST)) == [b"palermo", b"catania"]
    one = search(keyspace, **around, order=FARTHEST, count=1)
    assert (members(one), one.found_count) == ([b"palermo"], 2)
    box = {"width_m": 400_000.0, "height_m": 400_000.0}
    assert members(search(keyspace, position=at(15, 37), box=box)) == [b"catania", b"palermo"]
    from_member = search(keyspace, member=b"palermo", radius_m=0.0)
    assert (members(from_member), from_member.hits[0].distance_m) == ([b"palermo"], 0)


def test_equally_far_members_stand_in_the_order_of_their_bytes(keyspace: Keyspace) -> None:
    add(keyspace, dict.fromkeys((b"c", b"a", b"b"), (1.0, 1.0)))
    for order in (NEAREST, FARTHEST):
        assert members(search(keyspace, position=at(0, 0), radius_m=1e6, order=order, count=2)) == [b"a", b"b"]


def areas(values: random.Random) -> Iterator[dict[str, Any]]:
    """Circles and boxes of every size, many of them at the poles and where longitudes begin again."""
    for _ in range(150):
        longitude = values.choice([values.uniform(-180, 180), 180.0, -180.0, 179.999, -179.9, 0.0])
        latitude = values.choice([values.uniform(-85, 85), 85.05, -85.05, 84.9, 0.0])
        size = 10.0 ** values.uniform(0, 7.6)
        if values.random() < 0.5:
            yield {"position": at(longitude, latitude), "radius_m": size}
        else:
            box = {"width_m": size, "height_m": 10.0 ** values.uniform(0, 7.6)}
            yield {"position": at(longitude, latitude), "box": box}


def is_inside(area: dict[str, Any], place: tuple[float, float], slack: float) -> bool:
    """Whether a place is in an area whose size is a little larger or smaller."""
    center = area["position"]["longitude"], area["position"]["latitude"]
    if "radius_m" in area:
        return haversine_m(center, place) <= area["radius_m"] * slack
    across, along = haversine_m((center[0], place[1]), place), haversine_m((place[0], center[1]), place)
    return across <= area["box"]["width_m"] / 2 * slack and along <= area["box"]["height_m"] / 2 * slack


@pytest.mark.parametrize("seed", range(4))
def test_a_search_finds_what_a_look_at_every_member_finds(keyspace: Keyspace, seed: int) -> None:
    values = random.Random(seed)
    places = {
        b"%d" % n: (values.uniform(-180, 180), math.degrees(math.asin(values.uniform(-0.996, 0.996))))
        for n in range(1_500)
    }
    for number in range(500):
        center = values.choice([(179.9999, 60.0), (-179.9999, -85.0), (2.35, 48.85), (0.0, 85.05), (90.0, 0.0)])
        spread = 10.0 ** values.uniform(-5, 0.5)
        longitude = (center[0] + values.uniform(-spread, spread) + 540) % 360 - 180
        latitude = max(-85.05, min(85.05, center[1] + values.uniform(-spread, spread)))
        places[b"near %d" % number] = longitude, latitude
    add(keyspace, places)
    where = placed(keyspace)
    found_count = 0
    for area in areas(values):
        response = search(keyspace, **area)
        found = set(members(response))
        assert {member for member, place in where.items() if is_inside(area, place, 1 - 1e-9)} <= found
        assert found <= {member for member, place in where.items() if is_inside(area, place, 1 + 1e-9)}
        center = area["position"]["longitude"], area["position"]["latitude"]
        for hit in response.hits:
            assert hit.distance_m == pytest.approx(haversine_m(center, where[hit.member]), rel=1e-5, abs=1e-6)
        distances = [hit.distance_m for hit in response.hits]
        assert distances == sorted(distances)
        assert response.found_count == len(found)
        found_count += len(found)
    assert found_count > 10_000


def test_a_search_looks_only_at_the_cells_of_its_area(keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    values = random.Random(3)
    add(keyspace, {b"%d" % n: (values.uniform(0, 10), values.uniform(40, 50)) for n in range(20_000)})
    looked: list[int] = []
    pairs = SortedSetValue.pairs

    def counted(self: SortedSetValue, start: int, stop: int, *, reverse: bool = False) -> Any:
        looked.append(stop - start)
        return pairs(self, start, stop, reverse=reverse)

    monkeypatch.setattr(SortedSetValue, "pairs", counted)
    for _ in range(50):
        looked.clear()
        center = at(values.uniform(1, 9), values.uniform(41, 49))
        found = search(keyspace, position=center, radius_m=30_000.0)
        # The circle is a share of 0.3 % of the area.
        assert 20 <= found.found_count <= 150
        assert sum(looked) < 12 * found.found_count
    for any_count in (1, 10):
        looked.clear()
        assert len(search(keyspace, position=at(5, 45), radius_m=1e7, count=any_count, any=True).hits) == any_count
        assert sum(looked) < 10_000
    assert all(
        len(geo_hash.ranges(5.0, 45.0, width, height)) <= 9 for width in (1e-5, 1, 100, 180) for height in (1e-5, 1, 90)
    )


def test_any_is_a_part_of_what_there_is_and_the_same_each_time(keyspace: Keyspace) -> None:
    values = random.Random(9)
    add(keyspace, {b"%d" % n: (values.uniform(-10, 10), values.uniform(-10, 10)) for n in range(9_000)})
    area = {"position": at(0, 0), "radius_m": 800_000.0}
    everything = search(keyspace, **area)
    some = search(keyspace, **area, count=3_000, any=True)
    assert len(some.hits) == some.found_count == 3_000 < everything.found_count
    assert set(members(some)) < set(members(everything))
    assert members(search(reloaded(keyspace), **area, count=3_000, any=True)) == members(some)
    value = keyspace.container(KEY, SortedSetValue, NOW)
    assert value is not None
    scores = [value.scores[member] for member in members(some)]
    assert scores == sorted(scores)
    nearest = search(keyspace, **area, count=3_000, any=True, order=NEAREST)
    assert set(members(nearest)) == set(members(some))
    assert [hit.distance_m for hit in nearest.hits] == sorted(hit.distance_m for hit in some.hits)
    assert len(search(keyspace, **area, count=10_000, any=True).hits) == everything.found_count


def test_a_search_that_would_look_at_too_many_is_refused(keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GEO_LOOKS_MAX", 100)
    add(keyspace, {b"%d" % n: (n / 1_000, 0.0) for n in range(101)})
    area = {"position": at(0, 0), "radius_m": 1e6}
    assert refusal(keyspace, "search_geo", key=KEY, search=area) == ("LIMIT_EXCEEDED", "search.area")
    assert refusal(keyspace, "store_geo_search", key=KEY, destination=OTHER, search=area)[0] == "LIMIT_EXCEEDED"
    monkeypatch.setattr(geo, "CHUNK_MEMBERS", 10)
    some = area | {"count": 50, "any": True}
    assert search(keyspace, **some).found_count == 50
    assert refusal(keyspace, "search_geo", key=KEY, search=some | {"count": 101}) == ("LIMIT_EXCEEDED", "search.area")
    do(keyspace, "remove_sorted_set_members", key=KEY, members=[b"7"])
    assert search(keyspace, **area).found_count == 100


def test_storing_replaces_the_destination_and_is_a_sorted_set(keyspace: Keyspace) -> None:
    add(keyspace, CITIES)
    do(keyspace, "set_string", key=OTHER, value=b"v", expiry={"ttl_ms": 10})
    area = {"position": at(15, 37), "radius_m": 200_000.0}
    store = {"key": KEY, "destination": OTHER, "search": area}
    assert do(keyspace, "store_geo_search", **store).member_count == 2
    assert keyspace.expires_at(OTHER) == 0
    stored = keyspace.container(OTHER, SortedSetValue, NOW)
    source = keyspace.container(KEY, SortedSetValue, NOW)
    assert stored is not None
    assert source is not None
    assert stored.scores == {member: source.scores[member] for member in (b"palermo", b"catania")}
    assert do(keyspace, "store_geo_search", **store, store_distances=True).member_count == 2
    best = do(keyspace, "get_sorted_set_range", key=OTHER, range={"by_rank": {}}).members
    assert [item.member for item in best] == [b"catania", b"palermo"]
    assert [item.score for item in best] == [hit.distance_m for hit in search(keyspace, **area).hits]
    nothing = {"position": at(-100, 0), "radius_m": 1.0}
    assert do(keyspace, "store_geo_search", key=KEY, destination=OTHER, search=nothing).member_count == 0
    assert OTHER not in keyspace.values
    do(keyspace, "store_geo_search", key=KEY, destination=KEY, search=area | {"count": 1})
    assert list(placed(keyspace)) == [b"catania"]
    reloaded(keyspace)


def test_a_center_that_is_not_there_changes_nothing(keyspace: Keyspace) -> None:
    add(keyspace, CITIES)
    do(keyspace, "set_string", key=OTHER, value=b"v")
    before = contents(keyspace)
    for key in (KEY, b"{t}none"):
        around = {"key": key, "search": {"member": b"nowhere", "radius_m": 1e6}}
        assert do(keyspace, "search_geo", **around).ListFields() == []
        assert do(keyspace, "store_geo_search", destination=OTHER, **around).ListFields() == []
    assert contents(keyspace) == before


# -- refusals --------------------------------------------------------------------------------------------------------------


def test_requests_that_are_wrong_whatever_the_state() -> None:
    wrong = "INVALID_ARGUMENT"
    for position, field in (
        (at(180.1, 0), "longitude"), (at(-181, 0), "longitude"), (at(math.nan, 0), "longitude"),
        (at(0, 85.06), "latitude"), (at(0, -90), "latitude"), (at(0, math.inf), "latitude"),
    ):  # fmt: skip
        added = [{"member": b"a", "position": at(0, 0)}, {"member": b"b", "position": position}]
        assert check_refusal("add_geo_members", key=KEY, members=added) == (wrong, f"members[1].position.{field}")
        area = {"position": position, "radius_m": 1}
        assert check_refusal("search_geo", key=KEY, search=area) == (wrong, f"search.position.{field}")
    assert check_refusal("add_geo_members", key=KEY, members=[{"member": b"a"}]) == (wrong, "members[0].position")
    assert check_refusal("add_geo_members", key=KEY) == (wrong, "members")
    good = [{"member": b"a", "position": at(0, 0)}]
    assert check_refusal("add_geo_members", key=KEY, members=good, condition=7) == (wrong, "condition")
    assert check_refusal("add_geo_members", key=KEY, members=good * 1_025) == ("LIMIT_EXCEEDED", "members")
    long = b"x" * 1_025
    assert check_refusal("get_geo_distance", key=KEY, member=b"", other_member=long) == (
        "LIMIT_EXCEEDED",
        "other_member",
    )
    assert check_refusal("get_geo_hashes", key=KEY, members=[long]) == ("LIMIT_EXCEEDED", "members[0]")
    assert check_refusal("get_geo_positions", key=KEY) == (wrong, "members")
    center, circle = {"position": at(0, 0)}, {"radius_m": 1.0}
    for fields, field in (
        (circle, "search.center"), (center, "search.area"), (center | {"radius_m": -1}, "search.radius_m"),
        (center | {"radius_m": math.nan}, "search.radius_m"), (center | {"radius_m": math.inf}, "search.radius_m"),
        (center | {"box": {"width_m": -1}}, "search.box.width_m"), (center | {"box": {"height_m": math.nan}}, "search.box.height_m"),
        (center | circle | {"order": 5}, "search.order"), (center | circle | {"any": True}, "search.any"),
    ):  # fmt: skip
        assert check_refusal("search_geo", key=KEY, search=fields) == (wrong, field)
        assert check_refusal("store_geo_search", key=KEY, destination=OTHER, search=fields) == (wrong, field)
    area = center | circle
    assert check_refusal("search_geo", key=KEY) == (wrong, "search.center")
    assert check_refusal("search_geo", key=KEY, search=area | {"count": 10_001}) == ("LIMIT_EXCEEDED", "search.count")
    assert check_refusal("search_geo", key=KEY, search=circle | {"member": long}) == ("LIMIT_EXCEEDED", "search.member")
    assert check_refusal("store_geo_search", key=KEY, search=area) == ("INVALID_KEY", "destination")
    elsewhere = check_refusal("store_geo_search", key=KEY, destination=b"elsewhere", search=area)
    assert elsewhere == ("CROSS_SLOT", "destination")


def test_keys_of_other_types_are_refused(keyspace: Keyspace) -> None:
    do(keyspace, "set_string", key=STRING, value=b"v")
    area = {"position": at(0, 0), "radius_m": 1}
    for kind, fields in (
        ("add_geo_members", {"members": [{"member": b"a", "position": at(0, 0)}]}),
        ("get_geo_positions", {"members": [b"a"]}), ("get_geo_hashes", {"members": [b"a"]}),
        ("get_geo_distance", {"member": b"a", "other_member": b"b"}),
        ("search_geo", {"search": area}), ("store_geo_search", {"search": area, "destination": KEY}),
    ):  # fmt: skip
        assert refusal(keyspace, kind, key=STRING, **fields) == ("WRONG_TYPE", "key")
