"""The methods of the API: path on the wire and how to parse the reply.

Calls go by path instead of through generated stubs: requests are serialized once, before the first try, and their
size is checked before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from vecmem.v1 import (
    admin_pb2,
    channels_pb2,
    cluster_pb2,
    collections_pb2,
    pipeline_pb2,
    points_pb2,
    transactions_pb2,
    watch_pb2,
)
from vecmem_client import _slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vecmem.v1 import common_pb2

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Largest message in either direction; the server has the same limit."""

CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # A server that restarts is found again within a second or so, not within gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Each client has a connection of its own, so that closing it closes it and several share no bottleneck.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries happen in one place, in this package, where request ids make them safe.
    ("grpc.enable_retries", 0),
)


def channel_options(further: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the options of a channel, the caller's taking precedence."""
    return list({**dict(CHANNEL_OPTIONS), **dict(further)}.items())


class Reply(Protocol):
    """What every reply has."""

    @property
    def header(self) -> common_pb2.ResponseHeader:
        """What the reply reflects."""


ReplyT = TypeVar("ReplyT", bound=Reply)


@dataclass(frozen=True, slots=True, eq=False)
class Method(Generic[ReplyT]):
    """One method."""

    path: str
    parse: Callable[[bytes], ReplyT]
    keys_of: Callable[[Any], Iterable[bytes]] | None = None
    """What decides which shard answers: keys, and ids of points as keys; nothing: all shards do. None: none of that."""
    read_field: int = 0
    """Number of the request's field of read options where it reads alone, so that any node may answer; 0: only one that leads may."""


_COLLECTIONS = "/vecmem.v1.CollectionService/"
_POINTS = "/vecmem.v1.PointService/"
_ADMIN = "/vecmem.v1.AdminService/"
_CLUSTER = "/vecmem.v1.ClusterService/"


def read_field(descriptor: Any) -> int:
    """Return the number of a request's field of read options; 0: it has none, or writes as well."""
    fields = descriptor.fields_by_name
    return fields["read"].number if "read" in fields and "write" not in fields else 0


CREATE_COLLECTION = Method(_COLLECTIONS + "CreateCollection", collections_pb2.CreateCollectionResponse.FromString)
GET_COLLECTION = Method(_COLLECTIONS + "GetCollection", collections_pb2.GetCollectionResponse.FromString)
LIST_COLLECTIONS = Method(_COLLECTIONS + "ListCollections", collections_pb2.ListCollectionsResponse.FromString)
UPDATE_COLLECTION = Method(_COLLECTIONS + "UpdateCollection", collections_pb2.UpdateCollectionResponse.FromString)
DELETE_COLLECTION = Method(_COLLECTIONS + "DeleteCollection", collections_pb2.DeleteCollectionResponse.FromString)
COLLECTION_STATS = Method(_COLLECTIONS + "GetCollectionStats", collections_pb2.GetCollectionStatsResponse.FromString)
UPSERT = Method(_POINTS + "Upsert", points_pb2.UpsertResponse.FromString, _slots.keys_of_points)
UPSERT_STREAM = Method(_POINTS + "UpsertStream", points_pb2.UpsertStreamResponse.FromString)
UPSERT_BATCH = Method(_POINTS + "UpsertBatch", points_pb2.UpsertBatchResponse.FromString)
GET_BATCH = Method(_POINTS + "GetBatch", points_pb2.GetBatchResponse.FromString)
GET = Method(
    _POINTS + "Get",
    points_pb2.GetResponse.FromString,
    _slots.keys_of_get,
    read_field=read_field(points_pb2.GetRequest.DESCRIPTOR),
)
DELETE = Method(_POINTS + "Delete", points_pb2.DeleteResponse.FromString, _slots.keys_of_targets)
UPDATE_PAYLOAD = Method(_POINTS + "UpdatePayload", points_pb2.UpdatePayloadResponse.FromString, _slots.keys_of_targets)
QUERY = Method(
    _POINTS + "Query", points_pb2.QueryResponse.FromString, read_field=read_field(points_pb2.QueryRequest.DESCRIPTOR)
)
QUERY_BATCH = Method(
    _POINTS + "QueryBatch",
    points_pb2.QueryBatchResponse.FromString,
    read_field=read_field(points_pb2.QueryBatchRequest.DESCRIPTOR),
)
SCROLL = Method(
    _POINTS + "Scroll", points_pb2.ScrollResponse.FromString, read_field=read_field(points_pb2.ScrollRequest.DESCRIPTOR)
)
PIPELINE = Method(
    "/vecmem.v1.PipelineService/Pipeline", pipeline_pb2.PipelineResponse.FromString, _slots.keys_of_pipeline
)
PIPELINE_READ_FIELD: Final = pipeline_pb2.PipelineRequest.DESCRIPTOR.fields_by_name["read"].number
"""For pipelines that read alone."""
COMMIT = Method(
    "/vecmem.v1.TransactionService/Commit", transactions_pb2.CommitResponse.FromString, _slots.keys_of_transaction
)
WATCH = Method("/vecmem.v1.WatchService/Watch", watch_pb2.WatchResponse.FromString)
_CHANNELS = "/vecmem.v1.ChannelService/"
PUBLISH = Method(_CHANNELS + "Publish", channels_pb2.PublishResponse.FromString, _slots.keys_of_publication)
SUBSCRIBE = Method(_CHANNELS + "Subscribe", channels_pb2.SubscribeResponse.FromString)
LIST_CHANNELS = Method(_CHANNELS + "ListChannels", channels_pb2.ListChannelsResponse.FromString)
COUNT = Method(
    _POINTS + "Count", points_pb2.CountResponse.FromString, read_field=read_field(points_pb2.CountRequest.DESCRIPTOR)
)
SERVER_INFO = Method(_ADMIN + "GetServerInfo", admin_pb2.GetServerInfoResponse.FromString)
HAND_OVER = Method(_ADMIN + "HandOver", admin_pb2.HandOverResponse.FromString)
CREATE_CHECKPOINT = Method(_ADMIN + "CreateCheckpoint", admin_pb2.CreateCheckpointResponse.FromString)
GET_TOPOLOGY = Method(_CLUSTER + "GetTopology", cluster_pb2.GetTopologyResponse.FromString)
ADD_SHARD = Method(_CLUSTER + "AddShard", cluster_pb2.AddShardResponse.FromString)
REMOVE_SHARD = Method(_CLUSTER + "RemoveShard", cluster_pb2.RemoveShardResponse.FromString)
MOVE_SLOTS = Method(_CLUSTER + "MoveSlots", cluster_pb2.MoveSlotsResponse.FromString)
CANCEL_MIGRATIONS = Method(_CLUSTER + "CancelMigrations", cluster_pb2.CancelMigrationsResponse.FromString)
REBALANCE = Method(_CLUSTER + "Rebalance", cluster_pb2.RebalanceResponse.FromString)
