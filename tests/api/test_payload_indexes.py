"""Payload indexes over the raw API: declared ones are there without a filter, across a restart; others come with their first filter."""

from __future__ import annotations

import time

import orjson
import pytest

from tests.support.api import DOT, connect, params, payload_indexes, point
from vecmem.v1 import collections_pb2, common_pb2, filter_pb2, points_pb2

BUILT_SECONDS_MAX = 30.0
COUNT = 700


def payload(number):
    return {
        "section": f"s{number % 7}",
        "size": number,
        "ratio": number / 8,
        "at": f"2026-11-{number % 28 + 1:02d}T00:00:00Z",
    }


def create(api, name, **types):
    config = collections_pb2.CollectionConfig(vector=params(2, DOT), payload_indexes=payload_indexes(**types))
    api.call("CreateCollection", collections_pb2.CreateCollectionRequest(name=name, config=config))


def fill(api, name, count=COUNT, first=0):
    api.upsert(
        name,
        [
            point(f"{n:04d}", [1.0, float(n)], payload_json=orjson.dumps(payload(n)))
            for n in range(first, first + count)
        ],
    )


def indexes(api, name):
    return {one.path: (one.declared, one.point_count) for one in api.stats(name).payload_indexes}


def wait_until(api, name, expected):
    """Building goes on in the background."""
    until = time.monotonic() + BUILT_SECONDS_MAX
    while indexes(api, name) != expected:
        assert time.monotonic() < until, f"{indexes(api, name)} is not {expected}"
        time.sleep(0.02)


def section(value):
    match = filter_pb2.MatchValue(keyword=value)
    return filter_pb2.Filter(field=filter_pb2.FieldCondition(path="section", match=match))


def size_below(bound):
    number_range = filter_pb2.NumberRange(lt=filter_pb2.Number(integer=bound))
    return filter_pb2.Filter(field=filter_pb2.FieldCondition(path="size", number_range=number_range))


def explained(api, name, **rest):
    query = points_pb2.Query(collection=name, limit=5, explain=True, **rest)
    query.nearest.vector.dense.values.extend([1.0, 1.0])
    return query


def test_declared_indexes_are_built_without_a_filter_and_follow_every_write(api, collection_name):
    create(api, collection_name, section=1, size=2)
    wait_until(api, collection_name, {"section": (True, 0), "size": (True, 0)})
    fill(api, collection_name)
    wait_until(api, collection_name, {"section": (True, COUNT), "size": (True, COUNT)})
    api.delete(collection_name, "0000", "0001")
    api.call(
        "UpdatePayload",
        points_pb2.UpdatePayloadRequest(
            collection=collection_name,
            ids=filter_pb2.PointIds(ids=["0002"]),
            remove=common_pb2.FieldPaths(paths=["size"]),
        ),
    )
    wait_until(api, collection_name, {"section": (True, COUNT - 2), "size": (True, COUNT - 3)})
    assert api.count(collection_name, size_below(10)) == 7
    assert all(one.bytes > 0 for one in api.stats(collection_name).payload_indexes)


def test_an_undeclared_index_comes_with_its_first_filter(api, collection_name):
    create(api, collection_name, size=2)
    fill(api, collection_name)
    wait_until(api, collection_name, {"size": (True, COUNT)})
    assert api.count(collection_name, section("s3")) == COUNT / 7
    assert indexes(api, collection_name) == {"section": (False, COUNT), "size": (True, COUNT)}


def test_a_declaration_that_comes_later_builds_and_one_that_goes_lets_go(api, collection_name):
    api.create(collection_name, params(2, DOT))
    fill(api, collection_name)
    assert indexes(api, collection_name) == {}

    def declare(**types):
        request = collections_pb2.UpdateCollectionRequest(
            name=collection_name, payload_indexes=payload_indexes(**types)
        )
        api.call("UpdateCollection", request)

    declare(at=5, ratio=3)
    wait_until(api, collection_name, {"at": (True, COUNT), "ratio": (True, COUNT)})
    declare(ratio=1)
    wait_until(api, collection_name, {"ratio": (True, COUNT)})
    declare()
    wait_until(api, collection_name, {})


def test_declared_indexes_are_there_again_after_a_restart(own_server):
    with connect(own_server.address) as api:
        create(api, "c", section=1)
        fill(api, "c")
        wait_until(api, "c", {"section": (True, COUNT)})
    for stop in (own_server.kill, own_server.stop):
        stop()
        own_server.start()
        with connect(own_server.address) as api:
            wait_until(api, "c", {"section": (True, COUNT)})
            assert api.count("c", section("s1")) == COUNT / 7


def test_a_query_that_asks_is_told_how_it_was_answered(api, collection_name):
    create(api, collection_name, section=1)
    fill(api, collection_name)
    both = filter_pb2.Filter(all_of=filter_pb2.FilterList(filters=[size_below(70), section("s0")]))
    query = explained(api, collection_name, filter=both)
    response = api.call("Query", points_pb2.QueryRequest(query=query))
    told = response.explanation
    assert told.plan == points_pb2.QUERY_PLAN_SCAN, "so few are compared at once"
    assert (told.point_count, told.matching_count) == (COUNT, 10)
    assert list(told.filter_paths) == ["section", "size"]
    assert told.scan_cost_us > 0
    assert told.ef == 0
    assert len(response.hits) == 5


def test_a_batch_explains_where_it_is_asked_to(api, collection_name):
    create(api, collection_name)
    fill(api, collection_name)
    asked = explained(api, collection_name)
    exact = explained(api, collection_name, params=points_pb2.SearchParams(exact=True))
    silent = explained(api, collection_name)
    silent.explain = False
    missing = explained(api, "there-is-none")
    request = points_pb2.QueryBatchRequest(queries=[asked, silent, missing, exact])
    outcomes = api.call("QueryBatch", request).outcomes
    assert outcomes[2].WhichOneof("kind") == "error"
    assert not outcomes[1].result.HasField("explanation")
    for place in (0, 3):
        told = outcomes[place].result.explanation
        assert told.plan != points_pb2.QUERY_PLAN_UNSPECIFIED
        assert (told.point_count, told.matching_count) == (COUNT, COUNT)
        assert not told.filter_paths
    assert outcomes[3].result.explanation.plan in {points_pb2.QUERY_PLAN_SCAN, points_pb2.QUERY_PLAN_CODE_SCAN}
    assert outcomes[3].result.explanation.compared_count >= COUNT


def test_nothing_is_explained_unasked(api, collection_name):
    create(api, collection_name)
    fill(api, collection_name, 3)
    query = explained(api, collection_name)
    query.explain = False
    assert not api.call("Query", points_pb2.QueryRequest(query=query)).HasField("explanation")


@pytest.mark.parametrize("declared", [1, 2, 3, 4, 5])
def test_every_type_finds_the_values_of_the_others(api, collection_name, declared):
    create(api, collection_name, v=declared)
    values = ["2026-11-01T00:00:00Z", 7, 7.5, True, "word", [7, "word"], -(2**63), 2**53 + 1, None]
    api.upsert(
        collection_name, [point(str(n), [1.0, 1.0], payload_json=orjson.dumps({"v": v})) for n, v in enumerate(values)]
    )
    wait_until(api, collection_name, {"v": (True, len(values))})

    def found(**test):
        condition = filter_pb2.Filter(field=filter_pb2.FieldCondition(path="v", **test))
        return {one.id for one in api.scroll(collection_name, filter=condition)}

    number = filter_pb2.Number
    assert found(number_range=filter_pb2.NumberRange(gte=number(integer=7), lt=number(real=8.0))) == {"1", "2", "5"}
    assert found(number_range=filter_pb2.NumberRange(lte=number(integer=7))) == {"1", "5", "6"}
    assert found(number_range=filter_pb2.NumberRange(gt=number(integer=2**53))) == {"7"}
    assert found(match=filter_pb2.MatchValue(keyword="word")) == {"4", "5"}
    assert found(match=filter_pb2.MatchValue(integer=7)) == {"1", "5"}
    assert found(match=filter_pb2.MatchValue(boolean=True)) == {"3"}
    times = filter_pb2.TimeRange()
    times.gte.FromJsonString("2026-10-31T00:00:00Z")
    assert found(time_range=times) == {"0"}
