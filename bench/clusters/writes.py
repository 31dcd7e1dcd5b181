"""What a write through a replicated log costs, beside a bare append to such a log; and a bulk load, beside a node that is alone."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.clusters.processes import (
    LocalCluster,
    bare_stream,
    client_messages,
    own_channel,
    stream_info,
    stream_name,
)
from bench.report import note, percentile_ms
from bench.server import Server
from vecmem.log.jetstream_batch import BATCH_ID, EXPECTED_LAST_SEQUENCE, Batch
from vecmem.v1 import strings_pb2, strings_pb2_grpc
from vecmem_client import Client, VectorConfig

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from bench.datasets import Dataset
    from bench.report import Report
    from vecmem.log.jetstream_stream import Stream
    from vecmem.log.nats_connection import NatsConnection

VALUE: Final = b"v" * 100
WARM_UP_CALLS: Final = 100
IDLE_SECONDS: Final = 3.0
APPEND_SECONDS_MAX: Final = 30.0
COLLECTION: Final = "bench"


def durable_writes(report: Report, cluster: LocalCluster, arguments: argparse.Namespace) -> None:
    """One caller's writes through the log, each followed by an append of the same bytes to another stream of the same servers."""
    _idle_messages(report, cluster)
    with cluster.connection() as connection, own_channel(cluster.addresses[cluster.leader()]) as channel:
        stub = strings_pb2_grpc.StringServiceStub(channel)
        setting = strings_pb2.SetStringRequest(key=b"single", value=VALUE)
        stub.SetString(setting, timeout=60.0)
        bare = _BareLog(connection, len(cluster.nats.servers), _last_batch(connection))
        before = stream_info(connection, stream_name())["state"]
        seconds: dict[str, list[float]] = {"durable_write": [], "bare_jetstream_append": []}
        for number in range(arguments.writes + WARM_UP_CALLS):
            began = time.perf_counter()
            stub.SetString(setting)
            write_seconds = time.perf_counter() - began
            append_seconds = bare.append()
            if number >= WARM_UP_CALLS:
                seconds["durable_write"].append(write_seconds)
                seconds["bare_jetstream_append"].append(append_seconds)
        after = stream_info(connection, stream_name())["state"]
    for name, latencies in seconds.items():
        report.add("vecmem", f"{name}_ms_p50", percentile_ms(latencies, 50), "ms")
        report.add("vecmem", f"{name}_ms_p99", percentile_ms(latencies, 99), "ms")
    p50 = {name: percentile_ms(latencies, 50) for name, latencies in seconds.items()}
    report.add(
        "vecmem", "durable_write_to_bare_append_ratio", p50["durable_write"] / p50["bare_jetstream_append"], "ratio"
    )
    # Renewals of the lease are among them: messages of about the same size.
    stored = (after["bytes"] - before["bytes"]) / (after["messages"] - before["messages"])
    report.add("vecmem", "log_bytes_per_write", stored, "bytes")


def _idle_messages(report: Report, cluster: LocalCluster) -> None:
    before = client_messages(cluster.nats)
    time.sleep(IDLE_SECONDS)
    messages = (client_messages(cluster.nats) - before) / IDLE_SECONDS
    report.add("vecmem", f"idle_nats_messages_per_second_nodes_{len(cluster.nodes)}", messages, "1/s")


def _last_batch(connection: NatsConnection) -> Batch:
    """The message of the write before: that of a bare append is like it."""
    from vecmem.log.jetstream_stream import Stream

    found = connection.call(Stream(connection, stream_name()).get_last, seconds=APPEND_SECONDS_MAX)
    assert found is not None, "a write is in the log"
    return found


class _BareLog:
    """A stream as that of a log, and appends under the same condition; timed where the client of NATS runs, with nothing around it."""

    def __init__(self, connection: NatsConnection, replicas: int, batch: Batch) -> None:
        self._connection = connection
        self._stream: Stream = bare_stream(connection, "bench-bare", replicas)
        self._batch = batch
        self._last = 0

    def append(self) -> float:
        """Seconds until it was acknowledged. Raises NoReplyError."""
        return self._connection.call(self._append, seconds=APPEND_SECONDS_MAX)

    async def _append(self) -> float:
        headers = self._batch.headers() | {BATCH_ID: uuid.uuid4().hex, EXPECTED_LAST_SEQUENCE: str(self._last)}
        began = time.perf_counter()
        answer = await self._connection.request(
            self._stream.subject, self._batch.frames, headers, seconds=APPEND_SECONDS_MAX
        )
        seconds = time.perf_counter() - began
        if b'"error"' in answer.data:
            raise RuntimeError(f"a bare append was refused: {answer.data!r}")
        self._last += 1
        return seconds


def ingest(report: Report, directory: Path, dataset: Dataset, arguments: argparse.Namespace) -> None:
    """A bulk load into one shard over a replicated log and into a node that is alone, in turns, each on fresh processes."""
    rates: dict[str, list[float]] = {"alone": [], "replicated": []}
    for number in range(arguments.ingest_rounds):
        with Server(directory / f"alone-{number}", "--grpc-engine", arguments.grpc_engine) as server:
            server.start()
            rates["alone"].append(_load_rate(server.address, dataset))
        with LocalCluster(directory / f"replicated-{number}", "--grpc-engine", arguments.grpc_engine) as cluster:
            rates["replicated"].append(_load_rate(cluster.target, dataset))
        note(f"round {number + 1}: {rates['alone'][-1]:,.0f} points/s alone, {rates['replicated'][-1]:,.0f} replicated")
    for name, found in rates.items():
        report.add("vecmem", f"ingest_points_per_second_{name}", float(np.median(found)), "1/s")
    ratios = [replicated / alone for replicated, alone in zip(rates["replicated"], rates["alone"], strict=True)]
    report.add("vecmem", "ingest_replicated_to_alone_ratio", float(np.median(ratios)), "ratio")


def _load_rate(target: str, dataset: Dataset) -> float:
    """Points a second until the last one is acknowledged: durable, and searchable."""
    with Client(target, timeout_seconds=120) as client:
        client.create_collection(COLLECTION, VectorConfig(dataset.dimension, dataset.metric))
        vectors = dataset.vectors[:]
        began = time.perf_counter()
        client.upsert_bulk(COLLECTION, dataset.ids, vectors, dataset.payloads)
        return len(dataset) / (time.perf_counter() - began)
