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
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field

from vecmem import limits
from vecmem.errors import DeadlineExceededError, OverloadedError, PointNotFoundError, VecmemError
from vecmem.index.field_path import FieldPath
from vecmem.index.rows import RowView, row_array
from vecmem.index.vector_index import SearchRequest, SearchResult, VectorIndex
from vecmem.store.collection import Collection
from vecmem.store.explaining import explanation
from vecmem.store.reading import ReplySize
from vecmem.store.search import CompiledQuery
from vecmem.store.shard import Shard
from vecmem.v1 import points_pb2

BATCH_QUERIES_MAX = 64
"""Queries searched together; others of the lane wait for so many at the most before it is another lane's turn."""
ATTEMPTS_IN_THREADS = 4
"""After so many runs that writes overtook, a query runs on the event loop, where nothing overtakes it."""
BURST_SECONDS = 0.0002
"""A lane idle for less may be in the middle of a burst: the next query waits until those that have arrived with it are queued."""

AddHit = Callable[[], points_pb2.Hit]


class _Call:
    """The queries of one RPC that are on their way. `deadline` is of time.monotonic(); None: there is none."""

    def __init__(self, deadline: float | None, count: int) -> None:
        self.deadline = deadline
        self.reply = ReplySize()
        self.errors: list[VecmemError | None] = [None] * count
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
    add_hit: AddHit
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

    async def run(
        self, queries: Sequence[tuple[CompiledQuery, AddHit]], deadline: float | None
    ) -> tuple[int, list[VecmemError | None]]:
        """Run the queries of one call and fill a message from each one's `AddHit` for every hit, best first.

        Returns the smallest sequence that the hits reflect and, for each query, why it failed. Raises LimitExceededError when all hits
        together are more than a reply may hold, OverloadedError, DeadlineExceededError.
        """
        self._shard.note_search()
        call = _Call(deadline, len(queries))
        # A large call takes its turn like everybody else: no more than a batch of it waits in the lanes at a time.
        for start in range(0, len(queries), BATCH_QUERIES_MAX):
            part = queries[start : start + BATCH_QUERIES_MAX]
            if self._waiting_count + len(part) > limits.SEARCH_QUEUE_MAX:
                raise OverloadedError(f"{self._waiting_count} queries wait to be searched already")
            call.outstanding = len(part)
            if start:
                call.done = asyncio.get_running_loop().create_future()
            for place, (query, add_hit) in enumerate(part, start):
                self._enqueue(_Waiting(query, add_hit, call, place))
            await call.done
        return self._shard.applied_sequence if call.sequence is None else call.sequence, call.errors

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
        if len(batch) == 1 and not lane.queue and self._search_quickly(batch[0]):
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

    def _search_quickly(self, waiting: _Waiting) -> bool:
        """Answer one query here and now: a thread and back would cost as much. False: it cannot be done, or takes too long."""
        query = waiting.query
        collection = query.collection
        if collection.changing or query.compiled is not None:
            return False
        sequence, view, ticket = self._look(collection)
        try:
            request = _request(query, view)
            if isinstance(request, SearchRequest) and not query.index.is_quick([request]):
                return False
            outcome = request if isinstance(request, VecmemError) else query.index.search([request], view)[0]
            self._finish(waiting, outcome, sequence)
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
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
        await self._shard.settled(collection)
        # From here to the search nothing else runs.
        sequence, view, ticket = self._look(collection)
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
                await self._shard.settled(collection)
            else:
                results = index.search(requests, view, threads=self._threads)
            overtaken: list[_Waiting] = []
            for waiting, result in zip(searched, results, strict=True):
                if in_thread and _was_overtaken(waiting.query, result, sequence):
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
            call.errors[waiting.place] = outcome
        else:
            try:
                _fill(waiting.query, outcome, waiting.add_hit, call.reply)
            except VecmemError as error:
                call.fail(error)
                return
        call.finish_one(sequence)


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
    )


def _was_overtaken(query: CompiledQuery, result: SearchResult, sequence: int) -> bool:
    """Whether a hit's payload was changed after the snapshot, so that it may not match the filter any more."""
    if query.compiled is None:
        return False
    versions = query.collection.rows.versions
    return any(versions[row] > sequence for row in result.rows)


def _fill(query: CompiledQuery, result: SearchResult, add_hit: AddHit, reply: ReplySize) -> None:
    """Add the hits, and how they were found where that is asked for. Raises LimitExceededError when the reply is full."""
    ids = query.collection.rows.ids
    hits = list(zip(result.rows, result.scores, strict=True))
    if query.nearest_id:
        hits = [hit for hit in hits if ids[hit[0]] != query.nearest_id]
    if query.score_threshold is not None:
        if query.index.arena.metric.higher_is_nearer:
            hits = [hit for hit in hits if hit[1] >= query.score_threshold]
        else:
            hits = [hit for hit in hits if hit[1] <= query.score_threshold]
    for row, score in hits[query.offset : query.offset + query.limit]:
        hit = add_hit()
        hit.score = score
        reply.grow(query.selection.fill(hit.point, query.collection, row), "limit")
    if query.explanation is not None:
        query.explanation.CopyFrom(explanation(result.plan, query.compiled))
