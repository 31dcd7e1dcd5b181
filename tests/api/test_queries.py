"""Query and QueryBatch over the raw API: scores, order, ties, thresholds, filters, and that nothing lags behind writes."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from tests.support.api import COSINE, DOT, EUCLIDEAN, expect_refusal, packed, params, point, query_message, values
from vecmem.v1 import common_pb2, filter_pb2, points_pb2

METRICS = {"cosine": COSINE, "dot": DOT, "euclidean": EUCLIDEAN}
VECTORS = np.random.default_rng(11).normal(size=(600, 12)).astype(np.float32)
IDS = [f"p{i:03d}" for i in range(len(VECTORS))]
EXACT = points_pb2.SearchParams(exact=True)


def expected_scores(metric, query, vectors=VECTORS):
    """Scores in float64, straight from the definition."""
    query, vectors = np.asarray(query, np.float64), vectors.astype(np.float64)
    if metric == DOT:
        return vectors @ query
    if metric == EUCLIDEAN:
        return np.linalg.norm(vectors - query, axis=1)
    return vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)


def expected_order(metric, scores):
    return np.argsort(scores if metric == EUCLIDEAN else -scores, kind="stable")


def ids_of(hits):
    return [hit.point.id for hit in hits]


def equals(path, integer):
    match = filter_pb2.MatchValue(integer=integer)
    return filter_pb2.Filter(field=filter_pb2.FieldCondition(path=path, match=match))


@pytest.fixture(scope="module", params=["flat", "hnsw"])
def searched(request, api):
    """A collection with the same vectors under each metric."""
    name = f"searched-{request.param}-{random.randrange(2**60)}"
    api.create(name, **{metric: params(12, code, flat=request.param == "flat") for metric, code in METRICS.items()})
    api.upsert(
        name,
        [
            point(
                point_id, vectors=dict.fromkeys(METRICS, packed(vector.tolist())), payload_json=b'{"n":%d}' % (i % 10)
            )
            for i, (point_id, vector) in enumerate(zip(IDS, VECTORS, strict=True))
        ],
    )
    return name


@pytest.mark.parametrize("metric", METRICS)
def test_exact_hits_are_those_of_the_definition_in_its_order(api, searched, metric):
    for query in np.random.default_rng(5).normal(size=(5, 12)).astype(np.float32):
        scores = expected_scores(METRICS[metric], query)
        order = expected_order(METRICS[metric], scores)[:50]
        hits = api.query(searched, query.tolist(), using=metric, limit=50, params=EXACT)
        assert ids_of(hits) == [IDS[i] for i in order]
        np.testing.assert_allclose([hit.score for hit in hits], scores[order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
def test_approximate_hits_have_true_scores_in_order_and_nearly_all_are_the_best(api, searched, metric):
    found = 0
    for query in np.random.default_rng(6).normal(size=(20, 12)).astype(np.float32):
        scores = expected_scores(METRICS[metric], query)
        hits = api.query(searched, query.tolist(), using=metric, params=points_pb2.SearchParams(ef=200))
        got = [hit.score for hit in hits]
        np.testing.assert_allclose(got, [scores[IDS.index(one)] for one in ids_of(hits)], rtol=1e-6, atol=1e-7)
        assert got == sorted(got, reverse=metric != "euclidean")
        best = {IDS[i] for i in expected_order(METRICS[metric], scores)[:10]}
        found += len(best & set(ids_of(hits)))
    assert found >= 0.95 * 200


@pytest.mark.parametrize("metric", METRICS)
def test_offset_and_limit_cut_the_same_list(api, searched, metric):
    query = VECTORS[3].tolist()
    whole = api.query(searched, query, using=metric, limit=600, params=EXACT)
    assert len(whole) == 600
    assert api.query(searched, query, using=metric, limit=7, offset=20, params=EXACT) == whole[20:27]
    assert api.query(searched, query, using=metric, limit=100, offset=590, params=EXACT) == whole[590:]
    assert api.query(searched, query, using=metric, limit=100, offset=600, params=EXACT) == []


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0, 5])
def test_a_threshold_keeps_what_is_as_good_or_better(api, searched, metric, offset):
    query = VECTORS[9].tolist()
    whole = api.query(searched, query, using=metric, limit=600, params=EXACT)
    threshold = whole[39].score
    kept = api.query(searched, query, using=metric, limit=600, offset=offset, score_threshold=threshold, params=EXACT)
    better = [hit for hit in whole if (hit.score <= threshold if metric == "euclidean" else hit.score >= threshold)]
    assert len(better) >= 40
    assert kept == better[offset:]
    out_of_reach, anything = (-1.0, np.inf) if metric == "euclidean" else (np.inf, -np.inf)
    assert api.query(searched, query, using=metric, limit=600, score_threshold=out_of_reach, params=EXACT) == []
    assert api.query(searched, query, using=metric, limit=600, score_threshold=anything, params=EXACT) == whole


@pytest.mark.parametrize("metric", METRICS)
def test_near_a_stored_point_is_near_its_vector_without_the_point(api, searched, metric):
    whole = api.query(searched, VECTORS[17].tolist(), using=metric, limit=21, params=EXACT)
    near = api.query(searched, "p017", using=metric, limit=20, params=EXACT)
    assert near == [hit for hit in whole if hit.point.id != "p017"][:20]
    assert api.query(searched, "p017", using=metric, limit=5, offset=3, params=EXACT) == near[3:8]
    assert "p017" not in ids_of(api.query(searched, "p017", using=metric, limit=600))


def test_a_filter_leaves_the_best_of_those_that_match(api, searched):
    query = np.random.default_rng(8).normal(size=12).astype(np.float32)
    scores = expected_scores(COSINE, query)
    for n in range(10):
        order = [i for i in expected_order(COSINE, scores) if i % 10 == n]
        hits = api.query(searched, query.tolist(), using="cosine", limit=20, filter=equals("n", n))
        assert ids_of(hits) == [IDS[i] for i in order[:20]]
        assert (
            api.query(searched, query.tolist(), using="cosine", limit=600, filter=equals("n", n))[-1].point.id
            == IDS[order[-1]]
        )
    assert api.query(searched, query.tolist(), using="cosine", filter=equals("n", 99)) == []
    few = filter_pb2.Filter(has_id=filter_pb2.PointIds(ids=["p001", "p002", "nobody"]))
    assert sorted(ids_of(api.query(searched, query.tolist(), using="dot", filter=few))) == ["p001", "p002"]


def test_replies_use_the_encoding_that_the_request_used(api, searched):
    elements = VECTORS[0].tolist()
    selector = common_pb2.VectorSelector(include=common_pb2.VectorNames(names=["dot"]))

    def form(vector, **rest):
        nearest = points_pb2.VectorInput(vector=vector) if vector else points_pb2.VectorInput(id="p001")
        query = points_pb2.Query(collection=searched, nearest=nearest, using="dot", limit=1, with_vectors=selector)
        query.with_vectors.MergeFrom(common_pb2.VectorSelector(**rest))
        (hit,) = api.call("Query", points_pb2.QueryRequest(query=query)).hits
        dense = hit.point.vectors["dot"].dense
        row = VECTORS[IDS.index(hit.point.id)]
        if dense.packed:
            assert dense.data_type == common_pb2.DATA_TYPE_FLOAT32
            assert dense.packed == row.astype("<f4").tobytes()
        else:
            assert list(dense.values) == row.tolist()
        return "packed" if dense.packed else "values"

    assert form(packed(elements)) == "packed"
    assert form(values(elements)) == "values"
    assert form(None) == "packed"
    assert form(packed(elements), encoding=common_pb2.VECTOR_ENCODING_VALUES) == "values"
    assert form(values(elements), encoding=common_pb2.VECTOR_ENCODING_PACKED) == "packed"


@pytest.mark.parametrize("index", ["flat", "hnsw"])
@pytest.mark.parametrize("metric", METRICS)
def test_ties_are_broken_by_id_across_every_limit(api, collection_name, index, metric):
    """Three vectors, each many times, written in random order: whatever the limit cuts, the ids before it are the smallest."""
    api.create(collection_name, params(3, METRICS[metric], flat=index == "flat"))
    kinds = [[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-1.0, 0.5, 0.25]]
    points = [point(f"{kind}-{i:03d}", kinds[kind]) for kind in range(3) for i in range(60)]
    random.Random(3).shuffle(points)
    for start in range(0, len(points), 50):
        api.upsert(collection_name, points[start : start + 50])
    expected = sorted(one.id for one in points)
    for limit in (1, 10, 59, 60, 61, 100, 180):
        assert ids_of(api.query(collection_name, kinds[0], limit=limit, params=EXACT)) == expected[:limit]
    assert ids_of(api.query(collection_name, kinds[0], limit=30, offset=50, params=EXACT)) == expected[50:80]
    hits = api.query(collection_name, kinds[0], limit=180)
    assert ids_of(hits) == expected
    assert len({hit.score for hit in hits}) == 3


def test_a_batch_answers_each_query_by_itself(api, searched):
    good = query_message(searched, VECTORS[1].tolist(), using="dot", limit=3)
    queries = [
        good,
        query_message("nobody", [1.0]),
        query_message(searched, [1.0, 2.0], using="dot"),
        query_message(searched, "nobody", using="dot"),
        query_message(searched, VECTORS[2].tolist(), using="cosine", limit=5, filter=equals("n", 4)),
        good,
    ]
    reply = api.call("QueryBatch", points_pb2.QueryBatchRequest(queries=queries))
    assert [outcome.error.reason for outcome in reply.outcomes] == [
        "",
        "COLLECTION_NOT_FOUND",
        "DIMENSION_MISMATCH",
        "POINT_NOT_FOUND",
        "",
        "",
    ]
    assert [outcome.WhichOneof("kind") for outcome in reply.outcomes] == [
        "result",
        "error",
        "error",
        "error",
        "result",
        "result",
    ]
    assert [outcome.error.code for outcome in reply.outcomes] == [0, 5, 3, 5, 0, 0]
    for place in (0, 4, 5):
        alone = api.call("Query", points_pb2.QueryRequest(query=queries[place]))
        assert list(reply.outcomes[place].result.hits) == list(alone.hits)


def test_a_batch_of_the_largest_size_is_answered_and_one_of_errors_only_too(api, searched):
    queries = [query_message(searched, VECTORS[i % 600].tolist(), using="euclidean", limit=1) for i in range(1_024)]
    reply = api.call("QueryBatch", points_pb2.QueryBatchRequest(queries=queries))
    assert [outcome.result.hits[0].point.id for outcome in reply.outcomes] == [IDS[i % 600] for i in range(1_024)]
    nobody = points_pb2.QueryBatchRequest(queries=[query_message("nobody", [1.0])] * 3)
    assert [one.error.reason for one in api.call("QueryBatch", nobody).outcomes] == ["COLLECTION_NOT_FOUND"] * 3


def test_a_batch_without_hits_still_says_result(api, searched):
    query = query_message(searched, VECTORS[1].tolist(), using="dot", filter=equals("n", 99))
    (outcome,) = api.call("QueryBatch", points_pb2.QueryBatchRequest(queries=[query])).outcomes
    assert outcome.WhichOneof("kind") == "result"
    assert not outcome.result.hits


def test_a_point_is_found_from_the_moment_its_upsert_is_answered(api, collection_name):
    """While the graph is being built behind the writes: each new point, each moved one and no deleted one."""
    rng = np.random.default_rng(21)
    api.create(collection_name, params(32, COSINE, ef_construction=100))
    for batch in range(5):
        bulk = rng.normal(size=(800, 32)).tolist()
        api.upsert(collection_name, [point(f"bulk-{batch}-{i}", vector) for i, vector in enumerate(bulk)])
        for number in range(60):
            point_id = f"new-{batch}-{number % 40}"
            vector = rng.normal(size=32).tolist()
            version = api.upsert(collection_name, [point(point_id, vector)]).version
            (hit,) = api.query(collection_name, vector, limit=1)
            assert (hit.point.id, hit.point.version) == (point_id, version)
            assert hit.score == pytest.approx(1.0, abs=1e-6)
            if number % 5 == 0:
                api.delete(collection_name, point_id)
                assert point_id not in ids_of(api.query(collection_name, vector, limit=50))
    # Dead rows are counted until they are reclaimed, a moment later.
    while True:
        stats = api.stats(collection_name).vectors[""]
        assert stats.vector_count == api.count(collection_name)
        if stats.graph_row_count + stats.tail_row_count == stats.vector_count:
            break
        time.sleep(0.01)


def test_an_extreme_but_valid_vector_gives_finite_scores(api, collection_name):
    api.create(collection_name, dot=params(2, DOT), cosine=params(2, COSINE), euclidean=params(2, EUCLIDEAN))
    for point_id, element in (("large", 7e17), ("small", 1e-25), ("one", 1.0)):
        api.upsert(collection_name, [point(point_id, vectors=dict.fromkeys(METRICS, packed([element, 0.0])))])
    for metric in METRICS:
        hits = api.query(collection_name, [7e17, 0.0], using=metric)
        assert len(hits) == 3
        assert all(np.isfinite(hit.score) for hit in hits)
    assert {hit.score for hit in api.query(collection_name, [7e17, 0.0], using="cosine")} == {1.0}


def test_nearest_by_id_follows_the_point_when_it_moves(api, collection_name):
    api.create(collection_name, params(2, EUCLIDEAN))
    api.upsert(collection_name, [point("left", [-1.0, 0.0]), point("right", [1.0, 0.0]), point("mover", [-0.9, 0.0])])
    assert ids_of(api.query(collection_name, "mover", limit=1)) == ["left"]
    api.upsert(collection_name, [point("mover", [0.9, 0.0])])
    assert ids_of(api.query(collection_name, "mover", limit=1)) == ["right"]
    api.delete(collection_name, "mover")
    assert expect_refusal(lambda: api.query(collection_name, "mover")).reason == "POINT_NOT_FOUND"


def test_a_reply_that_no_message_could_hold_is_refused_by_name(api, collection_name):
    """For a batch the hits of all queries count together; each query alone would fit."""
    api.create(collection_name, params(2, DOT, flat=True))
    payload = b'{"t":"%s"}' % (b"x" * 1_000_000)
    for start in (0, 40):
        points = [point(f"p{start + i}", [1.0, 0.0], payload_json=payload) for i in range(40)]
        api.upsert(collection_name, points)
    fitting = query_message(collection_name, [1.0, 0.0], limit=40)
    assert len(api.call("Query", points_pb2.QueryRequest(query=fitting)).hits) == 40
    nothing = common_pb2.PayloadSelector(all=False)
    assert len(api.query(collection_name, [1.0, 0.0], limit=80, with_payload=nothing)) == 80
    assert len(api.scroll(collection_name, 100)) == 80
    too_much = [
        lambda: api.query(collection_name, [1.0, 0.0], limit=80),
        lambda: api.call("QueryBatch", points_pb2.QueryBatchRequest(queries=[fitting, fitting])),
        lambda: api.get(collection_name, *[f"p{i}" for i in range(80)]),
    ]
    for call in too_much:
        refusal = expect_refusal(call)
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED")


@pytest.mark.one_shard(reason="a shard of few points is not calibrated")
def test_a_target_recall_is_kept_to_and_told(api):
    """Effort is calibrated in the background; from then on queries, their explanation and the statistics speak of it."""
    name = f"targets-{random.randrange(2**60)}"
    rng = np.random.default_rng(21)
    vectors = rng.normal(size=(6_000, 16)).astype(np.float32)
    api.create(name, params(16, COSINE))
    for start in range(0, len(vectors), 2_000):
        api.upsert(
            name,
            [point(f"p{i:05d}", packed(vectors[i].tolist())) for i in range(start, min(start + 2_000, len(vectors)))],
        )
    while not (stats := api.stats(name).vectors[""]).calibrated_ef:
        time.sleep(0.05)
    assert stats.graph == 1

    def explained(**options):
        query = query_message(
            name, rng.normal(size=16).tolist(), explain=True, params=points_pb2.SearchParams(**options)
        )
        return api.points.Query(points_pb2.QueryRequest(query=query)).explanation

    default, high, exact = explained(), explained(target_recall=0.999), explained(target_recall=1)
    assert abs(default.target_recall - 0.97) < 1e-6
    assert exact.plan != points_pb2.QUERY_PLAN_GRAPH
    if default.plan == high.plan == points_pb2.QUERY_PLAN_GRAPH:
        assert default.ef < high.ef
    assert explained(ef=77).target_recall == 0
    for _ in range(30):
        api.query(name, rng.normal(size=16).tolist())
        time.sleep(0.05)
    counted = api.stats(name).vectors[""]
    if default.plan == points_pb2.QUERY_PLAN_GRAPH:
        assert counted.measured_query_count > 0
        assert counted.measured_recall > 0.8
