"""Latency and rate of any engine: one caller through its sync client, many through its asyncio client or threads."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import uvloop

from bench.datasets import Dataset, recall
from bench.report import percentile_ms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    import numpy as np
    import numpy.typing as npt

    from bench.datasets import BoolRow
    from bench.engines import Engine, Search, Vector
    from bench.report import Report

K: Final = 10
RECALL_WANTED: Final = 0.97
WARM_UP_QUERIES: Final = 50
WARM_UP_PER_CALLER: Final = 20


@dataclass(frozen=True)
class Truth:
    """Queries and what their hits must reach, as from `worst_true_scores`, among the matching rows."""

    dataset: Dataset
    queries: npt.NDArray[np.float32]
    worst: npt.NDArray[np.float64]
    matching: BoolRow | None = None

    def recall(self, found: Sequence[Sequence[int]]) -> float:
        """Recall of the hits of the first queries, as many as there are lists."""
        count = len(found)
        return recall(self.dataset, self.queries[:count], self.worst[:count], found, K, self.matching)


@dataclass(frozen=True)
class Alone:
    """What one caller saw: seconds for each query, and the rows found."""

    latencies_seconds: list[float]
    found: list[list[int]]

    def report(self, report: Report, system: str, suffix: str = "") -> None:
        """Add its percentiles and its rate."""
        latencies = self.latencies_seconds
        report.add(system, f"latency_ms_p50_1_caller{suffix}", percentile_ms(latencies, 50), "ms")
        report.add(system, f"latency_ms_p99_1_caller{suffix}", percentile_ms(latencies, 99), "ms")
        report.add(system, f"qps_1_caller{suffix}", len(latencies) / sum(latencies), "1/s")


def alone(search: Callable[[Vector], list[int]], queries: npt.NDArray[np.float32], count: int) -> Alone:
    """One query at a time, `count` of them, the queries over again where they are fewer; after a warm-up."""
    for query in queries[:WARM_UP_QUERIES]:
        search(query)
    latencies: list[float] = []
    found: list[list[int]] = []
    for query in itertools.islice(itertools.cycle(queries), count):
        began_at = time.perf_counter()
        rows = search(query)
        latencies.append(time.perf_counter() - began_at)
        found.append(rows)
    return Alone(latencies, found[: len(queries)])


def rate(engine: Engine, queries: npt.NDArray[np.float32], *, callers: int, count: int) -> float:
    """Queries a second of many callers that share a list of `count` queries; after a warm-up."""
    tasks = engine.tasks()
    if tasks is not None:
        return run_tasks(_searched_by_tasks(tasks, queries, callers, count))
    return searched_by_threads(lambda query: engine.search(query, K), queries, callers, count)


def run_tasks(work: Awaitable[float]) -> float:
    """Run on uvloop, as a client that cares for its rate does."""

    async def run() -> float:
        return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


async def _searched_by_tasks(
    tasks: AbstractAsyncContextManager[Search], queries: npt.NDArray[np.float32], callers: int, count: int
) -> float:
    async with tasks as search:

        async def one(query: Vector) -> None:
            await search(query, K)

        return await calls_by_tasks(one, queries, callers, count)


async def calls_by_tasks(
    call: Callable[[Vector], Awaitable[None]], queries: npt.NDArray[np.float32], callers: int, count: int
) -> float:
    """Calls a second of `callers` tasks that share `count` calls, one query each; after a warm-up."""

    async def caller(shared: Iterator[Vector]) -> None:
        for query in shared:
            await call(query)

    async def run_all(total: int) -> float:
        shared = itertools.islice(itertools.cycle(queries), total)
        began_at = time.perf_counter()
        await asyncio.gather(*(caller(shared) for _ in range(callers)))
        return total / (time.perf_counter() - began_at)

    await run_all(max(WARM_UP_QUERIES, WARM_UP_PER_CALLER * callers))
    return await run_all(count)


def searched_by_threads(
    search: Callable[[Vector], list[int]], queries: npt.NDArray[np.float32], callers: int, count: int
) -> float:
    """Queries a second of `callers` threads that share `count` queries. An error of one is raised here."""
    shared = itertools.islice(itertools.cycle(queries), count + WARM_UP_QUERIES)
    for query in itertools.islice(shared, WARM_UP_QUERIES):
        search(query)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def caller() -> None:
        try:
            while not errors:
                with lock:
                    query = next(shared, None)
                if query is None:
                    return
                search(query)
        except BaseException as error:  # noqa: BLE001  # raised again below, in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=caller, name=f"caller-{number}", daemon=True) for number in range(callers)]
    began_at = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began_at
    if errors:
        raise errors[0]
    return count / seconds


@dataclass(frozen=True)
class Tuned:
    """The setting that was chosen, and the recall it reached."""

    effort: int
    recall: float


def tune(report: Report, engine: Engine, truth: Truth, *, count: int, callers: int, stop_at: float) -> Tuned:
    """Try the engine's efforts upwards. Chosen is the first whose recall is RECALL_WANTED, else the one of most recall.

    Goes on until recall is `stop_at`, so that the curve shows what more of it costs, and leaves the chosen effort in use. Reports
    recall and the rate of many callers at each effort, under names that end in `_ef_EFFORT`.
    """
    chosen: Tuned | None = None
    for effort in engine.efforts:
        engine.use(effort)
        seen = alone(lambda query: engine.search(query, K), truth.queries, count)
        reached = truth.recall(seen.found)
        report.add(engine.name, f"recall_at_{K}_ef_{effort}", reached, "ratio")
        qps = rate(engine, truth.queries, callers=callers, count=count)
        report.add(engine.name, f"qps_{callers}_callers_ef_{effort}", qps, "1/s")
        if chosen is None or (chosen.recall < RECALL_WANTED and reached > chosen.recall):
            chosen = Tuned(effort, reached)
        if reached >= stop_at:
            break
    assert chosen is not None
    engine.use(chosen.effort)
    return chosen
