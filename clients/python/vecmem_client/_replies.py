"""Results from replies: pure functions, shared by both clients."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, overload

from vecmem.v1 import collections_pb2, common_pb2, points_pb2
from vecmem_client._errors import error_from_message
from vecmem_client._types import (
    CheckpointInfo,
    Collection,
    CollectionStats,
    DeleteResult,
    Explanation,
    Flat,
    GraphCode,
    Hit,
    Hits,
    Hnsw,
    MemberInfo,
    Metric,
    PayloadIndexStats,
    PayloadType,
    Position,
    QueryPlan,
    RecoveryInfo,
    ServerInfo,
    ShardFailure,
    Storage,
    StoredPoint,
    UpdatePayloadResult,
    UpsertResult,
    VectorConfig,
    VectorStats,
    VersionConflict,
)
from vecmem_client._values import decode_float32, decode_time
from vecmem_client._vectors import unpack_vector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from vecmem.v1 import admin_pb2
    from vecmem_client._errors import VecmemClientError

_METRICS = {
    common_pb2.METRIC_COSINE: Metric.COSINE,
    common_pb2.METRIC_DOT: Metric.DOT,
    common_pb2.METRIC_EUCLIDEAN: Metric.EUCLIDEAN,
}
_STORAGES = {
    collections_pb2.STORAGE_FLOAT32: Storage.FLOAT32,
    collections_pb2.STORAGE_FLOAT16: Storage.FLOAT16,
}
_GRAPH_CODES = {
    collections_pb2.GRAPH_CODE_INT8: GraphCode.INT8,
    collections_pb2.GRAPH_CODE_FLOAT16: GraphCode.FLOAT16,
    collections_pb2.GRAPH_CODE_FLOAT32: GraphCode.FLOAT32,
    collections_pb2.GRAPH_CODE_BINARY: GraphCode.BINARY,
}
_PAYLOAD_TYPES = {
    collections_pb2.PAYLOAD_TYPE_KEYWORD: PayloadType.KEYWORD,
    collections_pb2.PAYLOAD_TYPE_INTEGER: PayloadType.INTEGER,
    collections_pb2.PAYLOAD_TYPE_FLOAT: PayloadType.FLOAT,
    collections_pb2.PAYLOAD_TYPE_BOOL: PayloadType.BOOL,
    collections_pb2.PAYLOAD_TYPE_TIME: PayloadType.TIME,
}
_PLANS = {
    points_pb2.QUERY_PLAN_SCAN: QueryPlan.SCAN,
    points_pb2.QUERY_PLAN_CODE_SCAN: QueryPlan.CODE_SCAN,
    points_pb2.QUERY_PLAN_GRAPH: QueryPlan.GRAPH,
}


def position(header: common_pb2.ResponseHeader) -> Position:
    """Return what a reply reflects."""
    return Position(header.position.shard, header.position.sequence)


def failures(header: common_pb2.ResponseHeader) -> list[ShardFailure]:
    """Return the shards whose part a reply lacks."""
    return [ShardFailure(failure.shard, error_from_message(failure.error)) for failure in header.failures]


def collection(message: collections_pb2.Collection) -> Collection:
    """Return a collection."""
    config = message.config
    return Collection(
        name=message.name,
        vector=_vector_config(config.vector) if config.HasField("vector") else None,
        vectors={name: _vector_config(params) for name, params in config.vectors.items()},
        payload_indexes={index.path: _PAYLOAD_TYPES[index.type] for index in config.payload_indexes.indexes},
        description=config.description,
        uid=message.uid,
        created_at=decode_time(message.created_at),
        damage=message.damage,
    )


def collection_stats(message: collections_pb2.CollectionStats) -> CollectionStats:
    """Return the counts of a collection."""
    return CollectionStats(
        point_count=message.point_count,
        payload_bytes=message.payload_bytes,
        vectors={
            name: VectorStats(
                vector_count=stats.vector_count,
                graph_row_count=stats.graph_row_count,
                tail_row_count=stats.tail_row_count,
                graph_deleted_row_count=stats.graph_deleted_row_count,
                rebuilding=stats.rebuilding,
                arena_bytes=stats.arena_bytes,
                graph_bytes=stats.graph_bytes,
                storage=_STORAGES.get(stats.storage),
                graph=_GRAPH_CODES.get(stats.graph),
                measured_recall=decode_float32(stats.measured_recall) if stats.measured_query_count else None,
                measured_query_count=stats.measured_query_count,
                calibrated_ef=stats.calibrated_ef,
            )
            for name, stats in message.vectors.items()
        },
        payload_indexes=[
            PayloadIndexStats(index.path, index.declared, index.point_count, index.bytes)
            for index in message.payload_indexes
        ],
    )


def conflicts(messages: Iterable[points_pb2.VersionConflict]) -> list[VersionConflict]:
    """Return the points that a conditional write left as they are."""
    return [VersionConflict(message.id, message.expected_version, message.actual_version) for message in messages]


def upserted(reply: points_pb2.UpsertResponse) -> UpsertResult:
    """Return what an upsert did."""
    return UpsertResult(
        version=reply.version,
        inserted_count=reply.inserted_count,
        updated_count=reply.updated_count,
        conflicts=conflicts(reply.conflicts),
        position=position(reply.header),
    )


def points(messages: Iterable[points_pb2.Point]) -> list[StoredPoint]:
    """Return points as stored."""
    return [
        StoredPoint(
            message.id, message.version, message.payload_json, _vector(message), _vectors(message), _expiry(message)
        )
        for message in messages
    ]


def hits(reply: points_pb2.QueryResponse | points_pb2.QueryResult, *, with_vectors: bool) -> Hits:
    """Return hits, which are decoded when somebody looks; vectors are looked for only where asked for."""
    explanation = _explanation(reply.explanation) if reply.HasField("explanation") else None
    return Hits(partial(_decode_hits, reply.hits, with_vectors), explanation)


def _decode_hits(messages: Iterable[points_pb2.Hit], with_vectors: bool) -> list[Hit]:
    result = []
    for message in messages:
        point = message.point
        expires_at = decode_time(point.expires_at) if point.HasField("expires_at") else None
        vector, vectors = (_vector(point), _vectors(point)) if with_vectors else (None, {})
        result.append(Hit(point.id, point.version, point.payload_json, vector, vectors, expires_at, message.score))
    return result


@overload
def outcomes(messages: Iterable[points_pb2.QueryOutcome], return_exceptions: Literal[False]) -> list[Hits]: ...
@overload
def outcomes(
    messages: Iterable[points_pb2.QueryOutcome], return_exceptions: bool
) -> list[Hits | VecmemClientError]: ...
def outcomes(
    messages: Iterable[points_pb2.QueryOutcome], return_exceptions: bool
) -> list[Hits] | list[Hits | VecmemClientError]:
    """Return the results of a batch; the first failed one is raised unless exceptions are wanted in place."""
    results: list[Hits | VecmemClientError] = []
    for index, message in enumerate(messages):
        if message.HasField("error"):
            error = error_from_message(message.error)
            error.add_note(f"in query {index} of the batch")
            if not return_exceptions:
                raise error
            results.append(error)
        else:
            results.append(hits(message.result, with_vectors=True))
    return results


def deleted_collection(reply: collections_pb2.DeleteCollectionResponse) -> DeleteResult:
    """Return how many points went with a collection."""
    return DeleteResult(reply.deleted_point_count, position(reply.header))


def deleted(reply: points_pb2.DeleteResponse) -> DeleteResult:
    """Return how many points went."""
    return DeleteResult(reply.deleted_count, position(reply.header))


def payload_updated(reply: points_pb2.UpdatePayloadResponse) -> UpdatePayloadResult:
    """Return how many payloads changed."""
    return UpdatePayloadResult(reply.updated_count, reply.version, position(reply.header))


def server_info(reply: admin_pb2.GetServerInfoResponse) -> ServerInfo:
    """Return what the server says about itself."""
    recovery = reply.recovery
    return ServerInfo(
        version=reply.version,
        started_at=decode_time(reply.started_at),
        log_first_sequence=reply.log_first_sequence,
        log_last_sequence=reply.log_last_sequence,
        checkpoint_sequence=reply.checkpoint_sequence,
        collection_count=reply.collection_count,
        point_count=reply.point_count,
        resident_memory_bytes=reply.resident_memory_bytes,
        read_only_reason=reply.read_only_reason,
        recovery=RecoveryInfo(
            checkpoint_sequence=recovery.checkpoint_sequence,
            replayed_record_count=recovery.replayed_record_count,
            torn_tail_bytes=recovery.torn_tail_bytes,
            duration_ms=recovery.duration_ms,
            notes=list(recovery.notes),
        ),
        grpc_engine=reply.grpc_engine,
        failures=dict(reply.failures),
        key_count=reply.key_count,
        key_memory_bytes=reply.key_memory_bytes,
        data_memory_bytes=reply.data_memory_bytes,
        memory_limit_bytes=reply.memory_limit_bytes,
        eviction_policy=reply.eviction_policy,
        evicted_key_count=reply.evicted_key_count,
        member=_member(reply.member) if reply.HasField("member") else None,
    )


def _member(found: admin_pb2.MemberInfo) -> MemberInfo:
    return MemberInfo(found.node, found.leads, found.owner, found.lease_age_ms, found.lag)


def checkpoint(reply: admin_pb2.CreateCheckpointResponse) -> CheckpointInfo:
    """Return the checkpoint published."""
    return CheckpointInfo(reply.sequence, reply.size_bytes, reply.duration_ms, reply.stall_ms)


def _vector(point: points_pb2.Point) -> NDArray[np.float32] | None:
    return unpack_vector(point.vector) if point.HasField("vector") else None


def _vectors(point: points_pb2.Point) -> Mapping[str, NDArray[np.float32]]:
    return {name: unpack_vector(vector) for name, vector in point.vectors.items()}


def _expiry(point: points_pb2.Point) -> datetime | None:
    return decode_time(point.expires_at) if point.HasField("expires_at") else None


def _vector_config(params: collections_pb2.VectorParams) -> VectorConfig:
    index = Flat() if params.HasField("flat") else _hnsw(params.hnsw)
    return VectorConfig(params.dimension, _METRICS[params.metric], index, _STORAGES.get(params.storage))


def _hnsw(params: collections_pb2.HnswParams) -> Hnsw:
    return Hnsw(
        m=params.m,
        ef_construction=params.ef_construction,
        ef=params.ef,
        graph=_GRAPH_CODES.get(params.graph),
        target_recall=decode_float32(params.target_recall),
    )


def _explanation(message: points_pb2.Explanation) -> Explanation:
    return Explanation(
        plan=_PLANS.get(message.plan),
        point_count=message.point_count,
        matching_count=message.matching_count,
        ef=message.ef,
        target_recall=decode_float32(message.target_recall),
        compared_count=message.compared_count,
        tail_count=message.tail_count,
        graph_cost_us=message.graph_cost_us,
        scan_cost_us=message.scan_cost_us,
        filter_paths=list(message.filter_paths),
    )
