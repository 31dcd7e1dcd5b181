"""The work behind the writes of a shard: rows go into graphs, dead ones are reclaimed, declared columns built, recall measured.

All of it in slices beside the calls; results are complete without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from vecmem.config import Settings
from vecmem.index.vector_index import VectorIndex
from vecmem.store.collection import Collection

if TYPE_CHECKING:
    from vecmem.store.shard import Shard

MAINTENANCE_POLL_SECONDS = 0.05
MAINTENANCE_GATHER_SECONDS = 0.02
TRICKLE_SECONDS = 0.2
TRICKLE_ROWS = 256
GRAPH_SLICE_SECONDS = 0.05
"""How long graph insertion runs at a time. Searches go on beside it; the codes of a long tail and checkpoints wait for its end."""
SLICE_ROWS_MIN = 8
SLICE_ROWS_MAX = 2_048
DECLARED_PAUSE_SECONDS = 0.001
"""Between two slices of a declared column, each of which takes about as long."""
MEASURE_POLL_SECONDS = 0.2
MEASURE_PAUSE_FACTOR = 1.0
"""Measuring leaves half of the time to others: it needs the interpreter now and then, and a core where nobody else does."""


class Maintenance:
    """Of one shard; `maintain` and `measure` run for ever."""

    def __init__(self, shard: Shard, settings: Settings) -> None:
        self._shard = shard
        self._graph_threads = settings.graph_threads or os.cpu_count() or 1
        self._graph_executor = ThreadPoolExecutor(1, "vecmem-graph")
        self.pausing = asyncio.Lock()
        """Held while a graph is changed; who holds it keeps them as they are."""
        self.work = asyncio.Event()
        """Set by every write."""
        self.work.set()
        self._rows_per_second = 2_000.0
        self.drained_rows = 0
        """Inserted into graphs since the last checkpoint."""

    def has_work(self) -> bool:
        """Whether an index has."""
        return any(
            index.has_work()
            for collection in self._shard.state.collections.values()
            for index in collection.vectors.values()
        )

    async def maintain(self) -> None:
        """Do what there is to do, and wait for more."""
        while True:
            worked = False
            # While single writes come in, a short tail waits: scanning it costs a search next to nothing, and inserting each row
            # at once would cost the next write more. It goes into the graph in one piece, or when the writes pause.
            writing = time.monotonic() - self._shard.last_write < TRICKLE_SECONDS
            tail_rows_min = TRICKLE_ROWS if writing else 1
            for collection in list(self._shard.state.collections.values()):
                await self._shard.settled(collection)
                while collection.reclaim():
                    await asyncio.sleep(0)
                    await self._shard.settled(collection)
                if not collection.payloads.declared_complete:
                    await self._build_declared(collection)
                for index in collection.vectors.values():
                    if not index.has_work(tail_rows_min=tail_rows_min):
                        continue
                    worked |= await self._maintain_slice(index)
            self._shard.failures.pop("maintain indexes", None)
            if worked:
                continue
            self.work.clear()
            # Rows wait for searches to end, which nobody announces; everything else begins with a write.
            waiting = self.has_work() or any(
                collection.rows.awaits_reclaim for collection in self._shard.state.collections.values()
            )
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes as the wait ends.
                async with asyncio.timeout(MAINTENANCE_POLL_SECONDS if waiting else None):
                    await self.work.wait()
            await asyncio.sleep(MAINTENANCE_GATHER_SECONDS)

    async def _maintain_slice(self, index: VectorIndex) -> bool:
        """One slice of background work; False when there was none."""
        slice_rows = min(SLICE_ROWS_MAX, max(SLICE_ROWS_MIN, int(self._rows_per_second * GRAPH_SLICE_SECONDS)))
        maintain = partial(index.maintain, threads=self._graph_threads, slice_rows=slice_rows)
        async with self.pausing:
            began = time.perf_counter()
            row_count = index.statistics().graph_row_count
            worked = await asyncio.get_running_loop().run_in_executor(self._graph_executor, maintain)
            inserted = index.statistics().graph_row_count - row_count
        if inserted > 0:
            self.drained_rows += inserted
            self._rows_per_second += 0.2 * (inserted / (time.perf_counter() - began) - self._rows_per_second)
        return worked

    async def measure(self) -> None:
        """Measure recall and calibrate effort, a slice at a time, behind all other work on graphs."""
        while True:
            await asyncio.sleep(MEASURE_POLL_SECONDS)
            for collection in list(self._shard.state.collections.values()):
                for index in collection.vectors.values():
                    while index.wants_measuring():
                        async with self.pausing:
                            began = time.perf_counter()
                            await asyncio.get_running_loop().run_in_executor(self._graph_executor, index.measure)
                            took_seconds = time.perf_counter() - began
                        await asyncio.sleep(MEASURE_PAUSE_FACTOR * took_seconds)
            self._shard.failures.pop("measure recall", None)

    async def _build_declared(self, collection: Collection) -> None:
        """Build declared columns as far as they are missing. Everything else comes first: nobody waits for this."""
        for _ in collection.payloads.build_declared():
            await asyncio.sleep(DECLARED_PAUSE_SECONDS)

    async def idle(self) -> None:
        """Return when a slice that a cancelled task has left behind in its thread is through."""
        await asyncio.get_running_loop().run_in_executor(self._graph_executor, lambda: None)

    def close(self) -> None:
        """End its thread."""
        self._graph_executor.shutdown()
