"""What goes into the client and what comes out of it: plain dataclasses, vectors as numpy arrays.

Classes that hold arrays compare by identity, because comparing arrays has no single answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from vecmem_client._filters import FilterLike
    from vecmem_client._values import PayloadLike
    from vecmem_client._vectors import VectorLike


class Metric(StrEnum):
    """How vectors are compared, and so what a score means."""

    COSINE = "cosine"
    """Cosine similarity in [-1, 1]; higher is nearer."""
    DOT = "dot"
    """Dot product; higher is nearer."""
    EUCLIDEAN = "euclidean"
    """Euclidean distance, >= 0; lower is nearer."""


@dataclass(frozen=True, slots=True)
class Position:
    """A point in the history of the store: everything up to record `sequence` of the shard's log."""

    shard: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Hnsw:
    """Approximate search over a graph. 0 means the server's default."""

    m: int = 0
    """Links a node, 4 to 128; default 16."""
    ef_construction: int = 0
    """Candidates considered on insertion, 8 to 4,096; default 200."""
    ef: int = 0
    """Candidates considered by a query that names none, 1 to 10,000; default 64."""


@dataclass(frozen=True, slots=True)
class Flat:
    """Exact search by a scan of every vector."""


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """One vector of a collection: `dimension` elements (1 to 16,384), how they are compared, how they are searched."""

    dimension: int
    metric: Metric | Literal["cosine", "dot", "euclidean"] = Metric.COSINE
    index: Hnsw | Flat = field(default_factory=Hnsw)


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as the server knows it, defaults filled in."""

    name: str
    vector: VectorConfig | None
    """The default vector, if the collection has one."""
    vectors: Mapping[str, VectorConfig]
    """Named vectors."""
    description: str
    uid: int
    """Identifies this collection for good: a later one of the same name has another."""
    created_at: datetime
    damage: str
    """What is wrong with it; empty when nothing is."""


@dataclass(frozen=True, slots=True)
class VectorStats:
    """Counts of one vector of a collection and of its index."""

    vector_count: int
    graph_row_count: int
    tail_row_count: int
    """Rows not yet in the graph, scanned exactly by every search."""
    graph_deleted_row_count: int
    rebuilding: bool
    arena_bytes: int
    graph_bytes: int


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """Counts of one collection; `vectors` by vector name, the default vector's being empty."""

    point_count: int
    payload_bytes: int
    vectors: Mapping[str, VectorStats]


@dataclass(slots=True, eq=False)
class Point:
    """A point to write.

    At least one vector is given: `vector` for the default one, `vectors` for named ones. From `expires_at` (with a
    time zone) on, the point is no longer there. `expected_version` makes the write conditional: 0 means only if no
    such point exists, another number only if the stored version is that one.
    """

    id: str
    vector: VectorLike | None = None
    payload: PayloadLike | None = None
    vectors: Mapping[str, VectorLike] | None = None
    expires_at: datetime | None = None
    expected_version: int | None = None


@dataclass(slots=True, eq=False)
class StoredPoint:
    """A point as stored."""

    id: str
    version: int
    """Grows with each change of the point."""
    payload_json: bytes
    """The payload as stored; empty when the request asked for none of it."""
    vector: NDArray[np.float32] | None = None
    """The default vector, shape (dimension,), where asked for."""
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Named vectors, where asked for."""
    expires_at: datetime | None = None
    _payload: dict[str, Any] | None = field(default=None, init=False, repr=False)

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, decoded on first access and then kept; empty when the request asked for none of it."""
        if self._payload is None:
            self._payload = json.loads(self.payload_json) if self.payload_json else {}
        return self._payload


@dataclass(slots=True, eq=False)
class Hit(StoredPoint):
    """A point found by a query, with what the metric says about it."""

    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Exclude:
    """A payload selection: everything but these dotted paths."""

    paths: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Query:
    """One search of a batch; the fields are the parameters of `Client.query`."""

    collection: str
    vector: VectorLike | None = None
    id: str | None = None
    limit: int = 10
    offset: int = 0
    using: str = ""
    filter: FilterLike | None = None
    score_threshold: float | None = None
    ef: int = 0
    exact: bool = False
    with_payload: bool | Sequence[str] | Exclude = True
    with_vectors: bool | Sequence[str] = False


@dataclass(frozen=True, slots=True)
class VersionConflict:
    """Why a conditional point was left as it is; `actual_version` is 0 when no such point exists."""

    id: str
    expected_version: int
    actual_version: int


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What an upsert did."""

    version: int
    """The version of every point written."""
    inserted_count: int
    updated_count: int
    conflicts: Sequence[VersionConflict]
    """Conditional points that were left as they are."""
    position: Position


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What a bulk load did."""

    point_count: int
    """Points acknowledged, conflicts included."""
    conflicts: Sequence[VersionConflict]
    position: Position | None
    """None when there was nothing to load."""
    reconnect_count: int
    """How often the connection was lost and the load resumed."""


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """How many points went."""

    deleted_count: int
    position: Position


@dataclass(frozen=True, slots=True)
class UpdatePayloadResult:
    """How many points carry the new payload, and their version."""

    updated_count: int
    version: int
    position: Position


@dataclass(frozen=True, slots=True)
class RecoveryInfo:
    """How the server found its data at start."""

    checkpoint_sequence: int
    replayed_record_count: int
    torn_tail_bytes: int
    duration_ms: float
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is and how it came up."""

    version: str
    started_at: datetime
    log_first_sequence: int
    log_last_sequence: int
    checkpoint_sequence: int
    collection_count: int
    point_count: int
    resident_memory_bytes: int
    read_only_reason: str
    """Why writes are refused; empty while they are not."""
    recovery: RecoveryInfo
    grpc_engine: str
    """What serves gRPC: native or grpcio; empty for an older server."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A published checkpoint."""

    sequence: int
    size_bytes: int
    duration_ms: float
    stall_ms: float
    """Longest time that the server did not answer because of it."""
