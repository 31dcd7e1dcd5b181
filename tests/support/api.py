"""The raw API for tests: the generated stubs, and what a refusal says. Nothing of our own client is in the way."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vecmem.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    collections_pb2,
    collections_pb2_grpc,
    common_pb2,
    filter_pb2,
    points_pb2,
    points_pb2_grpc,
)

CALL_SECONDS_MAX = 60.0
COSINE, DOT, EUCLIDEAN = common_pb2.METRIC_COSINE, common_pb2.METRIC_DOT, common_pb2.METRIC_EUCLIDEAN


@dataclass(frozen=True)
class Refusal:
    """A gRPC status with its ErrorInfo; `reason` is empty where there is none."""

    code: str
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def field(self) -> str:
        """The offending field that the server named."""
        return self.metadata.get("field", "")


class Api:
    """The stubs of one channel. Every call gets a deadline, so that a hanging server fails the test."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.collections = collections_pb2_grpc.CollectionServiceStub(channel)
        self.points = points_pb2_grpc.PointServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)

    def call(self, method: str, request: Any) -> Any:
        """Call a unary method by its name."""
        for stub in (self.points, self.collections, self.admin):
            if hasattr(stub, method):
                return getattr(stub, method)(request, timeout=CALL_SECONDS_MAX)
        raise ValueError(f"no method {method}")

    # -- what most tests need ---------------------------------------------------------------------------------------

    def create(self, name: str, vector: collections_pb2.VectorParams | None = None, **vectors: Any) -> Any:
        """Create a collection."""
        config = collections_pb2.CollectionConfig(vector=vector, vectors=vectors)
        return self.call("CreateCollection", collections_pb2.CreateCollectionRequest(name=name, config=config))

    def upsert(self, collection: str, points: Sequence[points_pb2.Point], request_id: str = "") -> Any:
        """Upsert points."""
        write = common_pb2.WriteOptions(request_id=request_id) if request_id else None
        request = points_pb2.UpsertRequest(collection=collection, points=points, write=write)
        return self.call("Upsert", request)

    def get(self, collection: str, *ids: str, **selectors: Any) -> list[points_pb2.Point]:
        """Points by id."""
        request = points_pb2.GetRequest(collection=collection, ids=ids, **selectors)
        return list(self.call("Get", request).points)

    def query(self, collection: str, nearest: Sequence[float] | str, **rest: Any) -> list[points_pb2.Hit]:
        """Hits of one query; `nearest` is a vector or an id, `limit` 10 unless told."""
        query = query_message(collection, nearest, **rest)
        return list(self.call("Query", points_pb2.QueryRequest(query=query)).hits)

    def count(self, collection: str, filter: Any = None) -> int:  # noqa: A002 - the field's name
        """Points that match."""
        return int(self.call("Count", points_pb2.CountRequest(collection=collection, filter=filter)).count)

    def delete(self, collection: str, *ids: str, **rest: Any) -> Any:
        """Delete points by id, or by `filter`."""
        selector = {"ids": filter_pb2.PointIds(ids=ids)} if ids else {}
        return self.call("Delete", points_pb2.DeleteRequest(collection=collection, **selector, **rest))

    def pages(self, collection: str, page_size: int = 1_000, **rest: Any) -> Iterator[list[points_pb2.Point]]:
        """The pages of a scroll."""
        token = ""
        while True:
            request = points_pb2.ScrollRequest(collection=collection, page_size=page_size, page_token=token, **rest)
            page = self.call("Scroll", request)
            yield list(page.points)
            token = page.next_page_token
            if not token:
                return

    def scroll(self, collection: str, page_size: int = 1_000, **rest: Any) -> list[points_pb2.Point]:
        """All points, in the order of the pages."""
        return [point for page in self.pages(collection, page_size, **rest) for point in page]

    def info(self) -> admin_pb2.GetServerInfoResponse:
        """GetServerInfo."""
        return self.call("GetServerInfo", admin_pb2.GetServerInfoRequest())

    def stats(self, collection: str) -> collections_pb2.CollectionStats:
        """GetCollectionStats."""
        return self.call("GetCollectionStats", collections_pb2.GetCollectionStatsRequest(name=collection)).stats

    def everything(self) -> dict[str, Any]:
        """All that the server holds and how far its log goes: equal before and after means that nothing changed."""
        listed = self.call("ListCollections", collections_pb2.ListCollectionsRequest(page_size=1_000))
        whole = common_pb2.VectorSelector(all=True)
        info = self.info()
        return {
            "log": (info.log_first_sequence, info.log_last_sequence, info.header.position.sequence),
            "counts": (info.collection_count, info.point_count),
            "collections": [one.SerializeToString(deterministic=True) for one in listed.collections],
            "points": {
                one.name: [
                    point.SerializeToString(deterministic=True) for point in self.scroll(one.name, with_vectors=whole)
                ]
                for one in listed.collections
            },
        }


@contextmanager
def connect(address: str) -> Iterator[Api]:
    """The API of a server over a connection of its own, for the length of a block; it begins when the server answers."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=[*options, ("grpc.use_local_subchannel_pool", 1)]) as channel:
        health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS_MAX, wait_for_ready=True
        )
        yield Api(channel)


def refusal_of(error: grpc.RpcError) -> Refusal:
    """What a failed call says. The details, where there are any, must repeat the status."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert status.code == error.code().value[0]
            assert error.details().startswith(status.message)
            info = error_details_pb2.ErrorInfo()
            (detail,) = status.details
            assert detail.Unpack(info)
            return Refusal(error.code().name, error.details(), info.reason, info.domain, dict(info.metadata))
    return Refusal(error.code().name, error.details() or "")


def expect_refusal(call: Callable[[], Any]) -> Refusal:
    """Run a call that must fail; what it says."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return refusal_of(raised.value)


def params(
    dimension: int, metric: int, *, flat: bool = False, storage: int = 0, **hnsw: Any
) -> collections_pb2.VectorParams:
    """Declare a vector."""
    index = {"flat": collections_pb2.FlatParams()} if flat else {"hnsw": collections_pb2.HnswParams(**hnsw)}
    return collections_pb2.VectorParams(dimension=dimension, metric=metric, storage=storage, **index)


def payload_indexes(**types: int) -> collections_pb2.PayloadIndexes:
    """Declare payload indexes, their types by path."""
    indexes = [collections_pb2.PayloadIndex(path=path, type=kind) for path, kind in types.items()]
    return collections_pb2.PayloadIndexes(indexes=indexes)


def values(elements: Sequence[float]) -> common_pb2.Vector:
    """A vector as repeated floats."""
    return common_pb2.Vector(dense=common_pb2.DenseVector(values=elements))


def packed(elements: Sequence[float]) -> common_pb2.Vector:
    """A vector as float32 bytes."""
    return common_pb2.Vector(dense=common_pb2.DenseVector(packed=struct.pack(f"<{len(elements)}f", *elements)))


def point(point_id: str, vector: Sequence[float] | common_pb2.Vector | None = None, **rest: Any) -> points_pb2.Point:
    """A point; `vector` of numbers travels packed."""
    if vector is not None and not isinstance(vector, common_pb2.Vector):
        vector = packed(vector)
    return points_pb2.Point(id=point_id, vector=vector, **rest)


def query_message(collection: str, nearest: Sequence[float] | str, **rest: Any) -> points_pb2.Query:
    """A query for the points nearest to a vector or to a stored point."""
    target = {"id": nearest} if isinstance(nearest, str) else {"vector": packed(nearest)}
    rest.setdefault("limit", 10)
    return points_pb2.Query(collection=collection, nearest=points_pb2.VectorInput(**target), **rest)
