"""What goes into the client and what comes out of it: plain dataclasses, vectors as numpy arrays.

Classes that hold arrays compare by identity, because comparing arrays has no single answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from vecmem_client._errors import VecmemClientError
    from vecmem_client._filters import FilterLike
    from vecmem_client._values import PayloadLike
    from vecmem_client._vectors import VectorLike


StorageName: TypeAlias = Literal["float32", "float16"]
GraphCodeName: TypeAlias = Literal["int8", "float16", "float32", "binary"]
PayloadTypeName: TypeAlias = Literal["keyword", "integer", "float", "bool", "time"]


class Metric(StrEnum):
    """How vectors are compared, and so what a score means."""

    COSINE = "cosine"
    """Cosine similarity in [-1, 1]; higher is nearer."""
    DOT = "dot"
    """Dot product; higher is nearer."""
    EUCLIDEAN = "euclidean"
    """Euclidean distance, >= 0; lower is nearer."""


class Storage(StrEnum):
    """How the vectors of a collection are kept: what scores are computed from and what `with_vectors` returns."""

    FLOAT32 = "float32"
    """As they came, 4 bytes an element."""
    FLOAT16 = "float16"
    """Rounded to IEEE 754 binary16, 2 bytes an element; what lies beyond its range (65,504) is refused."""


class GraphCode(StrEnum):
    """What a graph holds of each vector. Hits are compared again with the stored vectors, so scores do not depend on it."""

    INT8 = "int8"
    """One byte an element, on a scale chosen for the collection."""
    FLOAT16 = "float16"
    """IEEE 754 binary16."""
    FLOAT32 = "float32"
    """The elements themselves."""
    BINARY = "binary"
    """One bit an element, its sign, compared by hamming distance."""


class PayloadType(StrEnum):
    """What most values at a payload path are; others are found all the same, a little slower."""

    KEYWORD = "keyword"
    """Strings."""
    INTEGER = "integer"
    """Whole numbers within int64."""
    FLOAT = "float"
    """Numbers."""
    BOOL = "bool"
    """True and false."""
    TIME = "time"
    """Strings that are RFC 3339 times."""


class QueryPlan(StrEnum):
    """How a query was answered."""

    SCAN = "scan"
    """Every vector that passes the filter was compared: exact."""
    CODE_SCAN = "code_scan"
    """The codes of all vectors that pass the filter were compared, and as many vectors as rounding leaves open: exact."""
    GRAPH = "graph"
    """The graph was searched; where there is a filter, under it."""


@dataclass(frozen=True, slots=True)
class Position:
    """A point in the history of the store: everything up to record `sequence` of the shard's log."""

    shard: int
    sequence: int


Demand: TypeAlias = Position | Sequence[Position] | None
"""What a reply has to reflect at least: nothing, one position, or those of several shards."""


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A shard whose part a reply lacks, and why."""

    shard: int
    error: VecmemClientError


@dataclass(frozen=True, slots=True)
class Hnsw:
    """Approximate search over a graph. 0 means the server's default."""

    m: int = 0
    """Links a node, 4 to 128; default 16."""
    ef_construction: int = 0
    """Candidates considered on insertion, 8 to 4,096; default 200."""
    ef: int = 0
    """Candidates considered by a query that names no effort, 1 to 10,000; 0: as many as `target_recall` takes."""
    graph: GraphCode | GraphCodeName | None = None
    """What the graph holds of each vector; None: the server chooses. A change takes effect by a rebuild in the background."""
    target_recall: float = 0.0
    """Recall that queries aim at where they name none, 0.5 to 1, where 1 means exact search; default 0.97.

    Not used where `ef` is set.
    """


@dataclass(frozen=True, slots=True)
class Flat:
    """Exact search by a scan of every vector."""


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """One vector of a collection: `dimension` elements (1 to 16,384), how they are compared, how they are searched."""

    dimension: int
    metric: Metric | Literal["cosine", "dot", "euclidean"] = Metric.COSINE
    index: Hnsw | Flat = field(default_factory=Hnsw)
    storage: Storage | StorageName | None = None
    """How the vectors are kept; None: float32."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as the server knows it, defaults filled in."""

    name: str
    vector: VectorConfig | None
    """The default vector, if the collection has one."""
    vectors: Mapping[str, VectorConfig]
    """Named vectors."""
    payload_indexes: Mapping[str, PayloadType]
    """Payload paths whose indexes are declared, and what is there."""
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
    storage: Storage | None
    """How the vectors are kept; None: an older server does not say."""
    graph: GraphCode | None
    """What the graph holds of each vector now; None: there is no graph yet."""
    measured_recall: float | None
    """Recall of live queries, measured on a sample of them; None while `measured_query_count` is 0."""
    measured_query_count: int
    """Queries measured since the server started."""
    calibrated_ef: int
    """Candidates that an unfiltered query for 10 hits considers now at the target recall; 0: not calibrated."""


@dataclass(frozen=True, slots=True)
class PayloadIndexStats:
    """Counts of one payload index."""

    path: str
    declared: bool
    """False: it was built when a filter first asked for the path."""
    point_count: int
    """Points that have the path."""
    bytes: int
    """Its size, estimated."""


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """Counts of one collection; `vectors` by vector name, the default vector's being empty."""

    point_count: int
    payload_bytes: int
    vectors: Mapping[str, VectorStats]
    payload_indexes: Sequence[PayloadIndexStats]
    """In order of their paths."""


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
class Explanation:
    """How a query was answered and why."""

    plan: QueryPlan | None
    """None: the server took one that this client does not know."""
    point_count: int
    """Points in the collection, expired and just deleted ones included."""
    matching_count: int
    """Of them those that pass the filter; without one, all."""
    ef: int
    """Candidates considered in the graph; 0: no graph was searched."""
    target_recall: float
    """Recall aimed at; 0: `ef` was given."""
    compared_count: int
    """Vectors, or codes of vectors, compared in the graph or in the scan."""
    tail_count: int
    """Points not yet in the graph that were compared beside."""
    graph_cost_us: float
    """What the planner expected of the graph, microseconds; 0: not considered."""
    scan_cost_us: float
    """What it expected of the cheaper scan, microseconds."""
    filter_paths: Sequence[str]
    """Payload paths that the filter read, in order."""


class Hits(Sequence[Hit]):
    """What a query found, best first, with the explanation where the query asked for one.

    Hits are taken out of the reply when somebody looks at the first; until then they keep the reply that they came in.
    """

    __slots__ = ("_source", "explanation")

    def __init__(
        self, hits: Iterable[Hit] | Callable[[], list[Hit]] = (), explanation: Explanation | None = None
    ) -> None:
        # One attribute for both states: threads that look at the same time may decode twice, and all is well.
        self._source: list[Hit] | Callable[[], list[Hit]] = hits if callable(hits) else list(hits)
        self.explanation = explanation

    def _hits(self) -> list[Hit]:
        source = self._source
        if not isinstance(source, list):
            source = self._source = source()
        return source

    def __len__(self) -> int:
        return len(self._hits())

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits())

    @overload
    def __getitem__(self, index: SupportsIndex) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Hit | list[Hit]:
        return self._hits()[index]

    def __eq__(self, other: object) -> bool:
        """Whether it holds the same hits as another sequence; hits compare by identity."""
        if not isinstance(other, Hits | list | tuple):
            return NotImplemented
        return self._hits() == list(other)

    __hash__ = None  # type: ignore[assignment]  # it compares by its elements, as lists do

    def __repr__(self) -> str:
        return f"Hits({self._hits()!r}, explanation={self.explanation!r})"

    def __reduce__(self) -> tuple[type[Hits], tuple[list[Hit], Explanation | None]]:
        return Hits, (self._hits(), self.explanation)


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
    target_recall: float = 0.0
    exact: bool = False
    explain: bool = False
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
class MemberInfo:
    """What part a node takes in its cluster."""

    node: str
    leads: bool
    """It takes writes, and answers for the shard."""
    owner: str
    """Address of the node that leads, as far as is known there; empty: it is not."""
    lease_age_ms: float
    """Since the lease was renewed last, as seen there; 0: never."""
    lag: int
    """Records that are known to be in the replicated log and not applied there yet."""


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
    failures: Mapping[str, str]
    """Background work that failed when it last ran, and is tried again, by name: why."""
    key_count: int
    key_memory_bytes: int
    """About what keys and their values take."""
    data_memory_bytes: int
    """About what keys and collections take together: what is compared with the limit."""
    memory_limit_bytes: int
    """0: there is no limit."""
    eviction_policy: str
    evicted_key_count: int
    """Since the server started."""
    member: MemberInfo | None = None
    """None: the server is alone."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A published checkpoint."""

    sequence: int
    size_bytes: int
    duration_ms: float
    stall_ms: float
    """Longest time that the server did not answer because of it."""
