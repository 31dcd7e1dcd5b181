"""Search lanes: queries that arrive while others are searched are taken together into one native call.

Every index has a lane, a queue of queries. A lane that is idle searches at once; one that is busy takes all that have come meanwhile, up
to `BATCH_QUERIES_MAX`, when it is done. Busy lanes take turns at the search threads, so that no collection waits for all queries of
another. No more than `limits.SEARCH_QUEUE_MAX` queries wait; those whose caller has gone, or whose deadline has passed, are dropped when
their turn comes.

A batch sees the state at one position. The event loop takes the snapshot (a view of the rows and the bits of the filters), a thread
searches, and the event loop reads the hits' payloads. If a hit of a filtered query has got another payload meanwhile, that query runs
again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field

from vecmem import limits
from vecmem.errors import DeadlineExceededError, OverloadedError, PointNotFoundError, VecmemError
from vecmem.index.field_path import FieldPath
from vecmem.index.rows import RowView, row_array
from vecmem.index.vector_index import SearchRequest, SearchResult, VectorIndex
from vecmem.store import wire
from vecmem.store.collection import Collection
from vecmem.store.explaining import explanation
from vecmem.store.reading import SLICE_POINTS, ReplySize
from vecmem.store.search import CompiledQuery
from vecmem.store.shard import Shard

BATCH_QUERIES_MAX = 64
"""Queries searched together; others of the lane wait for so many at the most before it is another lane's turn."""
ATTEMPTS_IN_THREADS = 4
"""After so many runs that writes overtook, a query runs on the event loop, where nothing overtakes it."""
BURST_SECONDS = 0.0002
"""A lane idle for less may be in the middle of a burst: the next query waits until those that have arrived with it are queued."""


@dataclass(slots=True, eq=False)
class Answer:
    """Hits of a query, best first, each a serialized Hit. Never changed; not `frozen`, which each search would pay for."""

    hits: list[bytes]
    explanation: bytes | None
    """A serialized Explanation, where the query asks for one."""


Outcome = Answer | VecmemError


class _Call:
    """The queries of one RPC that are on their way. `deadline` is of time.monotonic(); None: there is none."""

    def __init__(self, deadline: float | None, count: int) -> None:
        self.deadline = deadline
        self.reply = ReplySize()
        self.outcomes: list[Outcome | None] = [None] * count
        self.sequence: int | None = None
        self.outstanding = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def finish_one(self, sequence: int) -> None:
        self.sequence = sequence if self.sequence is None else min(self.sequence, sequence)
        self.outstanding -= 1
        if not self.outstanding and not self.done.done():
            self.done.set_result(None)


@dataclass(slots=True, eq=False)
class _Waiting:
    """One query of a call, the `place`-th."""

    query: CompiledQuery
    call: _Call
    place: int

    def is_wanted(self) -> bool:
        """Whether somebody still waits for it; tells the call whose deadline has passed."""
        call = self.call
        if call.deadline is not None and time.monotonic() >= call.deadline:
            call.fail(DeadlineExceededError("the deadline passed before the search began"))
        return not call.done.done()


@dataclass(slots=True, eq=False)
class _Lane:
    index: VectorIndex
    queue: deque[_Waiting] = field(default_factory=deque)
    is_active: bool = False
    idle_since: float = 0.0

    def take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self.queue and len(batch) < BATCH_QUERIES_MAX:
            waiting = self.queue.popleft()
            if waiting.is_wanted():
                batch.append(waiting)
        return batch


class SearchLanes:
    """The queries of one shard on their way. `executor` has as many threads as there are searches at a time, `threads`."""

    def __init__(self, shard: Shard, executor: Executor, threads: int) -> None:
        self._shard = shard
        self._executor = executor
        self._threads = threads
        self._turns = asyncio.Semaphore(threads)
        self._lanes: dict[VectorIndex, _Lane] = {}
        self._waiting_count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, queries: Sequence[CompiledQuery], deadline: float | None) -> tuple[int, list[Outcome]]:
        """Run the queries of one call.

        Returns the smallest sequence that the answers reflect and, for each query, its answer or why it failed. Raises LimitExceededError
        when all hits together are more than a reply may hold, OverloadedError, DeadlineExceededError.
        """
        call = _Call(deadline, len(queries))
        # A large call takes its turn like everybody else: no more than a batch of it waits in the lanes at a time.
        for start in range(0, len(queries), BATCH_QUERIES_MAX):
            part = queries[start : start + BATCH_QUERIES_MAX]
            if self._waiting_count + len(part) > limits.SEARCH_QUEUE_MAX:
                raise OverloadedError(f"{self._waiting_count} queries wait to be searched already")
            call.outstanding = len(part)
            if start:
                call.done = asyncio.get_running_loop().create_future()
            for place, query in enumerate(part, start):
                self._enqueue(_Waiting(query, call, place))
            await call.done
        sequence = self._shard.applied_sequence if call.sequence is None else call.sequence
        return sequence, [outcome for outcome in call.outcomes if outcome is not None]

    def _enqueue(self, waiting: _Waiting) -> None:
        index = waiting.query.index
        lane = self._lanes.get(index)
        if lane is None:
            lane = self._lanes[index] = _Lane(index)
        lane.queue.append(waiting)
        self._waiting_count += 1
        if lane.is_active:
            return
        lane.is_active = True
        loop = asyncio.get_running_loop()
        if waiting.call.outstanding == 1 and time.monotonic() - lane.idle_since > BURST_SECONDS:
            self._begin(lane)
        else:
            loop.call_soon(self._begin, lane)

    def _begin(self, lane: _Lane) -> None:
        """Search a lane that was idle: at once where that is quick, else in a task."""
        batch = self._take(lane)
        if not lane.queue and self._search_quickly(batch):
            self._rest(lane)
            return
        task = asyncio.create_task(self._serve(lane, batch), name="search lane")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self, lane: _Lane) -> list[_Waiting]:
        before = len(lane.queue)
        batch = lane.take()
        self._waiting_count -= before - len(lane.queue)
        return batch

    def _rest(self, lane: _Lane) -> None:
        lane.is_active = False
        lane.idle_since = time.monotonic()
        # A collection may be gone by now; a lane costs nothing to make again.
        del self._lanes[lane.index]

    async def _serve(self, lane: _Lane, batch: list[_Waiting]) -> None:
        """Search batch after batch until the queue is empty."""
        try:
            while True:
                async with self._turns:
                    await self._search(batch)
                batch = []
                if not lane.queue:
                    return
                batch = self._take(lane)
        finally:
            self._rest(lane)

    # -- one batch -----------------------------------------------------------------------------------------------------------

    def _search_quickly(self, batch: list[_Waiting]) -> bool:
        """Answer a small batch here and now: a thread and back would cost as much. False: it cannot be done, or takes too long."""
        if not batch:
            return True
        collection = batch[0].query.collection
        if _must_wait(batch) or any(waiting.query.compiled is not None for waiting in batch):
            return False
        sequence, view, ticket = self._look(collection)
        try:
            requests = [_request(waiting.query, view) for waiting in batch]
            asked = [request for request in requests if isinstance(request, SearchRequest)]
            index = batch[0].query.index
            results = index.search_if_quick(asked, view, threads=self._threads) if asked else []
            if results is None:
                return False
            found = iter(results)
            for waiting, request in zip(batch, requests, strict=True):
                self._finish(waiting, next(found) if isinstance(request, SearchRequest) else request, sequence)
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            for waiting in batch:
                waiting.call.fail(error)
        finally:
            collection.rows.readers.end(ticket)
        return True

    async def _search(self, batch: list[_Waiting]) -> None:
        """Search a batch, all of one collection, and tell the callers."""
        try:
            with ExitStack() as pinned:
                paths = {path for waiting in batch if waiting.query.compiled for path in waiting.query.compiled.paths}
                if paths:
                    pinned.enter_context(batch[0].query.collection.payloads.pinned(paths))
                for attempt in range(ATTEMPTS_IN_THREADS + 1):
                    if not batch:
                        return
                    batch = await self._search_once(batch, paths, in_thread=attempt < ATTEMPTS_IN_THREADS)
            assert not batch, "nothing overtakes a search on the event loop"
        except BaseException as error:
            for waiting in batch:
                waiting.call.fail(error)
            if not isinstance(error, Exception):
                raise

    async def _search_once(self, batch: list[_Waiting], paths: set[FieldPath], *, in_thread: bool) -> list[_Waiting]:
        """Search a batch at a snapshot of now; returns the queries that a write overtook."""
        collection = batch[0].query.collection
        if paths:
            await self._shard.ensure_columns(collection, paths)
        if self._shard.state.committing or _must_wait(batch):
            await self._shard.settled(collection)
        # From here to the search nothing else runs.
        sequence, view, ticket = self._look(collection)
        version = sequence + self._shard.state.version_offset
        try:
            searched: list[_Waiting] = []
            requests: list[SearchRequest] = []
            for waiting in batch:
                request = _request(waiting.query, view)
                if isinstance(request, VecmemError):
                    self._finish(waiting, request, sequence)
                else:
                    searched.append(waiting)
                    requests.append(request)
            if not requests:
                return []
            index = batch[0].query.index
            if in_thread:
                loop = asyncio.get_running_loop()
                results = await loop.run_in_executor(
                    self._executor, _search_index, index, requests, view, self._threads
                )
                if self._shard.state.committing or _must_wait(batch):
                    await self._shard.settled(collection)
            else:
                results = index.search(requests, view, threads=self._threads)
            overtaken: list[_Waiting] = []
            for waiting, result in zip(searched, results, strict=True):
                if in_thread and _was_overtaken(waiting.query, result, version):
                    overtaken.append(waiting)
                else:
                    self._finish(waiting, result, sequence)
            return overtaken
        finally:
            collection.rows.readers.end(ticket)

    def _look(self, collection: Collection) -> tuple[int, RowView, int]:
        """What a search beginning now sees: the sequence, the view, and the ticket to give back to the readers."""
        sequence = self._shard.applied_sequence
        return sequence, collection.view(sequence, self._shard.now_unix_ms()), collection.rows.readers.begin()

    def _finish(self, waiting: _Waiting, outcome: SearchResult | VecmemError, sequence: int) -> None:
        call = waiting.call
        if call.done.done():
            return
        if isinstance(outcome, VecmemError):
            call.outcomes[waiting.place] = outcome
        else:
            try:
                hits = _encode(waiting.query, outcome, call.reply)
            except VecmemError as error:
                call.fail(error)
                return
            query = waiting.query
            told = explanation(outcome, query.compiled).SerializeToString() if query.explain else None
            call.outcomes[waiting.place] = Answer(hits, told)
        call.finish_one(sequence)


def _must_wait(batch: list[_Waiting]) -> bool:
    """Whether a record is applied to the collection in part and these queries would see it.

    What goes by rows alone does not: the snapshot hides rows that come, and keeps rows that go with their ids and payloads. So queries
    are quick beside a load.
    """
    collection = batch[0].query.collection
    if not collection.changing or collection.rewriting:
        return collection.changing
    return any(waiting.query.compiled is not None or waiting.query.vector is None for waiting in batch)


def _search_index(index: VectorIndex, requests: list[SearchRequest], view: RowView, threads: int) -> list[SearchResult]:
    return index.search(requests, view, threads=threads)


def _request(query: CompiledQuery, view: RowView) -> SearchRequest | VecmemError:
    """What to ask of the index, or why it cannot be asked."""
    collection = query.collection
    vector = query.vector
    if vector is None:
        row = collection.find(query.nearest_id, view.now_unix_ms)
        if row is None or not query.index.arena.present(row + 1)[row]:
            what = "no point" if row is None else f"no vector {query.using!r} in point"
            return PointNotFoundError(f"there is {what} {query.nearest_id[:200]!r}")
        vector = query.index.arena.gather(row_array(row))[0]
    return SearchRequest(
        query=vector,
        # The point itself comes first among its own neighbours and is taken out again.
        limit=query.offset + query.limit + bool(query.nearest_id),
        allowed=None if query.compiled is None else collection.matching_rows(query.compiled, view),
        ef=query.ef,
        exact=query.exact,
        target_recall=query.target_recall,
    )


def _was_overtaken(query: CompiledQuery, result: SearchResult, version: int) -> bool:
    """Whether a hit's payload was changed after the snapshot, so that it may not match the filter any more.

    `version` is the greatest that a point could have at the snapshot.
    """
    if query.compiled is None:
        return False
    versions = query.collection.rows.versions
    return any(versions[row] > version for row in result.rows)


def _encode(query: CompiledQuery, result: SearchResult, reply: ReplySize) -> list[bytes]:
    """The hits, serialized. Raises LimitExceededError when the reply is full."""
    rows, scores = result.rows, result.scores
    if query.nearest_id or query.score_threshold is not None:
        kept = [place for place in range(len(rows)) if _is_kept(query, rows[place], scores[place])]
        rows, scores = [rows[place] for place in kept], [scores[place] for place in kept]
    end = min(query.offset + query.limit, len(rows))
    encoded: list[bytes] = []
    for start in range(query.offset, end, SLICE_POINTS):
        stop = min(start + SLICE_POINTS, end)
        hits = wire.hits(query.selection.encode(query.collection, rows[start:stop]), scores[start:stop])
        reply.grow(hits, "limit")
        encoded += hits
    return encoded


def _is_kept(query: CompiledQuery, row: int, score: float) -> bool:
    """Whether a row found is a hit: not the point whose neighbours are wanted, and near enough."""
    if query.nearest_id and query.collection.rows.ids[row] == query.nearest_id:
        return False
    threshold = query.score_threshold
    if threshold is None:
        return True
    return score >= threshold if query.index.arena.metric.higher_is_nearer else score <= threshold
