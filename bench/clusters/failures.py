"""Nodes and NATS servers that are killed, and planned handovers: how long writes wait, whether replicas go on answering, what is lost.

A writer writes one key after the other all the time, each with its own number, and keeps what was acknowledged; at the end all of
it is read. Writes are there again with the first one that *began* after the kill and was acknowledged.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import grpc
import numpy as np

from bench.clusters.processes import (
    CALL_SECONDS_MAX,
    MOVED_ACCEPTED,
    LocalCluster,
    any_member,
    own_channel,
    stream_name,
    wait_until_whole,
)
from bench.report import note, percentile_ms
from vecmem.v1 import strings_pb2, strings_pb2_grpc
from vecmem_client import strings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from bench.report import Report

READ_KEY: Final = b"read-from-replicas"
READ_PAUSE_SECONDS: Final = 0.01
READ_SECONDS_MAX: Final = 2.0
CALM_SECONDS: Final = 1.0
"""Of writes without failures, between two."""
KEYS_PER_PIPELINE: Final = 500
AGAIN_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Done:
    """A call that has ended, of time.perf_counter()."""

    began: float
    ended: float


class Writer:
    """A thread that writes numbered keys, one at a time, through a client that retries."""

    def __init__(self, cluster: LocalCluster, prefix: str) -> None:
        self._cluster = cluster
        self._prefix = prefix
        self.acknowledged: list[Done] = []
        """Place n: the write of key n."""
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"writer-{prefix}", daemon=True)

    def _run(self) -> None:
        try:
            with self._cluster.client() as client:
                while not self._stop.is_set():
                    began = time.perf_counter()
                    client.run(strings.set(self._key(len(self.acknowledged)), b"%d" % len(self.acknowledged)))
                    self.acknowledged.append(Done(began, time.perf_counter()))
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            self._error = error

    def _key(self, number: int) -> bytes:
        return f"{self._prefix}:{number}".encode()

    def seconds_until_again(self, since: float) -> float:
        """Wait for the first acknowledged write that began after a moment; seconds from then until that was. Raises TimeoutError."""
        while True:
            self._check()
            place = bisect_left(self.acknowledged, since, key=lambda done: done.began)
            if place < len(self.acknowledged):
                return self.acknowledged[place].ended - since
            if time.perf_counter() - since > AGAIN_SECONDS_MAX:
                raise TimeoutError(f"no write for {AGAIN_SECONDS_MAX:.0f} s")
            time.sleep(POLL_SECONDS)

    def longest_gap_seconds(self, since: float) -> float:
        """Between two acknowledgements one after the other, of which the second came after a moment."""
        ended = [done.ended for done in self.acknowledged]
        first = next((place for place, end in enumerate(ended) if end >= since), len(ended))
        return float(np.diff(ended[max(0, first - 1) :]).max(initial=0.0))

    def wait(self, seconds: float) -> None:
        """Go on writing for some time."""
        time.sleep(seconds)
        self._check()

    def lost_count(self) -> int:
        """How many acknowledged writes are not there; after the writer has ended."""
        lost = 0
        with self._cluster.client() as client:
            for first in range(0, len(self.acknowledged), KEYS_PER_PIPELINE):
                numbers = range(first, min(first + KEYS_PER_PIPELINE, len(self.acknowledged)))
                found = client.pipeline([strings.get(self._key(number)) for number in numbers])
                lost += sum(value != b"%d" % number for number, value in zip(numbers, found, strict=True))
        return lost

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        self.seconds_until_again(time.perf_counter())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(CALL_SECONDS_MAX + 5.0)
        if self._thread.is_alive():
            raise RuntimeError("the writer does not end")


class Reader:
    """A thread that reads one key from some nodes in turn, as replicas, and retries nothing."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self.reads: list[tuple[Done, str]] = []
        """With what went wrong; empty: nothing."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replica-reader", daemon=True)

    def _run(self) -> None:
        channels = [own_channel(address) for address in self._addresses]
        stubs = [strings_pb2_grpc.StringServiceStub(channel) for channel in channels]
        request = strings_pb2.GetStringRequest(key=READ_KEY, read=any_member())
        try:
            while not self._stop.wait(READ_PAUSE_SECONDS):
                stub = stubs[len(self.reads) % len(stubs)]
                began = time.perf_counter()
                try:
                    reply = stub.GetString(request, timeout=READ_SECONDS_MAX, metadata=MOVED_ACCEPTED)
                    failure = "" if reply.value == READ_KEY else f"another value: {reply.value!r}"
                except grpc.RpcError as error:
                    failure = str(error)
                self.reads.append((Done(began, time.perf_counter()), failure))
        finally:
            for channel in channels:
                channel.close()

    def within(self, began: float, ended: float) -> list[str]:
        """What went wrong of the reads that were under way then."""
        return [failure for done, failure in list(self.reads) if done.ended >= began and done.began <= ended]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def failover(report: Report, cluster: LocalCluster, arguments: argparse.Namespace) -> None:
    """The node that leads is killed, again and again; the others are read as replicas meanwhile."""
    seconds: list[float] = []
    failures: list[str] = []
    with cluster.client() as client:
        client.run(strings.set(READ_KEY, READ_KEY))
    with _written(report, cluster, "failover") as writer:
        for number in range(arguments.kills):
            leader = cluster.leader()
            survivors = [address for place, address in enumerate(cluster.addresses) if place != leader]
            with Reader(survivors) as reader:
                writer.wait(CALM_SECONDS)
                killed_at = time.perf_counter()
                cluster.nodes[leader].kill()
                seconds.append(writer.seconds_until_again(time.perf_counter()))
                again_at = time.perf_counter()
                writer.wait(POLL_SECONDS)
            during = reader.within(killed_at, again_at)
            failures += [failure for failure in during if failure]
            note(
                f"kill {number + 1}: writes again after {seconds[-1]:.2f} s, {len(during)} reads of replicas meanwhile"
            )
            cluster.nodes[leader].start()
        writer.wait(CALM_SECONDS)
    for failure in failures[:3]:
        note(f"a read of a replica failed: {failure}")
    _add_seconds(report, "failover", seconds)
    report.add("vecmem", "failover_replica_reads_failed", len(failures), "reads")


def stream_leader(report: Report, cluster: LocalCluster, arguments: argparse.Namespace) -> None:
    """The NATS server that leads the stream of the log is killed, again and again."""
    seconds: list[float] = []
    servers = {server.plan.name: server for server in cluster.nats.servers}
    with cluster.connection() as connection, _written(report, cluster, "stream_leader_killed") as writer:
        for number in range(arguments.nats_kills):
            leader = servers[wait_until_whole(connection, stream_name(), cluster.nats.servers)]
            writer.wait(CALM_SECONDS)
            leader.kill()
            seconds.append(writer.seconds_until_again(time.perf_counter()))
            note(f"kill {number + 1} of {leader.plan.name}: writes again after {seconds[-1]:.2f} s")
            leader.launch()
        wait_until_whole(connection, stream_name(), cluster.nats.servers)
        writer.wait(CALM_SECONDS)
    _add_seconds(report, "stream_leader_killed", seconds)


def handover(report: Report, cluster: LocalCluster, arguments: argparse.Namespace) -> None:
    """The node that leads gives that up by itself, again and again."""
    gaps: list[float] = []
    with cluster.client() as client, _written(report, cluster, "handover") as writer:
        for number in range(arguments.handovers):
            cluster.leader()
            writer.wait(CALM_SECONDS)
            began = time.perf_counter()
            client.hand_over()
            writer.seconds_until_again(time.perf_counter())
            writer.wait(CALM_SECONDS)
            gaps.append(writer.longest_gap_seconds(began))
            note(f"handover {number + 1}: no write was acknowledged for {gaps[-1] * 1e3:.0f} ms")
    report.add("vecmem", "handover_writes_blocked_ms_p50", percentile_ms(gaps, 50), "ms")
    report.add("vecmem", "handover_writes_blocked_ms_max", max(gaps) * 1e3, "ms")


@contextmanager
def _written(report: Report, cluster: LocalCluster, name: str) -> Iterator[Writer]:
    """A writer beside what is done; then it is counted what is lost."""
    with Writer(cluster, name) as writer:
        yield writer
    report.add("vecmem", f"{name}_acknowledged_writes", len(writer.acknowledged), "writes")
    report.add("vecmem", f"{name}_acknowledged_writes_lost", writer.lost_count(), "writes")


def _add_seconds(report: Report, name: str, seconds: list[float]) -> None:
    for percentile in (50, 99):
        report.add("vecmem", f"{name}_seconds_p{percentile}", percentile_ms(seconds, percentile) / 1e3, "s")
    report.add("vecmem", f"{name}_seconds_max", max(seconds), "s")
