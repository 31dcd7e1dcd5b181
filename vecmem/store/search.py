"""Queries: checked, run in threads at a snapshot, and turned into hits.

A query sees the state at one position. The event loop takes the snapshot (a view of the rows and the mask of its filter), a
thread searches, and the event loop reads the hits' payloads. If a hit of a filtered query has got another payload
meanwhile, the query runs again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError, PointNotFoundError, VecmemError
from vecmem.index.field_path import FieldPath
from vecmem.index.filter import CompiledFilter, compile_filter
from vecmem.index.metric import Float32Array
from vecmem.index.rows import RowView, row_array
from vecmem.index.vector_index import SearchRequest, SearchResult, VectorIndex
from vecmem.store import wire
from vecmem.store.collection import Collection
from vecmem.store.reading import SLICE_POINTS, PointSelection, ReplySize, compile_selection
from vecmem.store.shard import Shard
from vecmem.store.validation import dense_values, query_vector, vector_of
from vecmem.v1 import common_pb2, points_pb2

ATTEMPTS_IN_THREADS = 4
"""After so many runs that writes overtook, a query runs on the event loop, where nothing overtakes it."""

CHUNK_QUERIES = 16
"""Queries that run at one snapshot, in one thread: what is lost when their caller goes."""
CHUNKS_AT_ONCE = 4

AddHits = Callable[[list[bytes]], object]
"""Takes some of the hits of a query, each a serialized Hit."""


@dataclass(slots=True, eq=False)
class CompiledQuery:
    """A checked query, never changed (`frozen` would cost each query some microseconds). `vector` None: that of the point `nearest_id`."""

    collection: Collection
    index: VectorIndex
    using: str
    vector: Float32Array | None
    nearest_id: str
    compiled: CompiledFilter | None
    limit: int
    offset: int
    score_threshold: float | None
    ef: int
    exact: bool
    selection: PointSelection


@dataclass(slots=True, eq=False)
class _Snapshot:
    """One query's part of a run in a thread. `request` None: there is nothing to search for, see `error`."""

    query: CompiledQuery
    view: RowView | None
    request: SearchRequest | None
    error: VecmemError | None = None

    def is_quick(self) -> bool:
        return self.request is None or self.query.index.is_quick(self.request)

    def search(self) -> SearchResult | VecmemError:
        if self.error is not None or self.request is None or self.view is None:
            return self.error or VecmemError("a snapshot without a request")
        return self.query.index.search(self.request, self.view)


def compile_query(shard: Shard, query: points_pb2.Query, field: str = "query") -> CompiledQuery:
    """Check a query against the state.

    Raises CollectionNotFoundError, CollectionDamagedError or an InvalidArgumentError that names the field.
    """
    collection = shard.state.collection(query.collection)
    if query.WhichOneof("kind") != "nearest":
        raise InvalidArgumentError("no kind of query is set", field=f"{field}.nearest")
    using = query.using
    parameters = vector_of(collection, using, f"{field}.using")
    nearest = query.nearest
    vector: Float32Array | None = None
    encoding: common_pb2.VectorEncoding.ValueType = common_pb2.VECTOR_ENCODING_PACKED
    match nearest.WhichOneof("kind"):
        case "vector":
            place = f"{field}.nearest.vector"
            given = nearest.vector
            vector = query_vector(dense_values(given, place), parameters, place)
            if given.dense.values:
                encoding = common_pb2.VECTOR_ENCODING_VALUES
        case "id":
            if not nearest.id:
                raise InvalidArgumentError("is empty", field=f"{field}.nearest.id")
        case _:
            raise InvalidArgumentError("neither vector nor id is set", field=f"{field}.nearest")
    if not query.limit:
        raise InvalidArgumentError("0 hits wanted; at least 1", field=f"{field}.limit")
    if query.offset + query.limit > limits.HITS_MAX:
        raise LimitExceededError(
            f"offset {query.offset} + limit {query.limit} is more than {limits.HITS_MAX}", field=f"{field}.limit"
        )
    if query.params.ef > limits.EF_MAX:
        raise LimitExceededError(f"{query.params.ef} is more than {limits.EF_MAX}", field=f"{field}.params.ef")
    threshold = query.score_threshold if query.HasField("score_threshold") else None
    if threshold is not None and math.isnan(threshold):
        raise InvalidArgumentError("is NaN", field=f"{field}.score_threshold")
    return CompiledQuery(
        collection=collection,
        index=collection.vectors[using],
        using=using,
        vector=vector,
        nearest_id=nearest.id if vector is None else "",
        compiled=compile_filter(query.filter, f"{field}.filter") if query.HasField("filter") else None,
        limit=query.limit,
        offset=query.offset,
        score_threshold=threshold,
        ef=query.params.ef,
        exact=query.params.exact,
        selection=compile_selection(
            collection,
            query.with_payload if query.HasField("with_payload") else None,
            query.with_vectors if query.HasField("with_vectors") else None,
            request_encoding=encoding,
            field=f"{field}.",
        ),
    )


async def run_queries(
    shard: Shard, executor: Executor, queries: Sequence[tuple[CompiledQuery, AddHits]]
) -> tuple[int, list[VecmemError | None]]:
    """Run queries and give each one's `AddHits` its hits, best first.

    Many queries are run in chunks, each at a snapshot of its own, on as many threads as the executor has; none is begun
    when the caller is gone. Returns the smallest sequence that the hits reflect and, for each query, why it failed.
    Raises LimitExceededError when all hits together are more than a reply may hold.
    """
    reply = ReplySize()
    if len(queries) <= CHUNK_QUERIES:
        return await _run_chunk(shard, executor, queries, reply)
    at_once = asyncio.Semaphore(CHUNKS_AT_ONCE)

    async def run(start: int) -> tuple[int, list[VecmemError | None]]:
        async with at_once:
            return await _run_chunk(shard, executor, queries[start : start + CHUNK_QUERIES], reply)

    chunks = [asyncio.create_task(run(start)) for start in range(0, len(queries), CHUNK_QUERIES)]
    try:
        outcomes = await asyncio.gather(*chunks)
    finally:
        for chunk in chunks:
            chunk.cancel()
    return min(sequence for sequence, _ in outcomes), [error for _, errors in outcomes for error in errors]


async def _run_chunk(
    shard: Shard, executor: Executor, queries: Sequence[tuple[CompiledQuery, AddHits]], reply: ReplySize
) -> tuple[int, list[VecmemError | None]]:
    """Run queries at one snapshot."""
    shard.note_search()
    paths: dict[Collection, set[FieldPath]] = {}
    for query, _ in queries:
        if query.compiled is not None:
            paths.setdefault(query.collection, set()).update(query.compiled.paths)
    with ExitStack() as pinned:
        for collection, wanted in paths.items():
            pinned.enter_context(collection.payloads.pinned(wanted))
        for attempt in range(ATTEMPTS_IN_THREADS + 1):
            for collection, wanted in paths.items():
                await shard.ensure_columns(collection, wanted)
            await _settled(shard, queries)
            # From here to the search nothing else runs.
            searcher = executor if attempt < ATTEMPTS_IN_THREADS else None
            done = await _run_at_snapshot(shard, searcher, queries, reply)
            if done is not None:
                return done
    raise AssertionError("the last attempt cannot be overtaken")


async def _run_at_snapshot(
    shard: Shard, executor: Executor | None, queries: Sequence[tuple[CompiledQuery, AddHits]], reply: ReplySize
) -> tuple[int, list[VecmemError | None]] | None:
    """Run queries at the snapshot of now; None when a write overtook them. Without an executor none can."""
    sequence = shard.applied_sequence
    now_unix_ms = shard.now_unix_ms()
    tickets = [(query.collection.rows.readers, query.collection.rows.readers.begin()) for query, _ in queries]
    try:
        snapshots = [_take_snapshot(query, sequence, now_unix_ms) for query, _ in queries]
        if executor is None or (len(snapshots) == 1 and snapshots[0].is_quick()):
            results = _search_all(snapshots)
        else:
            results = await asyncio.get_running_loop().run_in_executor(executor, _search_all, snapshots)
            await _settled(shard, queries)
        if any(map(_was_overtaken, snapshots, results)):
            return None
        errors = [
            _fill(snapshot, result, add_hits, reply)
            for snapshot, result, (_, add_hits) in zip(snapshots, results, queries, strict=True)
        ]
        return sequence, errors
    finally:
        for readers, ticket in tickets:
            readers.end(ticket)


async def _settled(shard: Shard, queries: Sequence[tuple[CompiledQuery, AddHits]]) -> None:
    """Return when none of the queries' collections is changed in part."""
    while changing := [query.collection for query, _ in queries if query.collection.changing]:
        await shard.settled(changing[0])


def _take_snapshot(query: CompiledQuery, sequence: int, now_unix_ms: int) -> _Snapshot:
    collection = query.collection
    vector = query.vector
    if vector is None:
        row = collection.find(query.nearest_id, now_unix_ms)
        if row is None or not query.index.arena.present(row + 1)[row]:
            what = "no point" if row is None else f"no vector {query.using!r} in point"
            return _Snapshot(query, None, None, PointNotFoundError(f"there is {what} {query.nearest_id[:200]!r}"))
        vector = query.index.arena.gather(row_array(row))[0]
    request = SearchRequest(
        query=vector,
        # The point itself comes first among its own neighbours and is taken out again.
        limit=query.offset + query.limit + bool(query.nearest_id),
        allowed=None if query.compiled is None else collection.filter_mask(query.compiled),
        ef=query.ef,
        exact=query.exact,
    )
    return _Snapshot(query, collection.view(sequence, now_unix_ms), request)


def _search_all(snapshots: Sequence[_Snapshot]) -> list[SearchResult | VecmemError]:
    return [snapshot.search() for snapshot in snapshots]


def _was_overtaken(snapshot: _Snapshot, result: SearchResult | VecmemError) -> bool:
    """Whether a hit's payload was changed after the snapshot, so that it may not match the filter any more."""
    if isinstance(result, VecmemError) or snapshot.view is None or snapshot.query.compiled is None:
        return False
    versions = snapshot.query.collection.rows.versions
    return any(versions[row] > snapshot.view.sequence for row in result.rows)


def _fill(
    snapshot: _Snapshot, result: SearchResult | VecmemError, add_hits: AddHits, reply: ReplySize
) -> VecmemError | None:
    if isinstance(result, VecmemError):
        return result
    query = snapshot.query
    ids = query.collection.rows.ids
    hits = list(zip(result.rows, result.scores, strict=True))
    if query.nearest_id:
        hits = [hit for hit in hits if ids[hit[0]] != query.nearest_id]
    if query.score_threshold is not None:
        if query.index.arena.metric.higher_is_nearer:
            hits = [hit for hit in hits if hit[1] >= query.score_threshold]
        else:
            hits = [hit for hit in hits if hit[1] <= query.score_threshold]
    for start in range(query.offset, min(query.offset + query.limit, len(hits)), SLICE_POINTS):
        some = hits[start : min(start + SLICE_POINTS, query.offset + query.limit)]
        points = query.selection.encode(query.collection, [row for row, _ in some])
        encoded = wire.hits(points, [score for _, score in some])
        reply.grow(encoded, "limit")
        add_hits(encoded)
    return None
