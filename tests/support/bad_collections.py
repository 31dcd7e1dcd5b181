"""More bad requests: definitions of collections, and names of collections that are not there."""

from __future__ import annotations

import math
from typing import Any

from tests.support.api import COSINE, DOT, params, payload_indexes, point, query_message
from tests.support.bad_requests import GOOD, HOME, OTHER, Case
from vecmem.v1 import collections_pb2, filter_pb2, points_pb2


def create(name: str, reason: str, field: str, *, called: str = "new", config: Any = None, **rest: Any) -> Case:
    config = collections_pb2.CollectionConfig(vector=params(4, COSINE)) if config is None else config
    request = collections_pb2.CreateCollectionRequest(name=called, config=config)
    return Case(f"create: {name}", "CreateCollection", request, reason, field, **rest)


def declared(bad: collections_pb2.VectorParams) -> collections_pb2.CollectionConfig:
    return collections_pb2.CollectionConfig(vector=bad)


def named(name: str) -> collections_pb2.CollectionConfig:
    return collections_pb2.CollectionConfig(vectors={name: params(2, DOT)})


def update_collection(name: str, reason: str, field: str, *, of: str = HOME, **rest: Any) -> Case:
    code = rest.pop("code", "INVALID_ARGUMENT")
    request = collections_pb2.UpdateCollectionRequest(name=of, **rest)
    return Case(f"update: {name}", "UpdateCollection", request, reason, field, code)


def hnsw(name: str, field: str, **parameters: Any) -> list[Case]:
    """Bad graph parameters, in a definition and in changes of the default vector and of a named one."""
    bad = collections_pb2.HnswParams(**parameters)
    reason = "INVALID_ARGUMENT"
    return [
        create(name, reason, f"config.vector.hnsw.{field}", config=declared(params(4, DOT, **parameters))),
        update_collection(name, reason, f"hnsw.{field}", hnsw=bad),
        update_collection(f"{name} of dot", reason, f"vectors_hnsw['dot'].{field}", vectors_hnsw={"dot": bad}),
    ]


def indexes(name: str, reason: str, field: str, *pairs: tuple[str, int]) -> list[Case]:
    """Bad payload indexes, in a definition and in a change."""
    bad = collections_pb2.PayloadIndexes(
        indexes=[collections_pb2.PayloadIndex(path=path, type=kind) for path, kind in pairs]
    )
    config = collections_pb2.CollectionConfig(vector=params(4, DOT), payload_indexes=bad)
    return [
        create(name, reason, f"config.payload_indexes.{field}", config=config),
        update_collection(name, reason, f"payload_indexes.{field}", payload_indexes=bad),
    ]


def unknown_collection() -> list[Case]:
    """Every call that names a collection, naming one that is not there."""
    ids = filter_pb2.PointIds(ids=["a"])
    requests: dict[str, Any] = {
        "Upsert": points_pb2.UpsertRequest(collection="nobody", points=[point("a", GOOD)]),
        "Get": points_pb2.GetRequest(collection="nobody", ids=["a"]),
        "Delete": points_pb2.DeleteRequest(collection="nobody", ids=ids),
        "UpdatePayload": points_pb2.UpdatePayloadRequest(collection="nobody", ids=ids, merge_json=b"{}"),
        "Query": points_pb2.QueryRequest(query=query_message("nobody", GOOD)),
        "Scroll": points_pb2.ScrollRequest(collection="nobody"),
        "Count": points_pb2.CountRequest(collection="nobody"),
        "GetCollection": collections_pb2.GetCollectionRequest(name="nobody"),
        "GetCollectionStats": collections_pb2.GetCollectionStatsRequest(name="nobody"),
        "UpdateCollection": collections_pb2.UpdateCollectionRequest(name="nobody", description="x"),
        "DeleteCollection": collections_pb2.DeleteCollectionRequest(name="nobody"),
    }
    return [
        Case(f"unknown collection in {method}", method, request, "COLLECTION_NOT_FOUND", code="NOT_FOUND")
        for method, request in requests.items()
    ]


KEYWORD, INTEGER = collections_pb2.PAYLOAD_TYPE_KEYWORD, collections_pb2.PAYLOAD_TYPE_INTEGER
COLLECTION_CASES = [
    create("exists", "COLLECTION_EXISTS", "", called=HOME, code="ALREADY_EXISTS"),
    create("no name", "INVALID_ID", "name", called=""),
    create("leading dot", "INVALID_ID", "name", called=".new"),
    create("slash", "INVALID_ID", "name", called="a/b"),
    create("line break at the end", "INVALID_ID", "name", called="new\n"),
    create("name too long", "INVALID_ID", "name", called="x" * 129),
    create("no config", "INVALID_ARGUMENT", "config", config=collections_pb2.CollectionConfig()),
    create("dimension 0", "INVALID_ARGUMENT", "config.vector.dimension", config=declared(params(0, COSINE))),
    create(
        "dimension too large", "INVALID_ARGUMENT", "config.vector.dimension", config=declared(params(16_385, COSINE))
    ),
    create("no metric", "INVALID_ARGUMENT", "config.vector.metric", config=declared(params(4, 0))),
    create("unknown metric", "INVALID_ARGUMENT", "config.vector.metric", config=declared(params(4, 99))),
    create("m too small", "INVALID_ARGUMENT", "config.vector.hnsw.m", config=declared(params(4, DOT, m=3))),
    create("m too large", "INVALID_ARGUMENT", "config.vector.hnsw.m", config=declared(params(4, DOT, m=129))),
    create(
        "ef_construction too small",
        "INVALID_ARGUMENT",
        "config.vector.hnsw.ef_construction",
        config=declared(params(4, DOT, ef_construction=7)),
    ),
    create(
        "ef_construction too large",
        "INVALID_ARGUMENT",
        "config.vector.hnsw.ef_construction",
        config=declared(params(4, DOT, ef_construction=4_097)),
    ),
    create("ef too large", "INVALID_ARGUMENT", "config.vector.hnsw.ef", config=declared(params(4, DOT, ef=10_001))),
    *hnsw("target_recall too small", "target_recall", target_recall=0.49),
    *hnsw("target_recall too large", "target_recall", target_recall=1.01),
    *hnsw("negative target_recall", "target_recall", target_recall=-0.97),
    *hnsw("target_recall NaN", "target_recall", target_recall=math.nan),
    *hnsw("target_recall infinite", "target_recall", target_recall=math.inf),
    *hnsw("unknown graph code", "graph", graph=5),
    create("unknown storage", "INVALID_ARGUMENT", "config.vector.storage", config=declared(params(4, DOT, storage=3))),
    create(
        "unknown storage of a flat vector",
        "INVALID_ARGUMENT",
        "config.vectors['v'].storage",
        config=collections_pb2.CollectionConfig(vectors={"v": params(4, DOT, flat=True, storage=-1)}),
    ),
    *indexes("no type", "INVALID_ARGUMENT", "indexes[1].type", ("a", KEYWORD), ("b", 0)),
    *indexes("unknown type", "INVALID_ARGUMENT", "indexes[0].type", ("a", 6)),
    *indexes("negative type", "INVALID_ARGUMENT", "indexes[0].type", ("a", -1)),
    *indexes("empty path", "INVALID_FILTER", "indexes[0].path", ("", KEYWORD)),
    *indexes("empty segment", "INVALID_FILTER", "indexes[1].path", ("a", KEYWORD), ("a..b", KEYWORD)),
    *indexes("path too long", "INVALID_FILTER", "indexes[0].path", ("x" * 513, KEYWORD)),
    *indexes("path twice", "INVALID_ARGUMENT", "indexes[2].path", ("a", KEYWORD), ("b", KEYWORD), ("a", INTEGER)),
    *indexes("path twice in other words", "INVALID_ARGUMENT", "indexes[1].path", ("a.b", KEYWORD), ('"a".b', KEYWORD)),
    *indexes("too many indexes", "LIMIT_EXCEEDED", "indexes", *((f"p{i}", KEYWORD) for i in range(65))),
    create("bad vector name", "INVALID_ID", "config.vectors", config=named("a b")),
    create("empty vector name", "INVALID_ID", "config.vectors", config=named("")),
    create("vector name too long", "INVALID_ID", "config.vectors", config=named("x" * 65)),
    create(
        "bad named vector",
        "INVALID_ARGUMENT",
        "config.vectors['v'].dimension",
        config=collections_pb2.CollectionConfig(vectors={"v": params(0, DOT)}),
    ),
    create(
        "too many vectors",
        "LIMIT_EXCEEDED",
        "config.vectors",
        config=collections_pb2.CollectionConfig(vectors={f"v{i}": params(2, DOT) for i in range(65)}),
    ),
    create(
        "description too long",
        "LIMIT_EXCEEDED",
        "config.description",
        config=collections_pb2.CollectionConfig(vector=params(2, DOT), description="x" * 4_097),
    ),
    update_collection("description too long", "LIMIT_EXCEEDED", "description", description="ü" * 2_049),
    update_collection(
        "unknown vector",
        "UNKNOWN_VECTOR",
        "vectors_hnsw['nope']",
        vectors_hnsw={"nope": collections_pb2.HnswParams(m=8)},
    ),
    update_collection(
        "flat vector",
        "INVALID_ARGUMENT",
        "vectors_hnsw['flat']",
        vectors_hnsw={"flat": collections_pb2.HnswParams(m=8)},
    ),
    update_collection(
        "flat default vector", "INVALID_ARGUMENT", "hnsw", of=OTHER, hnsw=collections_pb2.HnswParams(m=8)
    ),
    update_collection("unknown storage", "INVALID_ARGUMENT", "storage", storage=3),
    update_collection(
        "unknown storage of dot", "INVALID_ARGUMENT", "vectors_storage['dot']", vectors_storage={"dot": 3}
    ),
    update_collection("storage of no vector", "UNKNOWN_VECTOR", "vectors_storage['no']", vectors_storage={"no": 1}),
    update_collection(
        "a good description with a bad storage",
        "INVALID_ARGUMENT",
        "storage",
        description="better",
        storage=99,
        payload_indexes=payload_indexes(k=KEYWORD),
    ),
    update_collection("bad m", "INVALID_ARGUMENT", "hnsw.m", hnsw=collections_pb2.HnswParams(m=1_000)),
    *unknown_collection(),
]
