"""Memory by point, without payloads: how much a server's resident memory grows over a load, by the raw float32 bytes of the vectors.

Measured for both storages, each on a server of its own, once the graph is complete and a checkpoint is taken, and again after a restart
from it. The log's own buffers are part of the growth.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import grpc

from bench.engines.vecmem_server import COLLECTION, POINTS_PER_LOAD, wait_for_graph
from bench.measure import K, alone
from bench.report import Report
from bench.scenarios.common import add_common_arguments, begin, truth_of, vecmem
from vecmem.v1 import collections_pb2, collections_pb2_grpc, common_pb2

if TYPE_CHECKING:
    import argparse

    from bench.datasets import Dataset
    from bench.engines.vecmem_server import Vecmem
    from bench.measure import Truth

STORAGES: Final = ("float32", "float16")
FLOAT32_BYTES: Final = 4
REST_SECONDS: Final = 1.0
"""Given to the allocator and to background work before memory is read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> Report:
    """One server for each storage."""
    report, dataset = begin("memory", arguments)
    truth = truth_of(dataset, queries_max=arguments.queries)
    for storage in STORAGES:
        with vecmem(report, arguments) as engine:
            _measure(report, engine, dataset, truth, storage)
    return report


def _measure(report: Report, engine: Vecmem, dataset: Dataset, truth: Truth, storage: str) -> None:
    create(engine, dataset, storage)
    engine.know(dataset)
    before_bytes = engine.server.rss_bytes()
    for begin_at in range(0, len(dataset), POINTS_PER_LOAD):
        part = slice(begin_at, begin_at + POINTS_PER_LOAD)
        engine.client.upsert_bulk(COLLECTION, dataset.ids[part], dataset.vectors[part])
    wait_for_graph(engine.client, COLLECTION, len(dataset))
    seen = alone(lambda query: engine.search(query, K), truth.queries, len(truth.queries))
    report.add("vecmem", f"recall_at_{K}_{storage}", truth.recall(seen.found), "ratio")
    engine.client.create_checkpoint(timeout_seconds=600)
    time.sleep(REST_SECONDS)
    _add(report, dataset, engine.server.rss_bytes() - before_bytes, f"_{storage}")
    report.add("vecmem", f"restart_seconds_{storage}", engine.restart(truth.queries[0], K), "s")
    time.sleep(REST_SECONDS)
    _add(report, dataset, engine.server.rss_bytes() - before_bytes, f"_after_restart_{storage}")


def _add(report: Report, dataset: Dataset, grown_bytes: int, suffix: str) -> None:
    by_point = grown_bytes / len(dataset)
    report.add("vecmem", f"rss_bytes_per_point{suffix}", by_point, "bytes")
    report.add("vecmem", f"rss_to_raw_float32_ratio{suffix}", by_point / (FLOAT32_BYTES * dataset.dimension), "ratio")


def create(engine: Vecmem, dataset: Dataset, storage: str) -> None:
    """Make the collection with a storage, over the plain stubs. Raises grpc.RpcError."""
    parameters = collections_pb2.VectorParams(
        dimension=dataset.dimension,
        metric=common_pb2.Metric.Value(f"METRIC_{dataset.metric.upper()}"),
        storage=collections_pb2.Storage.Value(f"STORAGE_{storage.upper()}"),
    )
    request = collections_pb2.CreateCollectionRequest(
        name=COLLECTION, config=collections_pb2.CollectionConfig(vector=parameters)
    )
    with grpc.insecure_channel(engine.server.address) as channel:
        collections_pb2_grpc.CollectionServiceStub(channel).CreateCollection(request, timeout=60)
