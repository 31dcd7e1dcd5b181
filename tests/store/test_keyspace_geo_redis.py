"""Places beside redis-server: it answers the same, and holds the same in the end."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.keyspace_support import assert_same_state, ours, theirs
from tests.support.keyspace import NOW, contents, do, outcome_of, reloaded
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.sorted_set_value import SortedSetValue

KEYS = (b"{t}a", b"{t}b", b"{t}c")
KEY = st.sampled_from(KEYS)
DISTANCES = b"{t}distances"
MEMBER = st.sampled_from([b"", b"a", b"b", b"c", b"d", b"e", b"f", b"\xff"])
PLACE = st.one_of(
    # 180 degrees have a score beyond 52 bits in redis-server, where no search finds them.
    st.tuples(st.floats(-180, 179.9999), st.floats(-85.05, 85.05)),
    st.tuples(st.floats(13.0, 13.01), st.floats(52.5, 52.51)),
    st.sampled_from([(0.0, 0.0), (-180.0, 0.0), (179.9999, 10.0), (-179.9999, 10.0), (13.36, 38.11), (20.0, 85.0)]),
)
# Beyond a few thousand kilometres, and near the poles, redis-server's cells do not always cover the area.
RADIUS = st.sampled_from([0.0, 0.31, 1.7, 99.3, 1_010.1, 50_007.7, 700_003.3])
AREA = st.one_of(st.tuples(st.just("radius"), RADIUS), st.tuples(st.just("box"), RADIUS, RADIUS))
CENTER = st.one_of(st.tuples(st.just("member"), MEMBER), st.tuples(st.just("place"), PLACE))
SEARCH = st.tuples(
    CENTER, AREA, st.sampled_from(["ASC", "DESC"]), st.none() | st.tuples(st.integers(1, 4), st.booleans())
)
STEPS = st.one_of(
    st.tuples(
        st.just("add"),
        KEY,
        st.lists(st.tuples(MEMBER, PLACE), min_size=1, max_size=6),
        st.sampled_from([None, "NX", "XX"]),
    ),
    st.tuples(st.just("positions"), KEY, st.lists(MEMBER, min_size=1, max_size=3)),
    st.tuples(st.just("hashes"), KEY, st.lists(MEMBER, min_size=1, max_size=3)),
    st.tuples(st.just("distance"), KEY, MEMBER, MEMBER),
    st.tuples(st.just("search"), KEY, SEARCH),
    st.tuples(st.just("store"), KEY, KEY, SEARCH, st.booleans()),
    st.tuples(st.just("remove"), KEY, MEMBER),
    st.tuples(st.just("string"), KEY),
    st.tuples(st.just("delete"), KEY),
)
ORDERS = {"ASC": 1, "DESC": 2}


def search_of(search: tuple[Any, ...]) -> tuple[dict[str, Any], list[Any]]:
    """The search of a request, and the arguments of a command."""
    center, area, order, count = search
    fields: dict[str, Any] = {"order": ORDERS[order]}
    if center[0] == "member":
        fields["member"] = center[1]
        arguments = ["FROMMEMBER", center[1]]
    else:
        longitude, latitude = center[1]
        fields["position"] = {"longitude": longitude, "latitude": latitude}
        arguments = ["FROMLONLAT", repr(longitude), repr(latitude)]
    if area[0] == "radius":
        fields["radius_m"] = area[1]
        arguments += ["BYRADIUS", repr(area[1]), "m"]
    else:
        fields["box"] = {"width_m": area[1], "height_m": area[2]}
        arguments += ["BYBOX", repr(area[1]), repr(area[2]), "m"]
    arguments.append(order)
    if count is not None:
        fields |= {"count": count[0], "any": count[1]}
        arguments += ["COUNT", count[0], *(["ANY"] if count[1] else [])]
    return fields, arguments


def is_near_a_pole(keyspace: Keyspace, key: bytes, fields: dict[str, Any]) -> bool:
    if "position" in fields:
        return abs(fields["position"]["latitude"]) > 75
    [found] = do(keyspace, "get_geo_positions", key=key, members=[fields["member"]]).positions
    return abs(found.position.latitude) > 75


def centerless(outcome: Any, kind: str) -> bool:
    return not outcome.HasField("error") and not getattr(outcome, kind).HasField("center")


def place_of(reply: Any) -> Any:
    return None if reply is None else pytest.approx([float(part) for part in reply], rel=1e-14, abs=1e-14)


def both(keyspace: Keyspace, client: redis.Redis, step: tuple[Any, ...]) -> tuple[Any, Any]:
    """Do one thing in both; returns what each answered."""
    match step:
        case ("add", key, places, condition):
            members = [{"member": m, "position": {"longitude": x, "latitude": y}} for m, (x, y) in places]
            number = {None: 0, "NX": 1, "XX": 2}[condition]
            outcome = outcome_of(keyspace, "add_geo_members", key=key, members=members, condition=number)
            options = [condition] if condition else []
            flat = [part for member, (x, y) in places for part in (repr(x), repr(y), member)]
            reply = theirs(lambda: client.execute_command("GEOADD", key, *options, "CH", *flat))
            return ours(outcome, lambda it: it.added_count + it.changed_count), reply
        case ("positions", key, members):
            outcome = outcome_of(keyspace, "get_geo_positions", key=key, members=members)
            reply = theirs(lambda: [place_of(found) for found in client.execute_command("GEOPOS", key, *members)])
            return ours(
                outcome,
                lambda it: [
                    [found.position.longitude, found.position.latitude] if found.HasField("position") else None
                    for found in it.positions
                ],
            ), reply
        case ("hashes", key, members):
            outcome = outcome_of(keyspace, "get_geo_hashes", key=key, members=members)
            reply = theirs(
                lambda: [
                    found.decode() if isinstance(found, bytes) else found
                    for found in client.execute_command("GEOHASH", key, *members)
                ]
            )
            return ours(outcome, lambda it: [h.geohash if h.HasField("geohash") else None for h in it.geohashes]), reply
        case ("distance", key, member, other):
            outcome = outcome_of(keyspace, "get_geo_distance", key=key, member=member, other_member=other)

            def distance() -> Any:
                found = client.execute_command("GEODIST", key, member, other)
                # It says four decimals.
                return None if found is None else pytest.approx(float(found), abs=6e-5, rel=1e-8)

            return ours(outcome, lambda it: it.distance_m if it.HasField("distance_m") else None), theirs(distance)
        case ("search", key, search):
            return searched(keyspace, client, key, search)
        case ("store", key, destination, search, with_distances):
            return stored(keyspace, client, key, destination, search, with_distances)
        case ("remove", key, member):
            outcome = outcome_of(keyspace, "remove_sorted_set_members", key=key, members=[member])
            return ours(outcome, lambda it: it.removed_count), theirs(lambda: client.zrem(key, member))
        case ("string", key):
            return do(keyspace, "set_string", key=key, value=b"v").written, client.set(key, b"v")
        case ("delete", key):
            return do(keyspace, "delete_keys", keys=[key]).deleted_count, client.delete(key)
    raise AssertionError(step)


def searched(keyspace: Keyspace, client: redis.Redis, key: bytes, search: tuple[Any, ...]) -> tuple[Any, Any]:
    fields, arguments = search_of(search)
    outcome = outcome_of(keyspace, "search_geo", key=key, search=fields, with_positions=True)
    reply = theirs(lambda: client.execute_command("GEOSEARCH", key, *arguments, "WITHDIST", "WITHCOORD"))
    if centerless(outcome, "search_geo"):
        # A member that is not there is an error of redis-server, but none without a key.
        return "nothing", "nothing" if reply in ("ERROR", []) else reply
    if isinstance(reply, str) or is_near_a_pole(keyspace, key, fields):
        return ours(outcome, lambda _: "found"), reply if isinstance(reply, str) else "found"
    hits = outcome.search_geo.hits
    distances = [hit.distance_m for hit in hits]
    expected = {member: (float(distance), place_of(place)) for member, distance, place in reply}
    if fields.get("any"):
        # Which ones is nobody's promise.
        everything = do(keyspace, "search_geo", key=key, search=fields | {"any": False, "count": 0}).hits
        assert {hit.member for hit in hits} | set(expected) <= {hit.member for hit in everything}
        return len(hits), len(reply)
    assert distances == pytest.approx([float(distance) for _, distance, _ in reply], abs=6e-5, rel=1e-8)
    if fields.get("count") is None or len(set(distances)) == len(distances):
        for hit in hits:
            # Of several at the same distance as the last one, either may have been taken.
            if hit.member in expected:
                assert [hit.position.longitude, hit.position.latitude] == expected[hit.member][1]
        edge = distances[-1] if distances else 0.0
        inner = {hit.member for hit in hits if abs(hit.distance_m - edge) > 1e-4}
        assert inner == {member for member, (distance, _) in expected.items() if abs(distance - edge) > 1e-4}
    if fields.get("count") is None:
        return {hit.member for hit in hits}, set(expected)
    return len(hits), len(reply)


def stored(
    keyspace: Keyspace,
    client: redis.Redis,
    key: bytes,
    destination: bytes,
    search: tuple[Any, ...],
    with_distances: bool,
) -> tuple[Any, Any]:
    """Without a count, so that both store the same members; with distances under a key that is not compared bit by bit."""
    fields, arguments = search_of((*search[:3], None))
    target = DISTANCES if with_distances else destination
    probe = outcome_of(keyspace, "search_geo", key=key, search=fields)
    if centerless(probe, "search_geo") or (not probe.HasField("error") and is_near_a_pole(keyspace, key, fields)):
        # There redis-server refuses, or removes the destination of a key that is not there.
        return None, None
    outcome = outcome_of(
        keyspace, "store_geo_search", key=key, destination=target, search=fields, store_distances=with_distances
    )
    options = ["STOREDIST"] if with_distances else []
    reply = theirs(lambda: client.execute_command("GEOSEARCHSTORE", target, key, *arguments, *options))
    if with_distances:
        value = keyspace.find(DISTANCES, NOW)
        mine = dict(value.scores) if isinstance(value, SortedSetValue) else {}
        expected = dict(client.zrange(DISTANCES, 0, -1, withscores=True))
        assert mine == pytest.approx(expected, rel=1e-8, abs=1e-7)
    return ours(outcome, lambda it: it.member_count), reply


# Searches find something where places are close to each other and to the center.
CLOSE = st.tuples(st.floats(13.0, 13.01), st.floats(52.5, 52.51)) | st.just((13.005, 52.505))
FILLED = st.tuples(
    st.just("add"),
    KEY,
    st.lists(st.tuples(MEMBER, CLOSE), min_size=4, max_size=8, unique_by=lambda it: it[0]),
    st.none(),
)
NEAR = st.tuples(
    st.tuples(st.just("place"), CLOSE) | st.tuples(st.just("member"), MEMBER),
    st.tuples(st.just("radius"), st.sampled_from([0.0, 99.3, 400.7, 2_000.1]))
    | st.tuples(st.just("box"), *[st.sampled_from([99.3, 400.7, 1_000.3, 5_000.1])] * 2),
    st.sampled_from(["ASC", "DESC"]),
    st.none() | st.tuples(st.integers(1, 4), st.booleans()),
)
CLOSE_STEPS = st.one_of(
    st.tuples(st.just("search"), KEY, NEAR), st.tuples(st.just("store"), KEY, KEY, NEAR, st.booleans()), FILLED
)


@settings(max_examples=300)
@given(
    st.tuples(st.lists(FILLED, min_size=2, max_size=3), st.lists(CLOSE_STEPS | STEPS, min_size=8, max_size=30)).map(
        lambda parts: [*parts[0], *parts[1]]
    )
)
def test_redis_answers_the_same(redis_client: redis.Redis, steps: list[tuple[Any, ...]]) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace = Keyspace()
    for step in steps:
        before = contents(keyspace)
        answered, expected = both(keyspace, redis_client, step)
        assert answered == expected, step
        assert answered not in ("WRONG_TYPE", "ERROR") or contents(keyspace) == before
    assert_same_state(keyspace, redis_client, KEYS)
    reloaded(keyspace)
