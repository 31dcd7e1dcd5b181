"""Slots that move from one shard to another under load.

All points of a collection are in the slots that move. Threads query, and write and read keys of these slots, before the move and
until it is over: every call goes through a client with its own retries, so that a slot that is blocked shows as a write that waits.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.clusters.processes import CALL_SECONDS_MAX, LocalCluster, own_channel, topology_of
from bench.engines.vecmem_server import wait_for_graph
from bench.measure import K
from bench.report import note, percentile_ms
from vecmem.cluster.topology import slots_in
from vecmem.slots import slot_of
from vecmem.v1 import cluster_pb2, cluster_pb2_grpc
from vecmem_client import Client, VecmemClientError, VectorConfig, strings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from bench.datasets import Dataset
    from bench.report import Report

COLLECTION: Final = "moving"
SEED: Final = 11
NOISE: Final = 0.02
"""Of a vector's elements, where the data set is used more than once: no two points are equal."""
BEFORE_SECONDS_MIN: Final = 5.0
MOVE_SECONDS_MAX: Final = 1_800.0
LOOK_SECONDS: Final = 0.1
WRITERS: Final = 2
PAUSE_SECONDS: Final = 0.002
"""Of a caller between two calls: the load is steady, and leaves room on two cores."""


@dataclass
class Calls:
    """What callers of one kind have seen, from all their threads."""

    ended: list[tuple[float, float]] = field(default_factory=list)
    """When a call began, of time.perf_counter(), and how long it took, seconds."""
    failures: list[str] = field(default_factory=list)

    def seconds(self, since: float, until: float) -> list[float]:
        """How long those took that were under way in a time."""
        return [took for began, took in self.ended if began + took >= since and began <= until]


def moving(report: Report, directory: Path, dataset: Dataset, arguments: argparse.Namespace) -> None:
    """Two shards of one node each, over one log each."""
    with LocalCluster(directory / "moving", "--grpc-engine", arguments.grpc_engine, shards=2) as cluster:
        with own_channel(cluster.addresses[0]) as channel:
            source = topology_of(channel).topology.shards[0]
        slots = slots_in(source.slots)[: arguments.moving_slots]
        ids, vectors = _points(dataset, set(slots), arguments.moving_points)
        with Client(cluster.target, timeout_seconds=120) as client:
            client.create_collection(COLLECTION, VectorConfig(dataset.dimension, dataset.metric))
            client.upsert_bulk(COLLECTION, ids, vectors)
            wait_for_graph(client, COLLECTION)
        for node in cluster.nodes:
            node.wait_until_idle()
        kinds = {"query": Calls(), "set": Calls(), "get": Calls()}
        keys = _keys(slots)
        with _load(cluster, dataset, kinds, keys):
            began = time.perf_counter()
            time.sleep(max(BEFORE_SECONDS_MIN, arguments.moving_before_seconds))
            move_began = time.perf_counter()
            _move(cluster, slots)
            move_ended = time.perf_counter()
        report.add("vecmem", "moving_seconds", move_ended - move_began, "s")
        report.add("vecmem", "moving_points_per_second", len(ids) / (move_ended - move_began), "1/s")
        _tell(report, kinds, (began, move_began), (move_began, move_ended))
        with Client(cluster.target, timeout_seconds=120) as client:
            report.add("vecmem", "moving_points_lost", len(ids) - client.count(COLLECTION), "points")


def _points(dataset: Dataset, slots: set[int], count: int) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Ids that belong to the slots, and vectors: the data set's, over again with noise where it has fewer."""
    ids: list[str] = []
    number = 0
    while len(ids) < count:
        if slot_of(b"%d" % number) in slots:
            ids.append(str(number))
        number += 1
    rows = np.arange(count) % len(dataset)
    vectors = np.asarray(dataset.vectors[:], dtype=np.float32)[rows]
    again = np.flatnonzero(np.arange(count) >= len(dataset))
    noise = np.random.default_rng(SEED).standard_normal((len(again), dataset.dimension), dtype=np.float32)
    vectors[again] += NOISE * noise * np.abs(vectors[again]).mean(axis=1, keepdims=True)
    return ids, vectors


def _keys(slots: list[int]) -> list[bytes]:
    """One key of each slot."""
    wanted = set(slots)
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < len(wanted):
        key = b"key:%d" % number
        slot = slot_of(key)
        if slot in wanted:
            found.setdefault(slot, key)
        number += 1
    return [found[slot] for slot in slots]


@contextmanager
def _load(cluster: LocalCluster, dataset: Dataset, kinds: dict[str, Calls], keys: list[bytes]) -> Iterator[None]:
    """Callers that go on until the end of the block."""
    stop = threading.Event()

    def caller(kind: str, call: Callable[[Client, int], object], first: int) -> None:
        calls = kinds[kind]
        with Client(cluster.target, timeout_seconds=CALL_SECONDS_MAX) as client:
            number = first
            while not stop.wait(PAUSE_SECONDS):
                began = time.perf_counter()
                try:
                    call(client, number)
                except VecmemClientError as error:
                    calls.failures.append(str(error))
                calls.ended.append((began, time.perf_counter() - began))
                number += 1

    def query(client: Client, number: int) -> object:
        return client.query(COLLECTION, dataset.queries[number % len(dataset.queries)], limit=K)

    def write(client: Client, number: int) -> object:
        return client.run(strings.set(keys[number % len(keys)], b"%d" % number))

    def read(client: Client, number: int) -> object:
        return client.run(strings.get(keys[number % len(keys)]))

    jobs = [("query", query, 0), ("get", read, 0)]
    jobs += [("set", write, place * len(keys) // WRITERS) for place in range(WRITERS)]
    threads = [threading.Thread(target=caller, args=job, name=f"load-{job[0]}", daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(CALL_SECONDS_MAX + 5.0)


def _move(cluster: LocalCluster, slots: list[int]) -> None:
    """Move slots from the first shard to the second one, and wait until they are there. Raises TimeoutError."""
    deadline = time.monotonic() + MOVE_SECONDS_MAX
    with own_channel(cluster.addresses[0]) as channel:
        request = cluster_pb2.MoveSlotsRequest(source=0, target=1)
        request.slots.add(first=slots[0], last=slots[-1])
        epoch = cluster_pb2_grpc.ClusterServiceStub(channel).MoveSlots(request, timeout=CALL_SECONDS_MAX).epoch
        told_at = time.monotonic()
        while time.monotonic() < deadline:
            topology = topology_of(channel).topology
            if topology.epoch >= epoch and not topology.migrations:
                owned = {slot for shard in topology.shards if shard.number == 1 for slot in slots_in(shard.slots)}
                if not owned.issuperset(slots):
                    raise RuntimeError("the migration is gone, but not all slots have moved")
                return
            if time.monotonic() > told_at + 5.0:
                left = sum(len(slots_in(migration.slots)) for migration in topology.migrations)
                note(f"{left} of {len(slots)} slots are still to be moved")
                told_at = time.monotonic()
            time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"the slots have not moved within {MOVE_SECONDS_MAX:.0f} s")


def _tell(report: Report, kinds: dict[str, Calls], before: tuple[float, float], during: tuple[float, float]) -> None:
    failures = [failure for calls in kinds.values() for failure in calls.failures]
    for failure in failures[:3]:
        note(f"a call failed: {failure}")
    report.add("vecmem", "moving_failed_calls", len(failures), "calls")
    for kind, calls in kinds.items():
        p99_before = percentile_ms(calls.seconds(*before), 99)
        p99_during = percentile_ms(calls.seconds(*during), 99)
        report.add("vecmem", f"moving_{kind}_calls", len(calls.seconds(*during)), "calls")
        report.add("vecmem", f"moving_{kind}_ms_p99_before", p99_before, "ms")
        report.add("vecmem", f"moving_{kind}_ms_p99", p99_during, "ms")
        report.add("vecmem", f"moving_{kind}_p99_ratio_to_before", p99_during / p99_before, "ratio")
    report.add("vecmem", "moving_write_blocked_ms_max", max(kinds["set"].seconds(*during)) * 1e3, "ms")
