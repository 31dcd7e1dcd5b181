"""Requests from arguments: pure functions, shared by both clients. Nothing given is mutated or kept.

All raise TypeError and ValueError for arguments that no server would take, before anything is sent.
"""

# `id` and `filter` are the API's own words for these arguments.
# ruff: noqa: A002

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from vecmem.v1 import admin_pb2, collections_pb2, common_pb2, points_pb2
from vecmem_client._filters import copy_filter
from vecmem_client._types import (
    Exclude,
    Flat,
    GraphCode,
    Hnsw,
    Metric,
    PayloadType,
    Point,
    Position,
    Storage,
    VectorConfig,
)
from vecmem_client._values import aware, encode_payload
from vecmem_client._vectors import pack_vector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vecmem_client._filters import FilterLike
    from vecmem_client._types import Demand, PayloadTypeName, Query, StorageName
    from vecmem_client._values import PayloadLike
    from vecmem_client._vectors import VectorLike


_METRICS = {
    Metric.COSINE: common_pb2.METRIC_COSINE,
    Metric.DOT: common_pb2.METRIC_DOT,
    Metric.EUCLIDEAN: common_pb2.METRIC_EUCLIDEAN,
}
_STORAGES = {
    Storage.FLOAT32: collections_pb2.STORAGE_FLOAT32,
    Storage.FLOAT16: collections_pb2.STORAGE_FLOAT16,
}
_GRAPH_CODES = {
    GraphCode.INT8: collections_pb2.GRAPH_CODE_INT8,
    GraphCode.FLOAT16: collections_pb2.GRAPH_CODE_FLOAT16,
    GraphCode.FLOAT32: collections_pb2.GRAPH_CODE_FLOAT32,
    GraphCode.BINARY: collections_pb2.GRAPH_CODE_BINARY,
}
_PAYLOAD_TYPES = {
    PayloadType.KEYWORD: collections_pb2.PAYLOAD_TYPE_KEYWORD,
    PayloadType.INTEGER: collections_pb2.PAYLOAD_TYPE_INTEGER,
    PayloadType.FLOAT: collections_pb2.PAYLOAD_TYPE_FLOAT,
    PayloadType.BOOL: collections_pb2.PAYLOAD_TYPE_BOOL,
    PayloadType.TIME: collections_pb2.PAYLOAD_TYPE_TIME,
}


def new_request_id(request_id: str | None) -> str:
    """Return `request_id`, or a fresh one for None."""
    return uuid.uuid4().hex if request_id is None else request_id


def strings(values: Iterable[str], name: str) -> list[str]:
    """Return a list of strings; a lone string is a mistake and raises TypeError."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} takes several strings, not one")
    return [value if isinstance(value, str) else _not_a_string(value, name) for value in values]


def create_collection(
    name: str,
    vector: VectorConfig | None,
    vectors: Mapping[str, VectorConfig] | None,
    payload_indexes: Mapping[str, PayloadType | PayloadTypeName] | None,
    description: str,
    request_id: str,
) -> collections_pb2.CreateCollectionRequest:
    """Build the request of the same name."""
    if vector is None and not vectors:
        raise ValueError("a collection declares at least one vector")
    request = collections_pb2.CreateCollectionRequest(name=name)
    request.write.request_id = request_id
    request.config.description = description
    if vector is not None:
        _set_vector_config(request.config.vector, vector)
    for vector_name, config in (vectors or {}).items():
        _set_vector_config(request.config.vectors[vector_name], config)
    if payload_indexes:
        _set_payload_indexes(request.config.payload_indexes, payload_indexes)
    return request


def get_collection(name: str, min_position: Demand) -> collections_pb2.GetCollectionRequest:
    """Build the request of the same name."""
    request = collections_pb2.GetCollectionRequest(name=name)
    set_read(request, min_position)
    return request


def list_collections(page_size: int, min_position: Demand) -> collections_pb2.ListCollectionsRequest:
    """Build the request for the first page."""
    request = collections_pb2.ListCollectionsRequest(page_size=page_size)
    set_read(request, min_position)
    return request


def update_collection(
    name: str,
    description: str | None,
    hnsw: Hnsw | None,
    vectors_hnsw: Mapping[str, Hnsw] | None,
    storage: Storage | StorageName | None,
    vectors_storage: Mapping[str, Storage | StorageName] | None,
    payload_indexes: Mapping[str, PayloadType | PayloadTypeName] | None,
    request_id: str,
) -> collections_pb2.UpdateCollectionRequest:
    """Build the request of the same name."""
    request = collections_pb2.UpdateCollectionRequest(name=name)
    request.write.request_id = request_id
    if description is not None:
        request.description = description
    if hnsw is not None:
        _set_hnsw(request.hnsw, hnsw)
    for vector_name, params in (vectors_hnsw or {}).items():
        _set_hnsw(request.vectors_hnsw[vector_name], params)
    if storage is not None:
        request.storage = _STORAGES[Storage(storage)]
    for vector_name, kept in (vectors_storage or {}).items():
        request.vectors_storage[vector_name] = _STORAGES[Storage(kept)]
    if payload_indexes is not None:
        _set_payload_indexes(request.payload_indexes, payload_indexes)
    return request


def delete_collection(name: str, request_id: str) -> collections_pb2.DeleteCollectionRequest:
    """Build the request of the same name."""
    request = collections_pb2.DeleteCollectionRequest(name=name)
    request.write.request_id = request_id
    return request


def collection_stats(name: str, min_position: Demand) -> collections_pb2.GetCollectionStatsRequest:
    """Build GetCollectionStatsRequest."""
    request = collections_pb2.GetCollectionStatsRequest(name=name)
    set_read(request, min_position)
    return request


def set_point(target: points_pb2.Point, point: Point) -> None:
    """Write a point into a request."""
    if not isinstance(point, Point):
        raise TypeError(f"points are vecmem_client.Point, not {type(point).__name__}")
    target.id = point.id
    if point.vector is not None:
        set_vector(target.vector, pack_vector(point.vector, f"the vector of point {point.id!r}"))
    elif not point.vectors:
        raise ValueError(f"point {point.id!r} has no vector")
    if point.vectors:
        for name, vector in point.vectors.items():
            set_vector(target.vectors[name], pack_vector(vector, f"vector {name!r} of point {point.id!r}"))
    if point.payload is not None:
        target.payload_json = encode_payload(point.payload)
    if point.expires_at is not None:
        target.expires_at.FromDatetime(aware(point.expires_at, "expires_at"))
    if point.expected_version is not None:
        target.expected_version = point.expected_version


def upsert(collection: str, points: Iterable[Point], request_id: str) -> points_pb2.UpsertRequest:
    """Build the request of the same name."""
    if isinstance(points, Point):
        raise TypeError("upsert takes several points: pass a list")
    request = points_pb2.UpsertRequest(collection=collection)
    request.write.request_id = request_id
    add = request.points.add
    for point in points:
        set_point(add(), point)
    if not request.points:
        raise ValueError("there are no points to upsert")
    return request


def get(
    collection: str,
    ids: Iterable[str],
    with_payload: bool | Sequence[str] | Exclude,
    with_vectors: bool | Sequence[str],
    min_position: Demand,
) -> points_pb2.GetRequest:
    """Build the request of the same name."""
    request = points_pb2.GetRequest(collection=collection, ids=strings(ids, "ids"))
    set_selectors(request, with_payload, with_vectors)
    set_read(request, min_position)
    return request


def delete(
    collection: str, ids: Iterable[str] | None, filter: FilterLike | None, request_id: str
) -> points_pb2.DeleteRequest:
    """Build the request of the same name."""
    request = points_pb2.DeleteRequest(collection=collection)
    request.write.request_id = request_id
    _set_targets(request, ids, filter)
    return request


def update_payload(
    collection: str,
    ids: Iterable[str] | None,
    filter: FilterLike | None,
    merge: PayloadLike | None,
    replace: PayloadLike | None,
    remove: Iterable[str] | None,
    request_id: str,
) -> points_pb2.UpdatePayloadRequest:
    """Build the request of the same name."""
    if sum(change is not None for change in (merge, replace, remove)) != 1:
        raise ValueError("exactly one of merge, replace and remove is given")
    request = points_pb2.UpdatePayloadRequest(collection=collection)
    request.write.request_id = request_id
    _set_targets(request, ids, filter)
    if merge is not None:
        request.merge_json = encode_payload(merge)
    elif replace is not None:
        request.replace_json = encode_payload(replace)
    elif remove is not None:
        request.remove.paths.extend(strings(remove, "remove"))
    return request


def set_query(
    target: points_pb2.Query,
    collection: str,
    vector: VectorLike | None,
    id: str | None,
    limit: int,
    offset: int,
    using: str,
    filter: FilterLike | None,
    score_threshold: float | None,
    ef: int,
    target_recall: float,
    exact: bool,
    explain: bool,
    with_payload: bool | Sequence[str] | Exclude,
    with_vectors: bool | Sequence[str],
) -> None:
    """Write one search into a request. This is the hot path: only what differs from the defaults is touched."""
    target.collection = collection
    if vector is not None:
        if id is not None:
            raise ValueError("a query is near a vector or near an id, not both")
        dense = target.nearest.vector.dense
        dense.packed = pack_vector(vector)
        dense.data_type = common_pb2.DATA_TYPE_FLOAT32
    elif id is not None:
        target.nearest.id = id
    else:
        raise ValueError("a query needs a vector or the id of a stored point")
    target.limit = limit
    if offset:
        target.offset = offset
    if using:
        target.using = using
    if filter is not None:
        copy_filter(target.filter, filter)
    if score_threshold is not None:
        target.score_threshold = score_threshold
    if ef:
        target.params.ef = ef
    if target_recall:
        target.params.target_recall = target_recall
    if exact:
        target.params.exact = True
    if explain:
        target.explain = True
    if with_payload is not True or with_vectors is not False:
        set_selectors(target, with_payload, with_vectors)


def query_batch(queries: Iterable[Query], min_position: Demand) -> points_pb2.QueryBatchRequest:
    """Build the request of the same name."""
    request = points_pb2.QueryBatchRequest()
    for query in queries:
        set_query(
            request.queries.add(),
            query.collection,
            query.vector,
            query.id,
            query.limit,
            query.offset,
            query.using,
            query.filter,
            query.score_threshold,
            query.ef,
            query.target_recall,
            query.exact,
            query.explain,
            query.with_payload,
            query.with_vectors,
        )
    set_read(request, min_position)
    return request


def scroll(
    collection: str,
    filter: FilterLike | None,
    page_size: int,
    with_payload: bool | Sequence[str] | Exclude,
    with_vectors: bool | Sequence[str],
    min_position: Demand,
) -> points_pb2.ScrollRequest:
    """Build the request for the first page."""
    request = points_pb2.ScrollRequest(collection=collection, page_size=page_size)
    if filter is not None:
        copy_filter(request.filter, filter)
    set_selectors(request, with_payload, with_vectors)
    set_read(request, min_position)
    return request


def count(collection: str, filter: FilterLike | None, min_position: Demand) -> points_pb2.CountRequest:
    """Build the request of the same name."""
    request = points_pb2.CountRequest(collection=collection)
    if filter is not None:
        copy_filter(request.filter, filter)
    set_read(request, min_position)
    return request


def server_info() -> admin_pb2.GetServerInfoRequest:
    """Build GetServerInfoRequest."""
    return admin_pb2.GetServerInfoRequest()


def hand_over() -> admin_pb2.HandOverRequest:
    """Build the request to give up the lead."""
    return admin_pb2.HandOverRequest()


def create_checkpoint() -> admin_pb2.CreateCheckpointRequest:
    """Build the request of the same name."""
    return admin_pb2.CreateCheckpointRequest()


def set_vector(target: common_pb2.Vector, packed: bytes) -> None:
    """Write a packed float32 vector into a request."""
    dense = target.dense
    dense.packed = packed
    dense.data_type = common_pb2.DATA_TYPE_FLOAT32


def set_read(request: Any, min_position: Demand) -> None:
    """Write what a reply must reflect into any read request."""
    if min_position is None:
        return
    if isinstance(min_position, Position):
        request.read.min_position.shard = min_position.shard
        request.read.min_position.sequence = min_position.sequence
        return
    for position in min_position:
        request.read.min_positions.add(shard=position.shard, sequence=position.sequence)


def set_selectors(
    request: Any, with_payload: bool | Sequence[str] | Exclude, with_vectors: bool | Sequence[str]
) -> None:
    """Write what to return of each point. The whole payload and no vectors is what an absent selector means."""
    if with_payload is not True:
        selector = request.with_payload
        if with_payload is False:
            selector.all = False
        elif isinstance(with_payload, Exclude):
            selector.exclude.paths.extend(strings(with_payload.paths, "Exclude"))
        else:
            selector.include.SetInParent()
            selector.include.paths.extend(strings(with_payload, "with_payload"))
    if with_vectors is not False:
        selector = request.with_vectors
        selector.encoding = common_pb2.VECTOR_ENCODING_PACKED
        if with_vectors is True:
            selector.all = True
        else:
            selector.include.SetInParent()
            selector.include.names.extend(strings(with_vectors, "with_vectors"))


def _not_a_string(value: object, name: str) -> str:
    raise TypeError(f"{name} takes strings, not {type(value).__name__}")


def _set_targets(
    request: points_pb2.DeleteRequest | points_pb2.UpdatePayloadRequest,
    ids: Iterable[str] | None,
    filter: FilterLike | None,
) -> None:
    if (ids is None) == (filter is None):
        raise ValueError("exactly one of ids and filter is given")
    if ids is not None:
        request.ids.SetInParent()
        request.ids.ids.extend(strings(ids, "ids"))
    if filter is not None:
        copy_filter(request.filter, filter)


def _set_vector_config(target: collections_pb2.VectorParams, config: VectorConfig) -> None:
    target.dimension = config.dimension
    target.metric = _METRICS[Metric(config.metric)]
    if isinstance(config.index, Flat):
        target.flat.SetInParent()
    else:
        _set_hnsw(target.hnsw, config.index)
    if config.storage is not None:
        target.storage = _STORAGES[Storage(config.storage)]


def _set_hnsw(target: collections_pb2.HnswParams, params: Hnsw) -> None:
    target.SetInParent()  # all defaults is a choice too
    target.m = params.m
    target.ef_construction = params.ef_construction
    target.ef = params.ef
    target.target_recall = params.target_recall
    if params.graph is not None:
        target.graph = _GRAPH_CODES[GraphCode(params.graph)]


def _set_payload_indexes(
    target: collections_pb2.PayloadIndexes, declared: Mapping[str, PayloadType | PayloadTypeName]
) -> None:
    target.SetInParent()  # none at all is a choice too
    for path, kind in declared.items():
        target.indexes.add(path=path, type=_PAYLOAD_TYPES[PayloadType(kind)])
