"""UpsertBatch and GetBatch: each part has the outcome that it would have had alone."""

from __future__ import annotations

import pytest

from tests.support.api import COSINE, expect_refusal, params, point
from vecmem.v1 import common_pb2, points_pb2

NEAR = (1.0, 0.0, 0.0, 0.0)


@pytest.fixture
def home(api, collection_name):
    api.create(collection_name, params(4, COSINE, flat=True))
    return collection_name


def upsert_request(collection, *points, request_id=""):
    write = common_pb2.WriteOptions(request_id=request_id)
    return points_pb2.UpsertRequest(collection=collection, points=points, write=write)


def upsert_batch(api, *requests):
    response = api.call("UpsertBatch", points_pb2.UpsertBatchRequest(requests=requests))
    assert len(response.outcomes) == len(requests)
    return response


def get_batch(api, *requests):
    return list(api.call("GetBatch", points_pb2.GetBatchRequest(requests=requests)).outcomes)


def test_upserts_of_a_batch_are_writes_of_their_own_in_their_order(api, home):
    """Each has its own version, the last one of a point wins, and the reply reflects them all."""
    response = upsert_batch(api, *(upsert_request(home, point("a", (1.0, n, 0.0, 0.0))) for n in range(5)))
    results = [outcome.result for outcome in response.outcomes]
    assert [(result.inserted_count, result.updated_count) for result in results] == [(1, 0)] + [(0, 1)] * 4
    versions = [result.version for result in results]
    assert versions == sorted(set(versions))
    assert all(result.header.position.sequence == result.version for result in results)
    assert response.header.position.sequence >= versions[-1]
    (stored,) = api.get(home, "a", with_vectors=common_pb2.VectorSelector(all=True))
    assert stored.version == versions[-1]


def test_a_bad_upsert_among_good_ones_fails_alone_with_the_error_it_gets_alone(api, home):
    bad = [
        upsert_request(home, point("b", NEAR), point("c", (1.0, 2.0))),
        upsert_request("nobody", point("b", NEAR)),
        upsert_request(home, point("", NEAR)),
        upsert_request(home),
    ]
    good = upsert_request(home, point("good", NEAR))
    refusals = [expect_refusal(lambda request=request: api.call("Upsert", request)) for request in bad]
    outcomes = upsert_batch(api, *bad, good).outcomes
    for outcome, refusal in zip(outcomes, refusals, strict=False):
        assert (outcome.error.reason, outcome.error.message) == (refusal.reason, refusal.message)
        assert dict(outcome.error.metadata) == refusal.metadata
    assert outcomes[-1].result.inserted_count == 1
    assert [stored.id for stored in api.scroll(home)] == ["good"]


@pytest.mark.one_shard(reason="each shard remembers its own request ids")
def test_request_ids_count_across_batches_and_single_upserts(api, home):
    """A repeat changes nothing, whether it comes in the same batch, in another one or alone; another request is refused."""
    first = upsert_request(home, point("a", NEAR, expected_version=0), request_id=f"{home}-1")
    outcomes = upsert_batch(api, first, first).outcomes
    version = outcomes[0].result.version
    again = [outcomes[1].result, upsert_batch(api, first).outcomes[0].result, api.call("Upsert", first)]
    assert [(result.version, result.inserted_count, len(result.conflicts)) for result in again] == [(version, 1, 0)] * 3
    other = upsert_request(home, point("b", NEAR), request_id=f"{home}-1")
    assert upsert_batch(api, other).outcomes[0].error.reason == "REQUEST_ID_REUSED"
    assert api.count(home) == 1


@pytest.mark.one_shard(reason="a position is demanded of its own shard alone")
def test_gets_of_a_batch_have_their_own_outcomes(api, home):
    api.upsert(home, [point(f"p{n}", NEAR, payload_json=b'{"n":%d}' % n) for n in range(3)])
    ahead = common_pb2.ReadOptions(min_position=common_pb2.Position(sequence=2**40))
    requests = [
        points_pb2.GetRequest(collection=home, ids=["p2", "nobody", "p0"]),
        points_pb2.GetRequest(collection="nobody", ids=["p2"]),
        points_pb2.GetRequest(collection=home, ids=["p1"], read=ahead),
        points_pb2.GetRequest(collection=home),
        points_pb2.GetRequest(collection=home, ids=["nobody"]),
    ]
    outcomes = get_batch(api, *requests)
    assert list(outcomes[0].result.points) == api.get(home, "p2", "p0")
    for index in (1, 2, 3):
        refusal = expect_refusal(lambda request=requests[index]: api.call("Get", request))
        error = outcomes[index].error
        assert (error.reason, error.message, dict(error.metadata)) == (
            refusal.reason,
            refusal.message,
            refusal.metadata,
        )
    assert outcomes[4].WhichOneof("kind") == "result"
    assert not outcomes[4].result.points


def test_gets_that_do_not_fit_into_the_reply_say_so(api, home):
    """60 MiB come through; what would make it more than 64 MiB is an error, and what came before stays."""
    payload = b'{"x":"' + b"x" * (1024 * 1024 - 100) + b'"}'
    api.upsert(home, [point(f"p{n}", NEAR, payload_json=payload) for n in range(20)])
    request = points_pb2.GetRequest(collection=home, ids=[f"p{n}" for n in range(20)])
    outcomes = get_batch(api, *[request] * 4)
    assert [len(outcome.result.points) for outcome in outcomes[:3]] == [20, 20, 20]
    assert (outcomes[3].error.reason, outcomes[3].error.metadata["field"]) == ("LIMIT_EXCEEDED", "ids")


@pytest.mark.parametrize(("count", "reason"), [(0, "INVALID_ARGUMENT"), (1_025, "LIMIT_EXCEEDED")])
def test_a_batch_has_1_to_1024_requests(api, home, count, reason):
    upserts = points_pb2.UpsertBatchRequest(requests=[upsert_request(home, point("a", NEAR))] * count)
    gets = points_pb2.GetBatchRequest(requests=[points_pb2.GetRequest(collection=home, ids=["a"])] * count)
    for method, request in (("UpsertBatch", upserts), ("GetBatch", gets)):
        refusal = expect_refusal(lambda method=method, request=request: api.call(method, request))
        assert (refusal.reason, refusal.field) == (reason, "requests")
    assert api.count(home) == 0
