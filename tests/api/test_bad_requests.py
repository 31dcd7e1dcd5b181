"""Every bad request gets its code, its reason and the offending field, and changes neither state nor log."""

from __future__ import annotations

import pytest

from tests.support.api import COSINE, DOT, EUCLIDEAN, connect, expect_refusal, params, point, query_message
from tests.support.bad_collections import COLLECTION_CASES
from tests.support.bad_requests import CASES as POINT_CASES
from tests.support.bad_requests import FIELD_SHOWN, GOOD, HOME, OTHER
from tests.support.server import ServerProcess
from vecmem.v1 import points_pb2

CASES = [*POINT_CASES, *COLLECTION_CASES]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """A server that holds something worth keeping, and that nobody else writes to."""
    with ServerProcess(tmp_path_factory.mktemp("refusing") / "data") as process, connect(process.address) as api:
        api.create(HOME, params(4, COSINE), dot=params(3, DOT), flat=params(2, EUCLIDEAN, flat=True))
        api.create(OTHER, params(4, COSINE, flat=True))
        for name in (HOME, OTHER):
            api.upsert(name, [point(f"p{i}", [1.0, i, 0.0, 0.0], payload_json=b'{"n":%d}' % i) for i in range(10)])
        api.upsert(HOME, [point("first", GOOD)], request_id="used")
        yield api


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_bad_request_is_refused_by_name_and_changes_nothing(refusing, case):
    request = case.request(refusing) if callable(case.request) else case.request
    before = refusing.everything()
    refusal = expect_refusal(lambda: refusing.call(case.method, request))
    assert (refusal.code, refusal.reason, refusal.field) == (case.code, case.reason, case.field[:FIELD_SHOWN])
    if case.reason:
        assert refusal.domain == "vecmem"
    if case.field:
        assert refusal.message.startswith(f"{case.field}: ")
    assert refusing.everything() == before


def test_no_two_cases_are_one(refusing):
    assert len({case.name for case in CASES}) == len(CASES)
    assert refusing.info().collection_count == 2


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.method == "Query" and case.field.startswith("query.")],
    ids=lambda case: case.name.replace(" ", "-"),
)
def test_a_batch_tells_of_a_bad_query_what_the_query_alone_would_be_told(refusing, case):
    alone = expect_refusal(lambda: refusing.call("Query", case.request))
    batch = points_pb2.QueryBatchRequest(queries=[query_message(HOME, GOOD), case.request.query])
    good, bad = refusing.call("QueryBatch", batch).outcomes
    assert len(good.result.hits) == 10
    assert (bad.error.code, bad.error.reason) == (3, alone.reason)
    assert bad.error.metadata["field"] == case.field.replace("query.", "queries[1].", 1)
    assert bad.error.message == alone.message.replace("query.", "queries[1].", 1)


def test_an_id_that_is_no_utf_8_is_refused_and_changes_nothing(refusing):
    """The stubs cannot send one, so the message is put together by hand: field 1 the collection, field 2 a point."""
    good = points_pb2.UpsertRequest(collection=HOME, points=[point("ab", GOOD)]).SerializeToString()
    assert good.count(b"\n\x02ab") == 1
    bad = good.replace(b"\n\x02ab", b"\n\x02\xff\xfe")
    send = refusing.channel.unary_unary(
        "/vecmem.v1.PointService/Upsert",
        request_serializer=bytes,
        response_deserializer=points_pb2.UpsertResponse.FromString,
    )
    before = refusing.everything()
    refusal = expect_refusal(lambda: send(bad, timeout=30))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert refusing.everything() == before
    assert send(good, timeout=30).inserted_count == 1


def test_what_is_no_protobuf_is_refused_and_changes_nothing(refusing):
    send = refusing.channel.unary_unary(
        "/vecmem.v1.PointService/Delete",
        request_serializer=bytes,
        response_deserializer=points_pb2.DeleteResponse.FromString,
    )
    before = refusing.everything()
    refusal = expect_refusal(lambda: send(b"\xff" * 100, timeout=30))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert refusing.everything() == before
