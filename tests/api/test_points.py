"""Writing and reading points over the raw API: versions, conditions, payloads, retries, expiry, selections."""

from __future__ import annotations

import json
import time

import pytest
from google.protobuf import struct_pb2, timestamp_pb2

from tests.support.api import COSINE, DOT, EUCLIDEAN, expect_refusal, packed, params, point, values
from vecmem.v1 import common_pb2, filter_pb2, points_pb2

ALL_VECTORS = common_pb2.VectorSelector(all=True)
AS_VALUES = common_pb2.VectorSelector(all=True, encoding=common_pb2.VECTOR_ENCODING_VALUES)
LONG_AGO = timestamp_pb2.Timestamp(seconds=1_000_000_000)


@pytest.fixture
def stored(api, collection_name):
    api.create(collection_name, params(2, DOT))
    return collection_name


def equals(path, integer):
    match = filter_pb2.MatchValue(integer=integer)
    return filter_pb2.Filter(field=filter_pb2.FieldCondition(path=path, match=match))


def has_id(*ids):
    return filter_pb2.Filter(has_id=filter_pb2.PointIds(ids=ids))


def include(*paths, **rest):
    return common_pb2.PayloadSelector(include=common_pb2.FieldPaths(paths=paths), **rest)


def exclude(*paths):
    return common_pb2.PayloadSelector(exclude=common_pb2.FieldPaths(paths=paths))


def update_payload(api, collection, *ids, request_id="", **rest):
    if ids:
        rest["ids"] = filter_pb2.PointIds(ids=ids)
    write = common_pb2.WriteOptions(request_id=request_id)
    return api.call("UpdatePayload", points_pb2.UpdatePayloadRequest(collection=collection, write=write, **rest))


def payload_of(api, collection, point_id):
    (found,) = api.get(collection, point_id)
    return json.loads(found.payload_json) if found.payload_json else None


# -- writing --------------------------------------------------------------------------------------------------------


def test_versions_are_positions_and_grow_with_every_change_and_across_deletion(api, stored):
    versions = [api.upsert(stored, [point("a", [1.0, 0.0])]).version]
    versions.append(api.upsert(stored, [point("a", [1.0, 0.0])]).version)
    versions.append(update_payload(api, stored, "a", merge_json=b'{"k":1}').version)
    assert api.get(stored, "a")[0].version == versions[-1]
    api.delete(stored, "a")
    versions.append(api.upsert(stored, [point("a", [1.0, 0.0])]).version)
    assert versions == sorted(set(versions))
    (found,) = api.get(stored, "a")
    assert found.version == versions[-1]
    assert not found.payload_json


@pytest.mark.one_shard(reason="each shard gives its own versions and positions")
def test_a_reply_counts_what_was_new_and_what_was_replaced(api, stored):
    first = api.upsert(stored, [point("a", [1.0, 0.0]), point("b", [1.0, 0.0])])
    assert (first.inserted_count, first.updated_count) == (2, 0)
    second = api.upsert(stored, [point("b", [1.0, 0.0]), point("c", [1.0, 0.0])])
    assert (second.inserted_count, second.updated_count) == (1, 1)
    assert second.header.position.sequence == second.version


def test_a_replaced_point_keeps_nothing_of_the_old_one(api, collection_name):
    api.create(collection_name, params(2, DOT), other=params(3, DOT))
    old = point("a", [1.0, 2.0], vectors={"other": packed([1.0] * 3)}, payload_json=b'{"k":1}')
    old.expires_at.FromJsonString("2999-01-01T00:00:00Z")
    api.upsert(collection_name, [old])
    assert api.get(collection_name, "a")[0].expires_at.ToJsonString() == "2999-01-01T00:00:00Z"
    api.upsert(collection_name, [point("a", vectors={"other": packed([2.0] * 3)})])
    (found,) = api.get(collection_name, "a", with_vectors=AS_VALUES)
    assert list(found.vectors["other"].dense.values) == [2.0] * 3
    assert not found.HasField("vector")
    assert not found.HasField("expires_at")
    assert found.WhichOneof("payload") is None
    assert api.query(collection_name, [1.0, 0.0]) == []


def test_the_last_of_several_points_with_one_id_stays(api, stored):
    points = [point("same", [float(i), 0.0], payload_json=b'{"i":%d}' % i) for i in range(5)]
    reply = api.upsert(stored, [points[0], point("other", [9.0, 9.0]), *points[1:]])
    assert (reply.inserted_count, reply.updated_count) == (2, 0)
    (found,) = api.get(stored, "same", with_vectors=AS_VALUES)
    assert (list(found.vector.dense.values), found.payload_json) == ([4.0, 0.0], b'{"i":4}')
    assert api.count(stored) == 2
    assert [hit.point.id for hit in api.query(stored, [1.0, 0.0])] == ["other", "same"]


def test_duplicates_with_different_vectors_leave_the_last_one_whole(api, collection_name):
    """What the last one lacks is not filled from the ones before it."""
    api.create(collection_name, params(2, DOT), other=params(1, DOT))
    api.upsert(
        collection_name, [point("a", [1.0, 1.0]), point("b", [2.0, 2.0]), point("a", vectors={"other": packed([3.0])})]
    )
    a, b = api.get(collection_name, "a", "b", with_vectors=AS_VALUES)
    assert not a.HasField("vector")
    assert list(a.vectors["other"].dense.values) == [3.0]
    assert list(b.vector.dense.values) == [2.0, 2.0]
    assert not b.vectors


def test_a_vector_of_a_superseded_duplicate_alone_is_no_vector_of_others(api, collection_name):
    """Nobody is left who has it, which must not be taken for everybody."""
    api.create(collection_name, params(2, DOT), other=params(1, DOT))
    api.upsert(collection_name, [point("a", [1.0, 1.0]), point("a", vectors={"other": packed([3.0])})])
    [a] = api.get(collection_name, "a", with_vectors=AS_VALUES)
    assert not a.HasField("vector")
    assert list(a.vectors["other"].dense.values) == [3.0]
    assert api.upsert(collection_name, [point("b", [1.0, 1.0])]).inserted_count == 1


@pytest.mark.one_shard(reason="each shard gives its own versions")
def test_conditions_on_versions_are_checked_point_by_point(api, stored):
    version = api.upsert(stored, [point("a", [1.0, 0.0])]).version
    reply = api.upsert(
        stored,
        [
            point("a", [2.0, 0.0], expected_version=version),
            point("b", [2.0, 0.0], expected_version=0),
            point("c", [2.0, 0.0], expected_version=7),
            point("d", [2.0, 0.0]),
        ],
    )
    assert [(one.id, one.expected_version, one.actual_version) for one in reply.conflicts] == [("c", 7, 0)]
    assert (reply.inserted_count, reply.updated_count) == (2, 1)
    stale = api.upsert(
        stored, [point("a", [3.0, 0.0], expected_version=version), point("b", [3.0, 0.0], expected_version=0)]
    )
    assert [(one.id, one.actual_version) for one in stale.conflicts] == [("a", reply.version), ("b", reply.version)]
    assert (stale.inserted_count, stale.updated_count, stale.version) == (0, 0, 0)
    assert sorted(hit.score for hit in api.query(stored, [1.0, 0.0])) == [2.0, 2.0, 2.0]


def test_an_update_of_no_point_has_no_version(api, stored):
    reply = update_payload(api, stored, "missing", merge_json=b'{"k":1}')
    assert (reply.updated_count, reply.version) == (0, 0)
    assert reply.header.position.sequence > 0


@pytest.mark.parametrize("size", [1, 512])
def test_ids_are_any_strings_within_the_limit(api, stored, size):
    ids = ["x" * size, "é" * (size // 2) or "é", "\0" * size, "\n" * size, "😀" * (size // 4) or "😀"]
    api.upsert(stored, [point(one, [1.0, 0.0]) for one in ids])
    assert [found.id for found in api.get(stored, *ids)] == ids
    assert [found.id for found in api.scroll(stored)] == sorted(ids)
    assert api.delete(stored, *ids).deleted_count == len(ids)


def test_a_request_of_the_largest_count_is_taken_whole(api, stored):
    points = [point(f"p{i:05d}", [float(i), 1.0]) for i in range(10_000)]
    assert api.upsert(stored, points).inserted_count == 10_000
    assert api.count(stored) == 10_000
    ids = [one.id for one in reversed(points)]
    assert [found.id for found in api.get(stored, *ids)] == ids
    assert [hit.point.id for hit in api.query(stored, [1.0, 0.0], limit=2, offset=9_998, params={"exact": True})] == [
        "p00001",
        "p00000",
    ]
    assert api.delete(stored, *ids).deleted_count == 10_000


def test_a_message_just_below_the_limit_is_taken(api, stored):
    payload = b'{"t":"%s"}' % (b"x" * 1_000_000)
    request = points_pb2.UpsertRequest(
        collection=stored, points=[point(f"{i}", [1.0, 0.0], payload_json=payload) for i in range(66)]
    )
    assert 60 * 1024**2 < request.ByteSize() < 64 * 1024**2
    assert api.call("Upsert", request).inserted_count == 66
    assert api.stats(stored).payload_bytes == 66 * len(payload)


# -- retries --------------------------------------------------------------------------------------------------------


@pytest.mark.one_shard(reason="a shard looks at its part of a repeated batch in its log")
def test_a_repeated_write_returns_the_first_result_and_changes_nothing(api, stored):
    before = api.upsert(stored, [point("a", [1.0, 0.0], payload_json=b'{"n":1}'), point("b", [1.0, 0.0])])
    ids = points_pb2.DeleteRequest(
        collection=stored,
        ids=filter_pb2.PointIds(ids=["b"]),
        write=common_pb2.WriteOptions(request_id=f"{stored} delete"),
    )
    condition = point("c", [1.0, 0.0], expected_version=0)
    writes = [
        lambda: api.upsert(stored, [point("a", [2.0, 0.0]), point("d", [2.0, 0.0])], f"{stored} upsert"),
        lambda: api.upsert(stored, [condition], f"{stored} conditional"),
        lambda: update_payload(api, stored, "a", merge_json=b'{"m":2}', request_id=f"{stored} merge"),
        lambda: api.call("Delete", ids),
    ]
    first = [write() for write in writes]
    assert (first[0].inserted_count, first[0].updated_count) == (1, 1)
    api.upsert(stored, [point("b", [5.0, 0.0])])
    last = api.info().log_last_sequence
    again = [write() for write in writes]
    for one, other in zip(first, again, strict=True):
        one.header.ClearField("server_time_unix_ms")
        other.header.ClearField("server_time_unix_ms")
        assert one == other
    assert api.info().log_last_sequence == last
    assert [found.id for found in api.get(stored, "b")] == ["b"]
    assert before.version < first[0].version


def test_a_request_id_belongs_to_one_request(api, stored):
    api.upsert(stored, [point("a", [1.0, 0.0])], f"{stored} once")
    refusal = expect_refusal(lambda: api.upsert(stored, [point("a", [2.0, 0.0])], f"{stored} once"))
    assert (refusal.code, refusal.reason, refusal.field) == (
        "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED",
        "write.request_id",
    )
    assert [hit.score for hit in api.query(stored, [1.0, 0.0])] == [1.0]


def test_requests_under_one_id_sent_at_once_are_applied_once(api, stored):
    request = points_pb2.UpsertRequest(
        collection=stored,
        points=[point("a", [1.0, 0.0])],
        write=common_pb2.WriteOptions(request_id=f"{stored} at once"),
    )
    running = [api.points.Upsert.future(request, timeout=60) for _ in range(30)]
    replies = [call.result() for call in running]
    assert len({reply.version for reply in replies}) == 1
    assert {reply.inserted_count for reply in replies} == {1}


# -- payloads -------------------------------------------------------------------------------------------------------


def test_payload_bytes_come_back_as_they_were_sent(api, stored):
    raw = (
        ' { "b" : 1.0e2,\n"a":[ 9223372036854775807 , -9223372036854775808 ], "s":"\\u00e9é\\/", "z": 1.50 } '.encode()
    )
    api.upsert(stored, [point("a", [1.0, 0.0], payload_json=raw)])
    assert api.get(stored, "a")[0].payload_json == raw
    assert api.scroll(stored)[0].payload_json == raw
    assert api.query(stored, [1.0, 0.0])[0].point.payload_json == raw


def test_integers_are_exact_over_all_of_int64(api, stored):
    numbers = [2**63 - 1, -(2**63), 2**53 + 1, -(2**53) - 1, 0]
    api.upsert(stored, [point(f"p{i}", [1.0, 0.0], payload_json=b'{"n":%d}' % n) for i, n in enumerate(numbers)])
    for i, number in enumerate(numbers):
        assert payload_of(api, stored, f"p{i}") == {"n": number}
        assert [found.id for found in api.scroll(stored, filter=equals("n", number))] == [f"p{i}"]


def test_structs_are_taken_and_given(api, stored):
    struct = struct_pb2.Struct()
    struct.update({"whole": 3, "half": 0.5, "list": [True, None, "x"], "inner": {"k": -7}})
    api.upsert(stored, [point("a", [1.0, 0.0], payload_struct=struct)])
    assert payload_of(api, stored, "a") == {"whole": 3, "half": 0.5, "list": [True, None, "x"], "inner": {"k": -7}}
    assert api.count(stored, equals("whole", 3)) == 1
    wanted = common_pb2.PayloadSelector(format=common_pb2.PAYLOAD_FORMAT_STRUCT)
    assert api.get(stored, "a", with_payload=wanted)[0].payload_struct == struct
    part = include("inner.k", format=common_pb2.PAYLOAD_FORMAT_STRUCT)
    assert dict(api.get(stored, "a", with_payload=part)[0].payload_struct["inner"]) == {"k": -7}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, {"a": {"b": 1, "c": 2}, "d": [{"e": 3, "f": 4}], "g": 5}),
        (common_pb2.PayloadSelector(all=True), {"a": {"b": 1, "c": 2}, "d": [{"e": 3, "f": 4}], "g": 5}),
        (common_pb2.PayloadSelector(all=False), None),
        (include("a.b", "nope"), {"a": {"b": 1}}),
        (include("d.e", "g"), {"d": [{"e": 3}], "g": 5}),
        (exclude("a", "d.e"), {"d": [{"f": 4}], "g": 5}),
    ],
)
def test_a_selector_chooses_what_of_the_payload_travels(api, stored, selector, expected):
    api.upsert(stored, [point("a", [1.0, 0.0], payload_json=b'{"a":{"b":1,"c":2},"d":[{"e":3,"f":4}],"g":5}')])
    replies = [
        api.get(stored, "a", with_payload=selector)[0],
        api.scroll(stored, with_payload=selector)[0],
        api.query(stored, [1.0, 0.0], with_payload=selector)[0].point,
    ]
    for reply in replies:
        assert (json.loads(reply.payload_json) if reply.payload_json else None) == expected


def test_payloads_are_merged_replaced_and_cut_by_id(api, stored):
    vector_and_expiry = point("a", [1.0, 2.0], payload_json=b'{"a":{"x":1},"b":2}')
    vector_and_expiry.expires_at.FromJsonString("2999-01-01T00:00:00Z")
    api.upsert(stored, [vector_and_expiry, point("b", [1.0, 2.0])])
    assert update_payload(api, stored, "a", "b", "nobody", "a", merge_json=b'{"a":{"y":2},"c":3}').updated_count == 2
    assert payload_of(api, stored, "a") == {"a": {"y": 2}, "b": 2, "c": 3}
    assert payload_of(api, stored, "b") == {"a": {"y": 2}, "c": 3}
    update_payload(api, stored, "a", remove=common_pb2.FieldPaths(paths=["a.y", "b", "nope.nope"]))
    assert payload_of(api, stored, "a") == {"a": {}, "c": 3}
    update_payload(api, stored, "a", replace_json=b'{"new":true}')
    (found,) = api.get(stored, "a", with_vectors=AS_VALUES)
    assert found.payload_json == b'{"new":true}'
    assert list(found.vector.dense.values) == [1.0, 2.0]
    assert found.expires_at.ToJsonString() == "2999-01-01T00:00:00Z"


@pytest.mark.one_shard(reason="each shard gives its own versions")
def test_payloads_are_changed_by_filter_and_filters_see_it_at_once(api, stored):
    api.upsert(stored, [point(f"p{i}", [1.0, 0.0], payload_json=b'{"n":%d}' % (i % 3)) for i in range(9)])
    reply = update_payload(api, stored, filter=equals("n", 1), merge_json=b'{"n":7}')
    assert reply.updated_count == 3
    assert (api.count(stored, equals("n", 1)), api.count(stored, equals("n", 7))) == (0, 3)
    assert {found.version for found in api.scroll(stored, filter=equals("n", 7))} == {reply.version}
    assert len(api.query(stored, [1.0, 0.0], filter=equals("n", 7))) == 3
    assert update_payload(api, stored, filter=equals("n", 1), merge_json=b'{"n":8}').updated_count == 0


@pytest.mark.one_shard(reason="all or none holds for each shard")
def test_an_update_that_would_make_one_payload_too_large_changes_none(api, stored):
    half = json.dumps({"a": "x" * 600_000}).encode()
    api.upsert(
        stored, [point("small", [1.0, 0.0], payload_json=b'{"k":1}'), point("large", [1.0, 0.0], payload_json=half)]
    )
    before = api.scroll(stored)
    merge = json.dumps({"b": "y" * 600_000}).encode()
    refusal = expect_refusal(lambda: update_payload(api, stored, "small", "large", merge_json=merge))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED")
    assert "'large'" in refusal.message
    assert api.scroll(stored) == before
    assert update_payload(api, stored, "small", merge_json=merge).updated_count == 1


# -- deleting and expiring ------------------------------------------------------------------------------------------


def test_points_are_deleted_by_id_and_by_filter(api, stored):
    api.upsert(stored, [point(f"p{i}", [1.0, 0.0], payload_json=b'{"n":%d}' % (i % 2)) for i in range(10)])
    assert api.delete(stored, "p0", "p1", "p0", "nobody").deleted_count == 2
    assert api.delete(stored, filter=equals("n", 0)).deleted_count == 4
    assert [found.id for found in api.scroll(stored)] == ["p3", "p5", "p7", "p9"]
    assert api.delete(stored, filter=has_id("p3", "p4")).deleted_count == 1
    everything = filter_pb2.Filter(all_of=filter_pb2.FilterList())
    assert api.delete(stored, filter=everything).deleted_count == 3
    assert (api.count(stored), api.query(stored, [1.0, 0.0]), api.scroll(stored)) == (0, [], [])


def test_a_point_that_expired_in_the_past_is_not_there_from_the_first_moment(api, stored):
    for number in range(20):
        gone, here = f"gone{number}", f"here{number}"
        api.upsert(stored, [point(gone, [1.0, 0.0], expires_at=LONG_AGO), point(here, [1.0, 0.0])])
        assert [found.id for found in api.get(stored, gone, here)] == [here]
        assert api.count(stored) == number + 1
    assert {found.id.rstrip("0123456789") for found in api.scroll(stored)} == {"here"}
    assert {hit.point.id.rstrip("0123456789") for hit in api.query(stored, [1.0, 0.0], limit=100)} == {"here"}
    assert expect_refusal(lambda: api.query(stored, "gone0")).reason == "POINT_NOT_FOUND"
    assert update_payload(api, stored, "gone0", merge_json=b"{}").updated_count == 0
    assert api.upsert(stored, [point("gone0", [1.0, 0.0], expected_version=0)]).inserted_count == 1


def test_a_point_expires_at_its_time_and_is_swept_out_by_a_record(own_api):
    own_api.create("c", params(2, DOT))
    soon = timestamp_pb2.Timestamp()
    soon.FromMilliseconds(own_api.info().header.server_time_unix_ms + 700)
    own_api.upsert("c", [point("soon", [1.0, 0.0], expires_at=soon), point("stays", [1.0, 0.0])])
    assert own_api.info().point_count == 2
    written = own_api.info().log_last_sequence
    seen_before = 0
    while True:
        request = points_pb2.GetRequest(collection="c", ids=["soon"])
        asked = own_api.info().header.server_time_unix_ms
        reply = own_api.call("Get", request)
        if reply.header.server_time_unix_ms < soon.ToMilliseconds():
            assert len(reply.points) == 1
            seen_before += 1
        if asked >= soon.ToMilliseconds():
            assert len(reply.points) == 0
            break
    assert seen_before
    assert (own_api.count("c"), len(own_api.scroll("c")), len(own_api.query("c", [1.0, 0.0]))) == (1, 1, 1)
    deadline = time.monotonic() + 30
    while own_api.info().point_count > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert own_api.info().log_last_sequence == written + 1


# -- reading --------------------------------------------------------------------------------------------------------


def test_get_returns_points_in_the_order_asked_for_without_the_missing_ones(api, stored):
    api.upsert(stored, [point(one, [1.0, 0.0]) for one in "abc"])
    assert [found.id for found in api.get(stored, "c", "nobody", "a", "b")] == ["c", "a", "b"]


def test_points_may_lack_some_vectors_and_selectors_name_them(api, collection_name):
    api.create(collection_name, params(2, DOT), x=params(1, COSINE), y=params(3, EUCLIDEAN))
    api.upsert(
        collection_name,
        [
            point("all", values([1.0, 2.0]), vectors={"x": values([3.0]), "y": packed([4.0, 5.0, 6.0])}),
            point("default", [7.0, 8.0]),
            point("named", vectors={"y": packed([9.0, 10.0, 11.0])}),
        ],
    )
    found = api.get(collection_name, "all", "default", "named", with_vectors=AS_VALUES)
    assert [
        (list(one.vector.dense.values), {k: list(v.dense.values) for k, v in one.vectors.items()}) for one in found
    ] == [
        ([1.0, 2.0], {"x": [3.0], "y": [4.0, 5.0, 6.0]}),
        ([7.0, 8.0], {}),
        ([], {"y": [9.0, 10.0, 11.0]}),
    ]
    only = common_pb2.VectorSelector(include=common_pb2.VectorNames(names=["y", ""]))
    found = api.get(collection_name, "all", with_vectors=only)
    assert (found[0].HasField("vector"), set(found[0].vectors)) == (True, {"y"})
    assert found[0].vectors["y"] == common_pb2.Vector(
        dense=common_pb2.DenseVector(
            packed=packed([4.0, 5.0, 6.0]).dense.packed, data_type=common_pb2.DATA_TYPE_FLOAT32
        )
    )
    assert not api.get(collection_name, "all")[0].HasField("vector")
    assert {hit.point.id for hit in api.query(collection_name, [0.0] * 3, using="y")} == {"all", "named"}
    assert {hit.point.id for hit in api.query(collection_name, [1.0], using="x")} == {"all"}


def test_vectors_under_cosine_come_back_as_they_were_sent(api, collection_name):
    api.create(collection_name, params(3, COSINE))
    api.upsert(collection_name, [point("a", [3.0, 4.0, 12.0])])
    assert list(api.get(collection_name, "a", with_vectors=AS_VALUES)[0].vector.dense.values) == [3.0, 4.0, 12.0]


@pytest.mark.one_shard(reason="positions of several shards are in no order")
def test_positions_never_go_back_and_can_be_asked_for(api, stored):
    last = 0
    for number in range(20):
        write = api.upsert(stored, [point(f"p{number}", [1.0, 0.0])])
        assert write.header.position.sequence > last
        last = write.header.position.sequence
        read = common_pb2.ReadOptions(min_position=write.header.position)
        counted = api.call("Count", points_pb2.CountRequest(collection=stored, read=read))
        assert counted.count == number + 1
        assert counted.header.position.sequence >= last
        last = counted.header.position.sequence
