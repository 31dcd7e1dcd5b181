"""Methods on points."""

# `id` and `filter` are the API's own words for these arguments.
# ruff: noqa: A002

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from vecmem.v1 import points_pb2
from vecmem_client import _coalescing, _methods, _replies, _requests
from vecmem_client._async.base import Base
from vecmem_client._async.bulk import BulkLoad
from vecmem_client._batches import Columns, batches_of_columns, batches_of_points

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from vecmem_client._batches import Batch
    from vecmem_client._errors import VecmemClientError
    from vecmem_client._filters import FilterLike
    from vecmem_client._progress import BulkProgress
    from vecmem_client._types import (
        BulkResult,
        DeleteResult,
        Demand,
        Exclude,
        Hits,
        Point,
        Query,
        ShardFailure,
        StoredPoint,
        UpdatePayloadResult,
        UpsertResult,
    )
    from vecmem_client._values import PayloadLike
    from vecmem_client._vectors import VectorLike


class PointMethods(Base):
    """PointService."""

    async def upsert(
        self,
        collection: str,
        points: Iterable[Point],
        *,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> UpsertResult:
        """Insert points or replace them whole, all or none: 1 to 10,000 in one atomic request, durable on return.

        Conditional points (`Point.expected_version`) that fail are listed in the result and left as they are.
        Raises CollectionNotFoundError, UnknownVectorError, DimensionMismatchError, InvalidVectorError,
        InvalidIdError, InvalidPayloadError, LimitExceededError.
        """
        request = _requests.upsert(collection, points, _requests.new_request_id(request_id))
        if request_id == "":  # nobody may send it twice, for whatever reason
            return _replies.upserted(await self._call(_methods.UPSERT, request, timeout_seconds, retriable=False))
        reply = await self._call_shared(_coalescing.UPSERT, request, timeout_seconds)
        return _replies.upserted(reply)

    async def upsert_bulk(
        self,
        collection: str,
        ids: Sequence[str],
        vectors: NDArray[Any] | Sequence[Sequence[float]] | Mapping[str, NDArray[Any]],
        payloads: Sequence[PayloadLike | None] | None = None,
        *,
        expires_at: datetime | Sequence[datetime | None] | None = None,
        batch_size: int = 500,
        window: int = 8,
        progress: Callable[[BulkProgress], None] | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> BulkResult:
        """Load many points given in columns; row i of each column belongs to `ids[i]`.

        `vectors` is an array of shape (rows, dimension) for the default vector, or a mapping from vector name to
        such arrays (the default vector's name is empty). `expires_at` is one time for all or one for each.

        Batches of `batch_size` points are atomic each, the load as a whole is not. At most `window` batches are
        unacknowledged at a time; after a lost connection they are sent again without being applied twice.
        `progress` is called after each acknowledgement, for instance `ProgressBar()`. Batch n has the request id
        `{request_id}-{n}`. `timeout_seconds` is the longest wait for one acknowledgement, not for the load.
        Raises what `upsert` raises, and ValueError when the columns do not fit together.
        """
        columns = Columns.check(ids, vectors, payloads, expires_at)
        batches = batches_of_columns(
            collection, columns, batch_size=batch_size, request_id=_requests.new_request_id(request_id)
        )
        return await self._load(batches, len(columns.ids), window, progress, timeout_seconds)

    async def upsert_stream(
        self,
        collection: str,
        points: Iterable[Point],
        *,
        total_count: int | None = None,
        batch_size: int = 500,
        window: int = 8,
        progress: Callable[[BulkProgress], None] | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> BulkResult:
        """Load any number of points from an iterable, which is read only as fast as the server takes them.

        `total_count` is for `progress` alone; the rest is as in `upsert_bulk`.
        """
        batches = batches_of_points(
            collection, points, batch_size=batch_size, request_id=_requests.new_request_id(request_id)
        )
        return await self._load(batches, total_count, window, progress, timeout_seconds)

    async def _load(
        self,
        batches: Iterator[Batch],
        total_count: int | None,
        window: int,
        progress: Callable[[BulkProgress], None] | None,
        timeout_seconds: float | None,
    ) -> BulkResult:
        load = BulkLoad(
            self._transport,
            self._retry,
            batches,
            total_count=total_count,
            window=window,
            timeout_seconds=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
            progress=progress,
            note_position=self._note_position,
        )
        return await load.run()

    async def get(
        self,
        collection: str,
        ids: Iterable[str],
        *,
        with_payload: bool | Sequence[str] | Exclude = True,
        with_vectors: bool | Sequence[str] = False,
        min_position: Demand = None,
        timeout_seconds: float | None = None,
    ) -> list[StoredPoint]:
        """Return points (1 to 10,000 ids) in the order asked for; missing ones are left out.

        `with_payload` is all (True), none (False), only some dotted paths, or `Exclude(paths)`. `with_vectors` is
        all, none, or some by name (the default vector's name is empty). Raises CollectionNotFoundError.
        """
        request = _requests.get(collection, ids, with_payload, with_vectors, min_position)
        reply = await self._call_shared(_coalescing.GET, request, timeout_seconds, min_position=min_position)
        return _replies.points(reply.points)

    async def delete(
        self,
        collection: str,
        *,
        ids: Iterable[str] | None = None,
        filter: FilterLike | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> DeleteResult:
        """Remove points by ids (1 to 10,000) or by filter, atomically; `all_of()` matches every point.

        Ids that do not exist are no error. Raises CollectionNotFoundError.
        """
        request = _requests.delete(collection, ids, filter, _requests.new_request_id(request_id))
        return _replies.deleted(await self._call(_methods.DELETE, request, timeout_seconds, retriable=request_id != ""))

    async def update_payload(
        self,
        collection: str,
        *,
        ids: Iterable[str] | None = None,
        filter: FilterLike | None = None,
        merge: PayloadLike | None = None,
        replace: PayloadLike | None = None,
        remove: Iterable[str] | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> UpdatePayloadResult:
        """Change payloads by ids or by filter, atomically; vectors and expiry stay.

        Exactly one change: `merge` adds or overwrites top-level keys, `replace` becomes the payload, `remove` takes
        dotted paths away. Ids and paths that do not exist are no error. Raises CollectionNotFoundError.
        """
        request = _requests.update_payload(
            collection, ids, filter, merge, replace, remove, _requests.new_request_id(request_id)
        )
        reply = await self._call(_methods.UPDATE_PAYLOAD, request, timeout_seconds, retriable=request_id != "")
        return _replies.payload_updated(reply)

    async def query(
        self,
        collection: str,
        vector: VectorLike | None = None,
        *,
        id: str | None = None,
        limit: int = 10,
        offset: int = 0,
        using: str = "",
        filter: FilterLike | None = None,
        score_threshold: float | None = None,
        ef: int = 0,
        target_recall: float = 0.0,
        exact: bool = False,
        explain: bool = False,
        with_payload: bool | Sequence[str] | Exclude = True,
        with_vectors: bool | Sequence[str] = False,
        min_position: Demand = None,
        allow_partial: list[ShardFailure] | None = None,
        timeout_seconds: float | None = None,
    ) -> Hits:
        """Find the points nearest to `vector`, or to the stored point `id`, which is left out; best first.

        `limit` is 1 to 10,000, and `offset + limit` too. `using` names the vector to compare with; empty is the
        default one. `score_threshold` keeps scores >= it for cosine and dot, <= it for euclidean. `target_recall`
        (0.5 to 1) is the share of the true nearest to aim at, and `ef` the number of candidates considered in the
        graph (1 to 10,000), which takes precedence; both 0: what the collection says. `exact` compares with every
        vector that passes the filter. With `explain` the result's `explanation` says how the query was answered.
        Selections are as in `get`. `allow_partial` is as in `count`.
        Raises CollectionNotFoundError, PointNotFoundError, UnknownVectorError, DimensionMismatchError,
        InvalidVectorError, InvalidFilterError, LimitExceededError.
        """
        request = points_pb2.QueryRequest()
        _requests.set_query(
            request.query,
            collection,
            vector,
            id,
            limit,
            offset,
            using,
            filter,
            score_threshold,
            ef,
            target_recall,
            exact,
            explain,
            with_payload,
            with_vectors,
        )
        if min_position is not None:
            _requests.set_read(request, min_position)
        if allow_partial is not None:
            request.read.allow_partial = True
            alone = await self._call(_methods.QUERY, request, timeout_seconds)
            allow_partial[:] = _replies.failures(alone.header)
            return _replies.hits(alone, with_vectors=with_vectors is not False)
        reply = await self._call_shared(
            _coalescing.QUERY, request, timeout_seconds, min_position=min_position, exact=exact or target_recall >= 1
        )
        return _replies.hits(reply, with_vectors=with_vectors is not False)

    @overload
    async def query_batch(
        self,
        queries: Iterable[Query],
        *,
        return_exceptions: Literal[False] = False,
        min_position: Demand = None,
        allow_partial: list[ShardFailure] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Hits]: ...
    @overload
    async def query_batch(
        self,
        queries: Iterable[Query],
        *,
        return_exceptions: Literal[True],
        min_position: Demand = None,
        allow_partial: list[ShardFailure] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Hits | VecmemClientError]: ...
    async def query_batch(
        self,
        queries: Iterable[Query],
        *,
        return_exceptions: bool = False,
        min_position: Demand = None,
        allow_partial: list[ShardFailure] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Hits] | list[Hits | VecmemClientError]:
        """Run 1 to 1,024 queries of any collections in one call; results are in their order.

        Each query has its own outcome: with `return_exceptions` a failed one puts its exception in its place,
        without it the first failure is raised. `allow_partial` is as in `count`, for all of them together.
        """
        request = _requests.query_batch(queries, min_position)
        if allow_partial is not None:
            request.read.allow_partial = True
        reply = await self._call(_methods.QUERY_BATCH, request, timeout_seconds)
        if allow_partial is not None:
            allow_partial[:] = _replies.failures(reply.header)
        return _replies.outcomes(reply.outcomes, return_exceptions)

    async def scroll(
        self,
        collection: str,
        *,
        filter: FilterLike | None = None,
        page_size: int = 100,
        with_payload: bool | Sequence[str] | Exclude = True,
        with_vectors: bool | Sequence[str] = False,
        min_position: Demand = None,
        allow_partial: list[ShardFailure] | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncIterator[StoredPoint]:
        """Walk over all points that match in order of their ids, fetching pages (1 to 10,000 points) as needed.

        A point that exists during the whole walk comes exactly once, whatever is written meanwhile. The timeout is
        a page's. `allow_partial` is as in `count`: failures of all pages are added. Raises CollectionNotFoundError.
        """
        request = _requests.scroll(collection, filter, page_size, with_payload, with_vectors, min_position)
        if allow_partial is not None:
            request.read.allow_partial = True
        while True:
            reply = await self._call(_methods.SCROLL, request, timeout_seconds)
            if allow_partial is not None:
                allow_partial.extend(_replies.failures(reply.header))
            for point in _replies.points(reply.points):
                yield point
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    async def count(
        self,
        collection: str,
        *,
        filter: FilterLike | None = None,
        min_position: Demand = None,
        allow_partial: list[ShardFailure] | None = None,
        timeout_seconds: float | None = None,
    ) -> int:
        """Count the points that match, exactly. Raises CollectionNotFoundError.

        With a list as `allow_partial`, shards of a cluster that do not answer in time are left out; the list is filled with them, and is
        empty where all have answered. Without one the call fails then.
        """
        request = _requests.count(collection, filter, min_position)
        if allow_partial is not None:
            request.read.allow_partial = True
        reply = await self._call(_methods.COUNT, request, timeout_seconds)
        if allow_partial is not None:
            allow_partial[:] = _replies.failures(reply.header)
        return reply.count
