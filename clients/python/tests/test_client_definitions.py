"""Storage, codes of graphs, recall targets, payload indexes and explanations: what is asked for arrives, what is told is read."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from vecmem.v1 import collections_pb2, points_pb2
from vecmem_client import (
    Client,
    Explanation,
    Flat,
    GraphCode,
    Hits,
    Hnsw,
    InvalidArgumentError,
    PayloadIndexStats,
    PayloadType,
    Point,
    Query,
    QueryPlan,
    Storage,
    UnknownVectorError,
    VectorConfig,
    _replies,
    _requests,
    field,
)

INDEXES = {"section": "keyword", "size": "integer", "score": "float", "free": "bool", "stats.at": "time"}


async def test_a_definition_comes_back_as_it_was_given(client, collection_name):
    graph = Hnsw(m=8, ef_construction=64, ef=32, graph="float16", target_recall=0.9)
    made = await client.create_collection(
        collection_name,
        VectorConfig(3, "dot", graph, "float16"),
        vectors={"plain": VectorConfig(2), "flat": VectorConfig(2, index=Flat(), storage=Storage.FLOAT16)},
        payload_indexes=INDEXES,
    )
    assert made.vector == VectorConfig(3, "dot", graph, Storage.FLOAT16)
    assert made.vectors["plain"] == VectorConfig(2, index=Hnsw(16, 200, target_recall=0.97), storage=Storage.FLOAT32)
    assert made.vectors["flat"] == VectorConfig(2, index=Flat(), storage=Storage.FLOAT16)
    assert made.payload_indexes == {path: PayloadType(kind) for path, kind in INDEXES.items()}
    assert await client.get_collection(collection_name) == made


async def test_an_update_changes_what_it_names(client, collection_name):
    made = await client.create_collection(
        collection_name, VectorConfig(2, "dot"), vectors={"other": VectorConfig(2)}, payload_indexes={"a": "bool"}
    )
    await client.upsert(collection_name, [Point("p", [0.1, 1.0])])
    changed = await client.update_collection(collection_name, hnsw=Hnsw(graph="float32", target_recall=0.99))
    assert changed.vector.index == Hnsw(16, 200, graph=GraphCode.FLOAT32, target_recall=0.99)
    assert (changed.vectors, changed.payload_indexes) == (made.vectors, made.payload_indexes)

    changed = await client.update_collection(collection_name, storage="float16", vectors_storage={"other": "float16"})
    assert (changed.vector.storage, changed.vectors["other"].storage) == (Storage.FLOAT16, Storage.FLOAT16)
    assert (await client.collection_stats(collection_name)).vectors[""].storage is Storage.FLOAT16
    (point,) = await client.get(collection_name, ["p"], with_vectors=True)
    assert point.vector.tolist() == [0.0999755859375, 1.0], "rounded to float16"

    changed = await client.update_collection(collection_name, payload_indexes={"b": PayloadType.TIME})
    assert changed.payload_indexes == {"b": PayloadType.TIME}
    changed = await client.update_collection(collection_name, payload_indexes={})
    assert changed.payload_indexes == {}
    with pytest.raises(UnknownVectorError):
        await client.update_collection(collection_name, vectors_storage={"nothing": "float32"})


async def test_a_query_names_its_recall(client, collection):
    await client.upsert(collection, [Point(f"p{n}", [1.0, n, 0, 0]) for n in range(20)])
    expected = [f"p{n}" for n in range(5)]
    for target_recall in (0.5, 0.9, 1.0):
        hits = await client.query(collection, [1.0, 0, 0, 0], limit=5, target_recall=target_recall)
        assert [hit.id for hit in hits] == expected
    query = Query(collection=collection, vector=[1.0, 0, 0, 0], limit=5, target_recall=0.9)
    assert [[hit.id for hit in hits] for hits in await client.query_batch([query, query])] == [expected] * 2
    for mistaken in (0.4, 1.5):
        with pytest.raises(InvalidArgumentError, match=str(mistaken)):
            await client.query(collection, [1.0, 0, 0, 0], target_recall=mistaken)


async def test_a_query_explains_itself_and_stats_tell_of_its_index(client, collection_name):
    await client.create_collection(collection_name, VectorConfig(2), payload_indexes={"n": "integer"})
    await client.upsert(collection_name, [Point(f"p{n}", [1.0, n], {"n": n, "text": "x"}) for n in range(20)])
    few = (field("n") < 5) & (field("text") == "x")
    hits = await client.query(collection_name, [1.0, 0], limit=3, filter=few, explain=True)
    told = hits.explanation
    assert [hit.id for hit in hits] == ["p0", "p1", "p2"]
    assert (told.plan, told.point_count, told.matching_count) == (QueryPlan.SCAN, 20, 5)
    assert set(told.filter_paths) == {"n", "text"}
    assert (await client.query(collection_name, [1.0, 0], filter=few)).explanation is None

    queries = [Query(collection=collection_name, vector=[1.0, 0], explain=explain) for explain in (True, False)]
    first, second = await client.query_batch(queries)
    assert (first.explanation.matching_count, second.explanation) == (20, None)

    indexes = (await client.collection_stats(collection_name)).payload_indexes
    assert [(index.path, index.declared, index.point_count) for index in indexes] == [
        ("n", True, 20),
        ("text", False, 20),
    ]
    assert all(index.bytes > 0 for index in indexes)


async def test_explanations_come_to_those_who_asked_in_a_crowd(client, collection):
    await client.upsert(collection, [Point("p", [1.0, 0, 0, 0])])
    asked = [n % 3 == 0 for n in range(40)]
    results = await asyncio.gather(*(client.query(collection, [1.0, 0, 0, 0], explain=explain) for explain in asked))
    assert [hits.explanation is not None for hits in results] == asked


@pytest.mark.parametrize(
    "mistake",
    [
        {"vector": VectorConfig(2, index=Hnsw(graph="int4"))},
        {"vector": VectorConfig(2, storage="float64")},
        {"vector": VectorConfig(2), "payload_indexes": {"a": "string"}},
    ],
)
async def test_unknown_names_are_refused_before_anything_is_sent(client, mistake):
    with pytest.raises(ValueError, match="is not a valid"):
        await client.create_collection("never", **mistake)


def test_a_query_says_only_what_was_asked_for():
    def built(**parameters):
        return _requests.query_batch([Query(collection="c", vector=[1.0], **parameters)], None).queries[0]

    assert not built().HasField("params")
    assert not built().explain
    assert built(target_recall=0.75).params == points_pb2.SearchParams(target_recall=0.75)
    assert built(explain=True).explain


def test_searches_that_are_exact_by_their_recall_share_rpcs_with_exact_ones(monkeypatch):
    """They compare with every vector, so the others shall not wait for them."""
    keys = []

    class RecorderError(Exception):
        pass

    def record(method, min_position=None, shard=None, *, exact, spread):
        keys.append(exact)
        raise RecorderError

    with Client("127.0.0.1:1") as client:
        monkeypatch.setattr("vecmem_client._sync.base.lane_key", record)
        for parameters in ({}, {"target_recall": 0.99}, {"target_recall": 1.0}, {"exact": True}):
            with pytest.raises(RecorderError):
                client.query("c", [1.0], **parameters)
    assert keys == [False, False, True, True]


EXPLANATION = points_pb2.Explanation(
    plan=points_pb2.QUERY_PLAN_CODE_SCAN,
    point_count=100,
    matching_count=20,
    ef=0,
    target_recall=0.97,
    compared_count=20,
    tail_count=3,
    graph_cost_us=50.5,
    scan_cost_us=10.25,
    filter_paths=["a.b", "c"],
)


def test_an_explanation_comes_with_the_hits():
    reply = points_pb2.QueryResponse(hits=[points_pb2.Hit(score=0.5)], explanation=EXPLANATION)
    hits = _replies.hits(reply, with_vectors=False)
    assert hits.explanation == Explanation(QueryPlan.CODE_SCAN, 100, 20, 0, 0.97, 20, 3, 50.5, 10.25, ["a.b", "c"])
    assert [hit.score for hit in hits] == [0.5]
    copy = pickle.loads(pickle.dumps(hits))
    assert (type(copy), copy.explanation, copy[0].score) == (Hits, hits.explanation, 0.5)

    outcome = points_pb2.QueryOutcome(result=points_pb2.QueryResult(hits=reply.hits, explanation=EXPLANATION))
    without = points_pb2.QueryOutcome(result=points_pb2.QueryResult(hits=reply.hits))
    first, second = _replies.outcomes([outcome, without], return_exceptions=False)
    assert (first.explanation, second.explanation) == (hits.explanation, None)


def test_hits_are_a_sequence_decoded_at_the_first_look(monkeypatch):
    reply = points_pb2.QueryResponse(hits=[points_pb2.Hit(score=score) for score in (0.75, 0.5, 0.25)])
    calls = []
    decode = _replies._decode_hits
    monkeypatch.setattr(_replies, "_decode_hits", lambda *arguments: calls.append(arguments) or decode(*arguments))
    hits = _replies.hits(reply, with_vectors=False)
    assert not calls
    assert len(hits) == 3
    assert [hit.score for hit in hits] == [hit.score for hit in hits[:]] == [0.75, 0.5, 0.25]
    assert (hits[-1].score, hits[0] is hits[0], hits[1] in hits) == (0.25, True, True)
    assert hits == list(hits) == Hits(hits)
    assert hits != []
    assert hits != "hits"
    assert not _replies.hits(points_pb2.QueryResponse(), with_vectors=False)
    assert "score=0.75" in repr(hits)
    assert len(calls) == 2


def test_a_plan_of_a_later_server_is_none():
    reply = points_pb2.QueryResponse(explanation=points_pb2.Explanation(plan=99))
    assert _replies.hits(reply, with_vectors=False).explanation.plan is None


def test_stats_tell_what_was_measured():
    stats = collections_pb2.CollectionStats(
        vectors={
            "": collections_pb2.VectorStats(
                storage=collections_pb2.STORAGE_FLOAT16,
                graph=collections_pb2.GRAPH_CODE_INT8,
                measured_recall=0.985,
                measured_query_count=7,
                calibrated_ef=48,
            ),
            "fresh": collections_pb2.VectorStats(storage=collections_pb2.STORAGE_FLOAT32),
        },
        payload_indexes=[collections_pb2.PayloadIndexStats(path="a", declared=True, point_count=3, bytes=40)],
    )
    read = _replies.collection_stats(stats)
    used, fresh = read.vectors[""], read.vectors["fresh"]
    assert (used.storage, used.graph, used.calibrated_ef) == (Storage.FLOAT16, GraphCode.INT8, 48)
    assert (used.measured_recall, used.measured_query_count) == (0.985, 7)
    assert (fresh.graph, fresh.measured_recall, fresh.measured_query_count) == (None, None, 0)
    assert read.payload_indexes == [PayloadIndexStats("a", declared=True, point_count=3, bytes=40)]
