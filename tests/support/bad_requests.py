"""Bad requests against the collections HOME and OTHER, each with the code, the reason and the field that it must get."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2, timestamp_pb2

from tests.support.api import (
    DOT,
    Api,
    packed,
    params,
    point,
    query_message,
    values,
)
from vecmem.v1 import collections_pb2, common_pb2, filter_pb2, points_pb2

HOME = "home"
OTHER = "other"
GOOD = (1.0, 0.0, 0.0, 0.0)
MIB = 1024 * 1024
FIELD_SHOWN = 256
"""Characters of a metadata value that fit into the reply's headers for certain."""


@dataclass(frozen=True)
class Case:
    """A bad request. `request` may be made when it is needed; `reason` "" stands for a refusal by gRPC itself."""

    name: str
    method: str
    request: Any
    reason: str
    field: str = ""
    code: str = "INVALID_ARGUMENT"


def upsert(name: str, points: Any, reason: str, field: str = "", *, to: str = HOME, **rest: Any) -> Case:
    def request(_: Api) -> points_pb2.UpsertRequest:
        made = points(None) if callable(points) else points
        return points_pb2.UpsertRequest(collection=to, points=made)

    return Case(name, "Upsert", request, reason, field, **rest)


def vector(name: str, bad: common_pb2.Vector, reason: str, field: str) -> list[Case]:
    """A bad vector, in a point behind a good one and in a query."""
    query = points_pb2.Query(collection=HOME, limit=1, nearest=points_pb2.VectorInput(vector=bad))
    return [
        upsert(f"{name} in a point", [point("a", GOOD), point("b", bad)], reason, f"points[1].vector{field}"),
        Case(
            f"{name} in a query", "Query", points_pb2.QueryRequest(query=query), reason, f"query.nearest.vector{field}"
        ),
    ]


def payload(name: str, raw: bytes, reason: str = "INVALID_PAYLOAD") -> list[Case]:
    """A bad payload, in a point and in an update."""
    ids = filter_pb2.PointIds(ids=["p1"])
    update = points_pb2.UpdatePayloadRequest(collection=HOME, ids=ids, merge_json=raw)
    return [
        upsert(f"{name} in a point", [point("a", GOOD, payload_json=raw)], reason, "points[0].payload_json"),
        Case(f"{name} in a merge", "UpdatePayload", update, reason, "merge_json"),
    ]


def filtered(name: str, bad: filter_pb2.Filter, reason: str, field: str) -> list[Case]:
    """A bad filter, wherever a request takes one."""
    query = query_message(HOME, GOOD, filter=bad)
    update = points_pb2.UpdatePayloadRequest(collection=HOME, filter=bad, merge_json=b"{}")
    return [
        Case(f"{name} in Query", "Query", points_pb2.QueryRequest(query=query), reason, f"query.{field}"),
        Case(f"{name} in Count", "Count", points_pb2.CountRequest(collection=HOME, filter=bad), reason, field),
        Case(f"{name} in Scroll", "Scroll", points_pb2.ScrollRequest(collection=HOME, filter=bad), reason, field),
        Case(f"{name} in Delete", "Delete", points_pb2.DeleteRequest(collection=HOME, filter=bad), reason, field),
        Case(f"{name} in UpdatePayload", "UpdatePayload", update, reason, field),
    ]


def query(
    name: str, reason: str, field: str, *, code: str = "INVALID_ARGUMENT", nearest: Any = GOOD, **rest: Any
) -> Case:
    request = points_pb2.QueryRequest(query=query_message(rest.pop("collection", HOME), nearest, **rest))
    return Case(name, "Query", request, reason, field, code)


def reads(read: common_pb2.ReadOptions) -> dict[str, Any]:
    """Every read, by its method."""
    return {
        "Get": points_pb2.GetRequest(collection=HOME, ids=["a"], read=read),
        "Query": points_pb2.QueryRequest(query=query_message(HOME, GOOD), read=read),
        "QueryBatch": points_pb2.QueryBatchRequest(queries=[query_message(HOME, GOOD)], read=read),
        "Scroll": points_pb2.ScrollRequest(collection=HOME, read=read),
        "Count": points_pb2.CountRequest(collection=HOME, read=read),
        "GetCollection": collections_pb2.GetCollectionRequest(name=HOME, read=read),
        "GetCollectionStats": collections_pb2.GetCollectionStatsRequest(name=HOME, read=read),
        "ListCollections": collections_pb2.ListCollectionsRequest(read=read),
    }


def ahead() -> list[Case]:
    """Every read that waits for a position, given one beyond the log, and one of another shard's log."""
    beyond = common_pb2.ReadOptions(min_position=common_pb2.Position(sequence=10**6))
    elsewhere = common_pb2.ReadOptions(min_position=common_pb2.Position(shard=1, sequence=1))
    field = "read.min_position.shard"
    return [
        *(
            Case(f"position ahead in {method}", method, request, "POSITION_AHEAD", code="OUT_OF_RANGE")
            for method, request in reads(beyond).items()
        ),
        *(
            Case(f"position of another shard in {method}", method, request, "INVALID_ARGUMENT", field)
            for method, request in reads(elsewhere).items()
        ),
    ]


def selectors() -> list[Case]:
    """Bad selectors of what a reply carries, in every read that takes them."""
    many = common_pb2.VectorNames(names=["dot"] * 65)
    bad: list[tuple[str, str, str, dict[str, Any]]] = [
        ("too many vector names", "LIMIT_EXCEEDED", "with_vectors.include.names", {"include": many}),
        ("unknown vector encoding", "INVALID_ARGUMENT", "with_vectors.encoding", {"all": True, "encoding": 9}),
        ("unknown payload format", "INVALID_ARGUMENT", "with_payload.format", {"format": 9}),
    ]
    cases = []
    for name, reason, field, content in bad:
        kind, _, _ = field.partition(".")
        selector = (common_pb2.VectorSelector if kind == "with_vectors" else common_pb2.PayloadSelector)(**content)
        selected: dict[str, Any] = {kind: selector}
        cases += [
            Case(f"{name} in Get", "Get", points_pb2.GetRequest(collection=HOME, ids=["a"], **selected), reason, field),
            Case(f"{name} in Scroll", "Scroll", points_pb2.ScrollRequest(collection=HOME, **selected), reason, field),
            query(f"{name} in Query", reason, f"query.{field}", **selected),
        ]
    return cases


def condition(path: str = "n", **test: Any) -> filter_pb2.Filter:
    return filter_pb2.Filter(field=filter_pb2.FieldCondition(path=path, **test))


def nested(depth: int) -> filter_pb2.Filter:
    inner = condition(exists=True)
    for _ in range(depth - 1):
        inner = filter_pb2.Filter(all_of=filter_pb2.FilterList(filters=[inner]))
    return inner


def number_range(**bounds: float) -> filter_pb2.NumberRange:
    return filter_pb2.NumberRange(**{key: filter_pb2.Number(real=value) for key, value in bounds.items()})


def scroll_token(make: Callable[[Api], str], **rest: Any) -> Callable[[Api], points_pb2.ScrollRequest]:
    return lambda api: points_pb2.ScrollRequest(**{"collection": HOME, "page_token": make(api)} | rest)


def token_of(api: Api, **rest: Any) -> str:
    request = points_pb2.ScrollRequest(**{"collection": HOME, "page_size": 2} | rest)
    token = api.call("Scroll", request).next_page_token
    assert token
    return str(token)


def page_token(name: str, make: Callable[[Api], str], **rest: Any) -> Case:
    return Case(f"page token: {name}", "Scroll", scroll_token(make, **rest), "INVALID_PAGE_TOKEN", "page_token")


def deep_json(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def reused(method: str, **rest: Any) -> Case:
    write = common_pb2.WriteOptions(request_id="used")
    kind = getattr(collections_pb2 if "Collection" in method else points_pb2, f"{method}Request")
    return Case(f"reused id: {method}", method, kind(write=write, **rest), "REQUEST_ID_REUSED", "write.request_id")


NO_TIME = timestamp_pb2.Timestamp(seconds=10**12)
BAD_STRUCT = struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=math.nan)})
MANY_NODES = filter_pb2.Filter(any_of=filter_pb2.FilterList(filters=[condition(exists=True)] * 1_000))
TOO_MANY_IDS = filter_pb2.PointIds(ids=["a"] * 10_001)
VALUES = [filter_pb2.MatchValue(integer=1)]

VECTORS = [
    *vector("too short", packed([1.0] * 3), "DIMENSION_MISMATCH", ""),
    *vector("too long", values([1.0] * 5), "DIMENSION_MISMATCH", ""),
    *vector("without elements", values([]), "DIMENSION_MISMATCH", ""),
    *vector("NaN packed", packed([1.0, math.nan, 0.0, 0.0]), "INVALID_VECTOR", ""),
    *vector("NaN in values", values([1.0, math.nan, 0.0, 0.0]), "INVALID_VECTOR", ""),
    *vector("infinity", packed([1.0, math.inf, 0.0, 0.0]), "INVALID_VECTOR", ""),
    *vector("minus infinity", values([1.0, -math.inf, 0.0, 0.0]), "INVALID_VECTOR", ""),
    *vector("zero under cosine", packed([0.0] * 4), "INVALID_VECTOR", ""),
    *vector("nearly zero under cosine", packed([1e-40] * 4), "INVALID_VECTOR", ""),
    *vector("a huge norm", values([3e38] * 4), "INVALID_VECTOR", ""),
    *vector("no arm", common_pb2.Vector(), "INVALID_VECTOR", ""),
    *vector(
        "packed and values",
        common_pb2.Vector(dense=common_pb2.DenseVector(packed=struct.pack("<4f", *GOOD), values=GOOD)),
        "INVALID_VECTOR",
        ".dense",
    ),
    *vector(
        "unknown data type",
        common_pb2.Vector(dense=common_pb2.DenseVector(packed=struct.pack("<4f", *GOOD), data_type=77)),
        "INVALID_VECTOR",
        ".dense.data_type",
    ),
    *vector(
        "truncated bytes",
        common_pb2.Vector(dense=common_pb2.DenseVector(packed=struct.pack("<4f", *GOOD)[:-1])),
        "INVALID_VECTOR",
        ".dense.packed",
    ),
    upsert("no vector", [point("a")], "INVALID_VECTOR", "points[0]"),
    upsert(
        "huge norm under dot",
        [point("a", vectors={"dot": packed([1e30] * 3)})],
        "INVALID_VECTOR",
        "points[0].vectors['dot']",
    ),
    upsert(
        "huge norm under euclidean",
        [point("a", vectors={"flat": packed([1e30] * 2)})],
        "INVALID_VECTOR",
        "points[0].vectors['flat']",
    ),
    upsert("unknown name", [point("a", vectors={"nope": packed(GOOD)})], "UNKNOWN_VECTOR", "points[0].vectors['nope']"),
    upsert("the default by name", [point("a", vectors={"": packed(GOOD)})], "UNKNOWN_VECTOR", "points[0].vectors['']"),
    upsert(
        "the default twice",
        [point("a", GOOD, vectors={"": packed([0.0, 1.0, 0.0, 0.0])}), point("b", vectors={"dot": packed([1.0] * 3)})],
        "UNKNOWN_VECTOR",
        "points[0].vectors['']",
    ),
    upsert(
        "a name the collection lacks",
        [point("a", vectors={"dot": packed([1.0] * 3)})],
        "UNKNOWN_VECTOR",
        "points[0].vectors['dot']",
        to=OTHER,
    ),
]
POINTS = [
    upsert("empty id", [point("a", GOOD), point("", GOOD)], "INVALID_ID", "points[1].id"),
    upsert("id too long", [point("x" * 513, GOOD)], "INVALID_ID", "points[0].id"),
    upsert("id too long in bytes", [point("ü" * 257, GOOD)], "INVALID_ID", "points[0].id"),
    upsert("no point", [], "INVALID_ARGUMENT", "points"),
    upsert("too many points", lambda _: [point("a", GOOD)] * 10_001, "LIMIT_EXCEEDED", "points"),
    upsert("no such time", [point("a", GOOD, expires_at=NO_TIME)], "INVALID_ARGUMENT", "points[0].expires_at"),
    upsert(
        "Struct with NaN",
        [point("a", GOOD, payload_struct=BAD_STRUCT)],
        "INVALID_PAYLOAD",
        "points[0].payload_struct.a",
    ),
    *payload("no JSON", b'{"a":'),
    *payload("no object", b"[1]"),
    *payload("no UTF-8", b'{"a":"\xff"}'),
    *payload("NaN", b'{"a":NaN}'),
    *payload("int beyond int64", b'{"a":9223372036854775808}'),
    *payload("int below int64", b'{"a":-9223372036854775809}'),
    *payload("too deep", deep_json(65), "LIMIT_EXCEEDED"),
    *payload("too large", json.dumps({"a": "x" * MIB}).encode(), "LIMIT_EXCEEDED"),
    Case(
        "over the message limit",
        "Upsert",
        lambda _: points_pb2.UpsertRequest(
            collection=HOME,
            points=[point(f"{i}", GOOD, payload_json=b'{"a":"%s"}' % (b"x" * 1_000_000)) for i in range(70)],
        ),
        "",
        code="RESOURCE_EXHAUSTED",
    ),
    Case(
        "request id too long",
        "Upsert",
        points_pb2.UpsertRequest(
            collection=HOME, points=[point("a", GOOD)], write=common_pb2.WriteOptions(request_id="x" * 129)
        ),
        "LIMIT_EXCEEDED",
        "write.request_id",
    ),
    reused("Upsert", collection=HOME, points=[point("first", [0.0, 1.0, 0.0, 0.0])]),
    reused("Delete", collection=HOME, ids=filter_pb2.PointIds(ids=["first"])),
    reused("UpdatePayload", collection=HOME, ids=filter_pb2.PointIds(ids=["first"]), merge_json=b"{}"),
    reused("CreateCollection", name="new", config=collections_pb2.CollectionConfig(vector=params(2, DOT))),
    reused("UpdateCollection", name=HOME, description="changed"),
    reused("DeleteCollection", name=HOME),
    Case("delete nothing", "Delete", points_pb2.DeleteRequest(collection=HOME), "INVALID_ARGUMENT", "selector"),
    Case(
        "delete no ids",
        "Delete",
        points_pb2.DeleteRequest(collection=HOME, ids=filter_pb2.PointIds()),
        "INVALID_ARGUMENT",
        "ids.ids",
    ),
    Case(
        "delete too many",
        "Delete",
        points_pb2.DeleteRequest(collection=HOME, ids=TOO_MANY_IDS),
        "LIMIT_EXCEEDED",
        "ids.ids",
    ),
    Case(
        "update nothing",
        "UpdatePayload",
        points_pb2.UpdatePayloadRequest(collection=HOME, merge_json=b"{}"),
        "INVALID_ARGUMENT",
        "selector",
    ),
    Case(
        "update without operation",
        "UpdatePayload",
        points_pb2.UpdatePayloadRequest(collection=HOME, ids=filter_pb2.PointIds(ids=["p1"])),
        "INVALID_ARGUMENT",
        "operation",
    ),
    Case(
        "remove nothing",
        "UpdatePayload",
        points_pb2.UpdatePayloadRequest(
            collection=HOME, ids=filter_pb2.PointIds(ids=["p1"]), remove=common_pb2.FieldPaths()
        ),
        "INVALID_ARGUMENT",
        "remove.paths",
    ),
    Case("get nothing", "Get", points_pb2.GetRequest(collection=HOME), "INVALID_ARGUMENT", "ids"),
    Case("get too many", "Get", points_pb2.GetRequest(collection=HOME, ids=["a"] * 10_001), "LIMIT_EXCEEDED", "ids"),
    Case("get the empty id", "Get", points_pb2.GetRequest(collection=HOME, ids=["p1", ""]), "INVALID_ID", "ids[1]"),
]
QUERIES = [
    query("limit 0", "INVALID_ARGUMENT", "query.limit", limit=0),
    query("limit over the maximum", "LIMIT_EXCEEDED", "query.limit", limit=10_001),
    query("offset and limit over the maximum", "LIMIT_EXCEEDED", "query.limit", limit=2, offset=9_999),
    query("offset of 2^32 - 1", "LIMIT_EXCEEDED", "query.limit", limit=1, offset=2**32 - 1),
    query("ef over the maximum", "LIMIT_EXCEEDED", "query.params.ef", params=points_pb2.SearchParams(ef=10_001)),
    *(
        query(
            f"a target recall of {target}",
            "INVALID_ARGUMENT",
            "query.params.target_recall",
            params=points_pb2.SearchParams(target_recall=target),
        )
        for target in (0.3, 1.1, -1.0, float("nan"), float("inf"))
    ),
    query("threshold NaN", "INVALID_ARGUMENT", "query.score_threshold", score_threshold=math.nan),
    query("using an unknown vector", "UNKNOWN_VECTOR", "query.using", using="nope"),
    query("dimension of another vector", "DIMENSION_MISMATCH", "query.nearest.vector", using="dot"),
    query("near the empty id", "INVALID_ARGUMENT", "query.nearest.id", nearest=""),
    query("near a point that is not there", "POINT_NOT_FOUND", "", nearest="nobody", code="NOT_FOUND"),
    query("near a point without the vector", "POINT_NOT_FOUND", "", nearest="p1", using="dot", code="NOT_FOUND"),
    query(
        "unknown vector wanted",
        "UNKNOWN_VECTOR",
        "query.with_vectors.include.names[1]",
        with_vectors=common_pb2.VectorSelector(include=common_pb2.VectorNames(names=["dot", "nope"])),
    ),
    query(
        "bad payload path",
        "INVALID_FILTER",
        "query.with_payload.include.paths[0]",
        with_payload=common_pb2.PayloadSelector(include=common_pb2.FieldPaths(paths=["a..b"])),
    ),
    Case("no query", "Query", points_pb2.QueryRequest(), "COLLECTION_NOT_FOUND", code="NOT_FOUND"),
    Case(
        "no kind",
        "Query",
        points_pb2.QueryRequest(query=points_pb2.Query(collection=HOME, limit=1)),
        "INVALID_ARGUMENT",
        "query.nearest",
    ),
    Case(
        "nearest to nothing",
        "Query",
        points_pb2.QueryRequest(query=points_pb2.Query(collection=HOME, limit=1, nearest=points_pb2.VectorInput())),
        "INVALID_ARGUMENT",
        "query.nearest",
    ),
    Case("empty batch", "QueryBatch", points_pb2.QueryBatchRequest(), "INVALID_ARGUMENT", "queries"),
    Case(
        "batch too large",
        "QueryBatch",
        points_pb2.QueryBatchRequest(queries=[query_message(HOME, GOOD)] * 1_025),
        "LIMIT_EXCEEDED",
        "queries",
    ),
    Case(
        "page too large",
        "Scroll",
        points_pb2.ScrollRequest(collection=HOME, page_size=10_001),
        "LIMIT_EXCEEDED",
        "page_size",
    ),
    Case(
        "page of collections too large",
        "ListCollections",
        collections_pb2.ListCollectionsRequest(page_size=1_001),
        "LIMIT_EXCEEDED",
        "page_size",
    ),
    page_token("garbage", lambda _: "!garbage!"),
    page_token("base64 of no token", lambda _: "aGVsbG8"),
    page_token("JSON of no token", lambda _: "WzEsMiwzXQ"),
    page_token("truncated", lambda api: token_of(api)[:-3]),
    page_token("of another collection", lambda api: token_of(api, collection=OTHER)),
    page_token("of another filter", lambda api: token_of(api, filter=condition(exists=True))),
    page_token("of no filter", token_of, filter=condition(exists=True)),
    Case(
        "page token: of points for collections",
        "ListCollections",
        lambda api: collections_pb2.ListCollectionsRequest(page_token=token_of(api)),
        "INVALID_PAGE_TOKEN",
        "page_token",
    ),
    *ahead(),
    *selectors(),
]
FILTERS = [
    *filtered("no arm", filter_pb2.Filter(), "INVALID_FILTER", "filter"),
    *filtered(
        "no arm inside",
        filter_pb2.Filter(none_of=filter_pb2.FilterList(filters=[nested(1), filter_pb2.Filter()])),
        "INVALID_FILTER",
        "filter.none_of.filters[1]",
    ),
    *filtered("no test", condition(), "INVALID_FILTER", "filter.field"),
    *filtered("no value", condition(match=filter_pb2.MatchValue()), "INVALID_FILTER", "filter.field.match"),
    *filtered(
        "empty any_of", condition(any_of=filter_pb2.MatchValues()), "INVALID_FILTER", "filter.field.any_of.values"
    ),
    *filtered(
        "too many values",
        condition(none_of=filter_pb2.MatchValues(values=VALUES * 10_001)),
        "LIMIT_EXCEEDED",
        "filter.field.none_of.values",
    ),
    *filtered("empty path", condition("", exists=True), "INVALID_FILTER", "filter.field.path"),
    *filtered("broken quotes", condition('a."b', exists=True), "INVALID_FILTER", "filter.field.path"),
    *filtered("path too long", condition("x" * 513, exists=True), "INVALID_FILTER", "filter.field.path"),
    *filtered(
        "range without bound",
        condition(number_range=filter_pb2.NumberRange()),
        "INVALID_FILTER",
        "filter.field.number_range",
    ),
    *filtered(
        "bound NaN",
        condition(number_range=number_range(gt=math.nan)),
        "INVALID_FILTER",
        "filter.field.number_range.gt.real",
    ),
    *filtered(
        "no such time",
        condition(time_range=filter_pb2.TimeRange(lt=NO_TIME)),
        "INVALID_FILTER",
        "filter.field.time_range.lt.seconds",
    ),
    *filtered("too deep", nested(17), "LIMIT_EXCEEDED", "filter" + ".all_of.filters[0]" * 16),
    *filtered("too many nodes", MANY_NODES, "LIMIT_EXCEEDED", "filter.any_of.filters[999]"),
    *filtered("too many ids", filter_pb2.Filter(has_id=TOO_MANY_IDS), "LIMIT_EXCEEDED", "filter.has_id.ids"),
]
CASES = [*VECTORS, *POINTS, *QUERIES, *FILTERS]
